"""What a training keeps on the coordinator's disk, so that it can be taken up again (SPEC 6.6).

``progress.json`` holds the finished rounds and the attempt begun last; models, and the receipt's entry for each sum
that is finished, lie beside it by the digest of their content; a round whose survivor set may have been confirmed is
*held*: its messages and its sum are written before any site is asked to confirm. Every file is written whole, flushed,
and then named, so that a process may be killed at any instant.

A killed training goes on after its last finished round. A round that was not held is tried again under a new attempt
number; one that was held is finished under its own, for no site would start it again (SPEC 8, rule 3).
"""

import fcntl
import hashlib
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from flows.model import GlobalModel
from flows.plan import Plan, Privacy
from flows.report import Report, RoundRecord
from protocols.contexts import AttemptContext, Digest, Purpose
from protocols.errors import BadMessage
from protocols.files import write_whole
from protocols.messages import Envelope, adapter
from protocols.receipt import Entry, Evidence, add_entry
from protocols.secagg_coordinator import Dealings, inboxes, open_roster

Stored = TypeVar("Stored")


class CheckpointError(Exception):
    """A checkpoint that cannot be used; one line that says why and what to do."""


@dataclass(frozen=True, slots=True)
class Best:
    """The incoming model with the best monitored metric so far, and the round that measured it.

    ``capped`` where the metric is a loss of which a part was cut off.
    """

    round: int
    value: float
    model: Digest
    capped: bool = False


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a training has come.

    Attributes:
        training: its name.
        plan: the plan's digest.
        model: digest of the current model's file.
        round, attempt: the attempt begun last; attempt numbers never go back.
        monitored: the examples that the rounds' metrics are measured on.
        records: the finished sums.
        receipt: digests of the files of the receipt's entries, one for each record.
        best: of the rounds so far.
        stopped: whether the training has stopped early.
    """

    training: str
    plan: Digest
    model: Digest
    round: int = -1
    attempt: int = 0
    monitored: str = ""
    records: tuple[RoundRecord, ...] = ()
    receipt: tuple[Digest, ...] = ()
    best: Best | None = None
    stopped: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Held:
    """A round whose survivor set is fixed: everything that finishing it needs.

    Attributes:
        context: the attempt.
        adverts: of U1.
        dealt: the sealed shares of U2, by dealer.
        survivors: U3.
        absent: why each other site is not in it.
        total: SHA-256 of the sum of the masked vectors, which lies beside it.
        train_s: the slowest survivor's local work in seconds.
        sent: the most bytes that a site had sent in it.
    """

    context: AttemptContext
    adverts: tuple[Envelope, ...]
    dealt: Mapping[str, tuple[Envelope, ...]]
    survivors: tuple[str, ...]
    absent: Mapping[str, str]
    total: Digest
    train_s: float
    sent: int

    @property
    def dealings(self) -> Dealings:
        """U1 and U2, checked anew."""
        return inboxes(open_roster(self.context, self.adverts), self.dealt)


@dataclass(slots=True)
class Checkpoint:
    """The checkpoint in ``folder``; open it with ``create`` or ``resume``."""

    folder: Path
    progress: Progress
    model: GlobalModel
    _lock: IO[str] = field(repr=False)

    @classmethod
    def create(cls, folder: Path, training: str, plan: Plan, model: GlobalModel) -> "Checkpoint":
        """Start the checkpoint of a new training."""
        folder.mkdir(parents=True, exist_ok=True)
        lock = _hold_alone(folder)
        digest = _keep(folder, model.to_bytes())
        checkpoint = cls(folder, Progress(training, plan.digest, digest), model, lock)
        checkpoint._write(checkpoint.progress)
        return checkpoint

    @classmethod
    def resume(cls, folder: Path, plan: Plan, *, parameters: int, features: int) -> "Checkpoint":
        """Take up the checkpoint of a training that was cut off.

        Raises:
            CheckpointError: it is missing, cut short, in use, or of another plan or model.
        """
        if not folder.is_dir():
            raise CheckpointError(f"{folder}: there is no checkpoint: name a run's folder")
        with ExitStack() as kept:
            lock = kept.enter_context(_hold_alone(folder))
            progress = _read(Progress, folder / "progress.json")
            if progress.plan != plan.digest:
                raise CheckpointError(
                    f"{folder}: the checkpoint is of another plan: resume it with the plan that it has"
                )
            if len(progress.receipt) != len(progress.records):
                raise CheckpointError(f"{folder}: the checkpoint is of another version of fedseal: go on with that one")
            model = _load(folder, progress.model, parameters, features, plan.privacy.adaptive)
            kept.pop_all()
        return cls(folder, progress, model, lock)

    def close(self) -> None:
        """Let another process take up the training."""
        self._lock.close()

    @property
    def begun(self) -> bool:
        """Whether a sum was ever attempted: enough sites had joined then."""
        return self.progress.round >= 0

    @property
    def rounds(self) -> int:
        """How many rounds of training are finished."""
        return sum(one.purpose == "training" for one in self.progress.records)

    def record(self, purpose: Purpose, round_: int) -> RoundRecord | None:
        """The record of a sum that is finished."""
        return next((one for one in self.progress.records if (one.purpose, one.round) == (purpose, round_)), None)

    def next_attempt(self, round_: int) -> int:
        """The first attempt number at a round that no site has seen."""
        return self.progress.attempt + 1 if self.progress.round == round_ else 1

    def begin(self, round_: int, attempt: int) -> None:
        """Note an attempt before any site is asked."""
        self._write(replace(self.progress, round=round_, attempt=attempt))

    def monitor(self, examples: str) -> None:
        """Note the name of the examples that the rounds' metrics are measured on."""
        self._write(replace(self.progress, monitored=examples))

    def hold(
        self,
        dealings: Dealings,
        survivors: tuple[str, ...],
        absent: Mapping[str, str],
        total: NDArray[np.uint8],
        train_s: float,
        sent: int,
    ) -> None:
        """Keep a round before any site is asked to confirm it."""
        dealt = {dealer: tuple(messages.values()) for dealer, messages in dealings.envelopes.items()}
        roster, digest = dealings.roster, _keep(self.folder, total.tobytes())
        held = Held(roster.context, roster.envelopes, dealt, survivors, absent, digest, train_s, sent)
        write_whole(self.folder / "held.json", TypeAdapter(Held).dump_json(held))

    def held(self, round_: int) -> Held | None:
        """The round that must be finished, if it is this one.

        Raises:
            CheckpointError: if what was kept is cut short.
        """
        path = self.folder / "held.json"
        if not path.exists():
            return None
        held = _read(Held, path)
        return held if (held.context.round, held.context.model) == (round_, self.progress.model) else None

    def held_total(self, held: Held) -> NDArray[np.uint8]:
        """The sum of a held round's masked vectors.

        Raises:
            CheckpointError: if it is missing or cut short.
        """
        return np.frombuffer(_fetch(self.folder, held.total), np.uint8)

    def commit(self, plan: Plan, record: RoundRecord, model: GlobalModel, evidence: Evidence) -> None:
        """Take over a finished sum, the model that it gives and its entry; what is no longer needed is deleted.

        The entry is on disk before the progress that names it: a finished sum is never without one.
        """
        progress, digest = self.progress, _keep(self.folder, model.to_bytes())
        last = self._entry(progress.receipt[-1]) if progress.receipt else None
        entry = add_entry(last, evidence, digest, record.epsilon)
        receipt = (*progress.receipt, _keep(self.folder, adapter(Entry).dump_json(entry)))
        best, stopped = progress.best, progress.stopped
        if record.purpose == "training":
            best = _better(plan, best, record, progress.model)
            waited = record.round - best.round if best else 0
            tired = 0 < plan.stopping.patience <= waited
            converged = digest == progress.model  # no site makes another sum from the same model (SPEC 8, rule 3)
            stopped = (tired or converged) and record.round < plan.rounds
        records = (*progress.records, record)
        self._write(replace(progress, model=digest, records=records, receipt=receipt, best=best, stopped=stopped))
        self.model = model
        keep = {"progress.json", "lock", digest, best.model if best else "", *receipt}
        for path in self.folder.iterdir():
            if path.name not in keep:
                path.unlink()

    def entries(self, first: int = 0) -> tuple[Entry, ...]:
        """The receipt's entries so far, from the ``first`` on.

        Raises:
            CheckpointError: if a file is missing or cut short.
        """
        return tuple(self._entry(digest) for digest in self.progress.receipt[first:])

    def take_best(self) -> None:
        """Go back to the best model, for the final evaluation.

        Raises:
            CheckpointError: if its file is missing or cut short.
        """
        if self.progress.best is not None:
            scaling = self.model.standardisation
            features = 0 if scaling is None else scaling.mean.size
            self.model = _load(self.folder, self.progress.best.model, self.model.vector.size, features)
            self._write(replace(self.progress, model=self.progress.best.model))

    def report(self, rules: Privacy) -> Report:
        """What a finished training tells of itself, and what it has cost in the privacy that its plan asks for.

        Raises:
            ValueError: if it is not finished.
        """
        progress = self.progress
        by_purpose = {
            purpose: tuple(record for record in progress.records if record.purpose == purpose)
            for purpose in ("statistics", "training", "evaluation")
        }
        if not by_purpose["evaluation"]:
            raise ValueError("the training is not finished")
        spent = by_purpose["evaluation"][0].epsilon
        return Report(
            progress.training,
            progress.plan,
            progress.monitored,
            by_purpose["statistics"][0] if by_purpose["statistics"] else None,
            by_purpose["training"],
            by_purpose["evaluation"][0],
            progress.best.round if progress.best else None,
            progress.stopped,
            None if spent is None else {"unit": rules.unit, "epsilon": spent, "delta": rules.delta},
        )

    def _entry(self, digest: str) -> Entry:
        try:
            return adapter(Entry).validate_json(_fetch(self.folder, digest))
        except ValidationError:
            raise CheckpointError(f"{self.folder}: the receipt is of another version of fedseal") from None

    def _write(self, progress: Progress) -> None:
        write_whole(self.folder / "progress.json", TypeAdapter(Progress).dump_json(progress, indent=1))
        self.progress = progress


