"""A task whose import has its process record each vector before it is masked, and lets a test move its clock.

A task is code that its site has installed, so that it may do this; a site's own data steward would not.
"""

import hashlib
import os
import threading
import time
from datetime import UTC, datetime, timedelta
from functools import wraps
from pathlib import Path
from typing import Any

import numpy as np
import time_machine
from numpy.typing import NDArray
from torch import Tensor

from protocols import secagg_site
from protocols.keys import Identity
from protocols.secagg_site import Shared
from tests.flows.tasks import Tiny

RECORD = "FEDSEAL_TEST_RECORD"
"""Names the folder of the records, ``<site>/<attempt context>/<sha256>``, and of the clocks, ``<party>.clock``."""
STEP_S = 0.15


class Recorded(Tiny):
    """Takes about half a second to train, so that a fault can come in the middle of it."""

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        time.sleep(STEP_S)
        return super().loss(logits, targets)


def record_vectors(folder: Path) -> None:
    """Write down every vector that is masked from now on."""
    honest = secagg_site.mask

    @wraps(honest)
    def recording(identity: Identity, state: Shared, ask: Any, vector: NDArray[np.uint8], *more: str) -> Any:
        place = folder / identity.name / state.advertised.context.digest
        place.mkdir(parents=True, exist_ok=True)
        (place / hashlib.sha256(vector.data).hexdigest()).write_bytes(vector.data)
        return honest(identity, state, ask, vector, *more)

    secagg_site.mask = recording


def follow_clock(clock: Path) -> None:
    """Set this process's clock as many hours off as the file says, for as long as it says so."""
    hours, travel = 0.0, None
    while True:
        told = float(clock.read_text() or 0) if clock.exists() else 0.0
        if told != hours:
            if travel is not None:
                travel.stop()
            travel = time_machine.travel(datetime.now(UTC) + timedelta(hours=told), tick=True) if told else None
            if travel is not None:
                travel.start()
            hours = told
        time.sleep(0.1)


if RECORD in os.environ:
    records = Path(os.environ[RECORD])
    record_vectors(records)
    party = Path(os.environ["PREFECT_HOME"]).parent.name
    threading.Thread(target=follow_clock, args=(records / f"{party}.clock",), daemon=True).start()
