"""Receipts of real local trainings, and ways to change one."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from deploy.run import save_model, write_receipt
from deploy.verify import check_privacy, plan_of, terms_of
from flows.plan import Plan
from protocols.audit import check_receipt
from protocols.consortium import read_consortium
from protocols.keys import Consortium, Identity
from protocols.receipt import Receipt, chain_start, parse_receipt
from tests.flows.consortium import Fault, Trial, trial

Path_ = tuple[int | str, ...]


@dataclass(frozen=True)
class Trained:
    """What a finished training has left in ``folder``, and the coordinator's identity, for a coordinator that lies."""

    folder: Path
    identity: Identity

    @property
    def path(self) -> Path:
        return self.folder / "receipt.json"

    @property
    def model(self) -> Path:
        return self.folder / "model.safetensors"

    @property
    def consortium(self) -> Consortium:
        return read_consortium(self.folder / "consortium.toml")

    @property
    def receipt(self) -> Receipt:
        return parse_receipt(self.path.read_bytes())

    def words(self, *, receipt: Path | None = None, model: Path | None = None) -> list[str | Path]:
        """The command line that checks it."""
        words = ["verify", receipt or self.path, "--consortium", self.folder / "consortium.toml"]
        return [*words, "--model", model] if model else words


def train(folder: Path, plan: Plan, faults: dict[tuple[str, str], Fault] | None = None, name: str = "tiny") -> Trained:
    """Run a training through Prefect and leave what ``fedseal run`` leaves."""
    with trial(folder, plan, faults, name) as run:
        run.train()
        return leave(run, folder)


def leave(run: Trial, folder: Path) -> Trained:
    """Write model, receipt and consortium of a trial that has ended."""
    save_model(folder / "model.safetensors", run.live.task, run.live.checkpoint.model)
    write_receipt(folder / "receipt.json", run.live)
    return Trained(folder, run.live.identity)


def check(content: Mapping[str, Any] | Receipt, consortium: Consortium) -> None:
    """Check a receipt's content as ``fedseal verify`` does.

    Raises:
        ReceiptError: naming the field that is wrong.
    """
    receipt = content if isinstance(content, Receipt) else parse_receipt(json.dumps(content).encode())
    plan = plan_of(receipt)
    check_receipt(receipt, consortium, terms_of(plan, receipt))
    check_privacy(receipt, plan)


def resigned(content: Mapping[str, Any], identity: Identity) -> Receipt:
    """The receipt with digests, chain and signature made anew: what a coordinator that lies would hand out."""
    receipt = parse_receipt(json.dumps(content).encode())
    previous, entries = chain_start(receipt.training, plan_of(receipt).digest), []
    for entry in receipt.rounds:
        chained = replace(entry, previous=previous)
        entries.append(replace(chained, digest=chained.expected_digest))
        previous = entries[-1].digest
    unsigned = replace(receipt, rounds=tuple(entries))
    return replace(unsigned, signature=identity.sign(unsigned.signed_bytes).hex())


def leaves(value: Any, path: Path_ = ()) -> Iterator[Path_]:
    """The path of every leaf of a JSON value."""
    if isinstance(value, dict | list):
        for key, below in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(below, (*path, key))
        if not value:
            yield path
    else:
        yield path


def nodes(value: Any, path: Path_ = ()) -> Iterator[Path_]:
    """The path of every field and every item of a JSON value, leaf or not."""
    for key, below in value.items() if isinstance(value, dict) else enumerate(value):
        yield (*path, key)
        if isinstance(below, dict | list):
            yield from nodes(below, (*path, key))


def holder(value: Any, path: Path_) -> Any:
    """The object or list that the last step of a path leads out of."""
    for key in path[:-1]:
        value = value[key]
    return value


def changed(value: Any) -> Any:
    """Another value of the same type, as close as can be."""
    match value:
        case str():
            at = len(value) // 2
            return value[:at] + ("1" if value[at] == "0" else "0") + value[at + 1 :]
        case int():
            return value + 1
        case float():
            return 2 * value
        case None:
            return 0.5
        case _:
            return [*value, "added"]


def written(path: Path_) -> str:
    """A path as errors name it: ``rounds[3].survivors``."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).removeprefix(".")


def is_within(path: Path_, field: str) -> bool:
    """Whether an error's field is the one that was changed or a parent of it."""
    return any(written(path[:end]) == field for end in range(1, len(path) + 1))