def _better(plan: Plan, best: Best | None, record: RoundRecord, model: str) -> Best | None:
    """The best round so far; one whose loss was capped gives way to whatever comes next.

    Capped, a loss is known from below alone: a training that converges from beyond the cap would look as if it stood.
    """
    value, by_loss = record.metrics.get(plan.stopping.metric), plan.stopping.metric == "loss"
    if value is None:
        return best
    if best is not None and not best.capped and (value >= best.value if by_loss else value <= best.value):
        return best
    return Best(record.round, value, model, by_loss and "capped" in record.metrics)


def _hold_alone(folder: Path) -> IO[str]:
    lock = (folder / "lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        lock.close()
        if not isinstance(error, BlockingIOError):
            why = f"its file system keeps no locks ({error.strerror}): take a folder on another one"
        else:
            why = "another process runs this training: wait for it, or end it"
        raise CheckpointError(f"{folder}: {why}") from None
    return lock


def _keep(folder: Path, content: bytes) -> str:
    digest = hashlib.sha256(content).hexdigest()
    if not (folder / digest).exists():
        write_whole(folder / digest, content)
    return digest


def _fetch(folder: Path, digest: str) -> bytes:
    with suppress(OSError):
        content = (folder / digest).read_bytes()
        if hashlib.sha256(content).hexdigest() == digest:
            return content
    raise CheckpointError(f"{folder / digest}: is missing or cut short: the training cannot be resumed")


def _load(folder: Path, digest: str, parameters: int, features: int, adaptive: bool = False) -> GlobalModel:
    content = _fetch(folder, digest)
    try:
        return GlobalModel.from_bytes(content, parameters=parameters, features=features, adaptive=adaptive)
    except BadMessage:
        raise CheckpointError(f"{folder}: the checkpoint is of another model: the task has changed since") from None


def _read(kind: type[Stored], path: Path) -> Stored:
    try:
        return TypeAdapter(kind).validate_json(path.read_bytes())
    except (OSError, ValidationError):
        raise CheckpointError(f"{path}: is missing or cut short: the training cannot be resumed") from None
