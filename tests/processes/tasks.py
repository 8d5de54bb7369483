"""Tiny tasks for sites as processes: any site's name will do, and some take their time."""

import time
from pathlib import Path

from torch import Tensor

from ml_tasks.task import SiteData
from tests.flows.tasks import Tiny as _Tiny


class Tiny(_Tiny):
    """Two features, a few examples; a task of tests.flows under the name that the sites here allow."""


class Slow(_Tiny):
    """Takes three seconds to load its data, so that a test can act in the meantime."""

    def load(self, folder: Path | None, site: str) -> SiteData:
        time.sleep(3)
        return super().load(folder, site)


class Long(_Tiny):
    """Takes a second and a half to train or evaluate, so that a test can act in the middle of a round."""

    features = ()

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        time.sleep(0.5)
        return super().loss(logits, targets)


class Sleepy(_Tiny):
    """Loads for the better part of a minute at one site, while the others wait."""

    def load(self, folder: Path | None, site: str) -> SiteData:
        if site == "east":
            time.sleep(42)
        return super().load(folder, site)


class Hoarder(_Tiny):
    """Keeps memory and an open file for every step that it trains, for ever."""

    kept: list[object] = []  # noqa: RUF012

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        self.kept += [bytearray(b"\1") * 1_000_000, Path(__file__).open()]
        return super().loss(logits, targets)
