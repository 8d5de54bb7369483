"""What the coordinator's process holds of a training and Prefect must not: live parts, by the training's name.

Flow runs carry names and numbers only, since Prefect stores their parameters; a task looks the rest up here.
"""

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import cast

from flows.checkpoint import Checkpoint
from flows.collect import Absent
from flows.exchange import Exchange, ExchangeAway
from flows.local import Sites
from flows.model import shelf
from flows.plan import Plan
from flows.privacy import epsilon_so_far, shares_of
from flows.report import RoundRecord
from flows.site import Answer
from flows.standing import Standings
from flows.tables import segments_of
from ml_tasks.layout import Layout
from ml_tasks.task import Task
from ml_tasks.training import describe
from protocols.confirmed import ConfirmedSums
from protocols.contexts import AttemptContext, Purpose
from protocols.errors import BadInput, BadMessage, Pending
from protocols.keys import Consortium, Identity
from protocols.messages import Advert, Envelope, Refusal, check_answers, envelope, open_body
from protocols.vault import Vault

LONGEST_REASON = 500
"""A refusal's text is the site's: no more of it, and nothing that a terminal would obey, is shown to the operator."""
HURRY_S = 0.1
"""Seconds between two looks whether a site is still waited for."""
SUM_STEPS = frozenset({"moments", "train", "evaluate", "advertise", "share", "mask", "submit"})
"""The steps in which a site may be left out of a sum, and so is not waited for beyond its standing."""
LOOKALIKES = str.maketrans("`|<>[]", "'/()()")
"""What Markdown and HTML make links, images, tags, code and tables of, and what is shown in its place."""


@dataclass(slots=True)
class Session:
    """A training's live parts.

    Attributes:
        training: its name.
        plan, task: what is trained.
        vault: the coordinator's: its identity, and what it has seen of the sites' ledgers.
        consortium: the pinned keys.
        exchange: where vectors and models lie.
        sites: the way to the sites.
        checkpoint: how far the training has come, with the current global model.
        observe: told of every finished round.
        ending: set when no site need be waited for any more: the training ends, well or not.
        template: the signed template that the plan follows from, where the consortium has authors.
        patience_s: seconds of trouble that each sum outlasts; 0: it is attempted again at once, as often as planned.
        tell: told, in one line, what holds the training up and that it goes on.
        paused: set while no sum may be begun.
        standings: which sites are waited for.
        identity: the coordinator's.
        layout: what the task's sums are made of.
    """

    training: str
    plan: Plan
    task: Task
    vault: Vault
    consortium: Consortium
    exchange: Exchange
    sites: Sites
    checkpoint: Checkpoint
    observe: Callable[[RoundRecord], None] = lambda record: None
    ending: threading.Event = field(default_factory=threading.Event)
    template: str = ""
    patience_s: float = 0.0
    tell: Callable[[str], None] = logging.getLogger("fedseal.coordinator").warning
    paused: threading.Event = field(default_factory=threading.Event)
    standings: Standings = field(default_factory=Standings)
    identity: Identity = field(init=False)
    layout: Layout = field(init=False)
    _confirmed: ConfirmedSums = field(default_factory=ConfirmedSums)
    _counted: int = 0
    _missing: dict[str, str | None] = field(default_factory=dict)
    _sent: Counter[tuple[str, str]] = field(default_factory=Counter)
    _unneeded: set[str] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.identity, self.layout = self.vault.identity, describe(self.task)

    def witness(self, site: str, context: AttemptContext, advert: Advert) -> None:
        """Keep what a site's advert says of its past.

        Raises:
            BadMessage: it contradicts what the site has said before, in this training or another, or the sums that are
                finished: a receipt with such an advert would not verify.
        """
        with self.vault.exclusive():
            if not self.vault.witness(self.consortium.sites[site], *advert.seen(context), name=site):
                raise BadMessage(site, "advertise", "its vault was put back: its adverts contradict each other")
        for entry in self.checkpoint.entries(self._counted):
            self._confirmed.add(entry)
            self._counted += 1
        if not self._confirmed.allow(site, advert):
            raise BadMessage(site, "advertise", "it says that it has confirmed other sums than those that are finished")

    def context(self, purpose: Purpose, round_: int, attempt: int) -> AttemptContext:
        """The attempt context of a sum on the current model, which is put on the exchange."""
        rules = self.plan.protection
        table = segments_of(self.plan, purpose, self.layout.sizes)
        with self._lock:
            self._sent.clear()  # counts of contexts that are over
        model = self.exchange.put(shelf(self.training), self.checkpoint.model.to_bytes())
        self._unneeded.discard(model)
        return AttemptContext(
            purpose=purpose,
            training=self.training,
            round=round_,
            attempt=attempt,
            plan=self.plan.digest,
            sites={site: self.consortium.sites[site] for site in self.plan.sites},
            threshold=rules.threshold,
            colluding=rules.colluding,
            model=model,
            segments=table,
            noise=shares_of(self.plan, purpose, table),
        )

    def discard(self, model: str) -> None:
        """Delete from the exchange a model that no sum needs any more; while that is away, the next time."""
        self._unneeded.add(model)
        with suppress(ExchangeAway):
            for one in tuple(self._unneeded):
                self.exchange.delete(shelf(self.training), one)
                self._unneeded.remove(one)

    def epsilon_with(self, purpose: Purpose, attempts: int) -> float | None:
        """Epsilon of every finished sum and of one more, which took so many attempts; ``None`` without privacy."""
        made = [(cast(Purpose, one.purpose), one.attempt) for one in self.checkpoint.progress.records]
        size, features = self.checkpoint.model.vector.size, len(self.task.features)
        return epsilon_so_far(self.plan, [*made, (purpose, attempts)], parameters=size, features=features)

    def ask(self, site: str, step: str, context: str, body: object, deadline_s: float) -> tuple[Answer | Absent, float]:
        """Sign and send a request; a refusal is an absence with the site's reason. Also gives the seconds it took.

        A site that has not joined is asked nothing else: it is absent, for the reason that it has not joined.
        """
        if step == "join":
            found = self._send(site, step, context, body, deadline_s)
            self._missing[site] = found[0].reason if isinstance(found[0], Absent) else None
            return found
        if (reason := self._missing.get(site)) is not None:
            return Absent(reason), 0.0
        if step not in SUM_STEPS:
            return self._send(site, step, context, body, deadline_s)
        if reason := self.standings.rests(site):
            return Absent(reason), 0.0
        answer, seconds = self._send(site, step, context, body, deadline_s)
        absent = isinstance(answer, Absent)
        self.standings.note(site, step, seconds, absent=absent, given_up=isinstance(answer, Absent) and answer.given_up)
        return answer, seconds

    def begin_attempt(self, round_: int, *, again: bool) -> None:
        """Decide who is asked in an attempt at a sum, and who is waited for (SPEC 6.3)."""
        joined = [site for site in self.plan.sites if self._missing.get(site) is None]
        self.standings.begin(round_, joined, threshold=self.plan.protection.threshold, again=again)

    def _send(
        self, site: str, step: str, context: str, body: object, deadline_s: float
    ) -> tuple[Answer | Absent, float]:
        began = time.monotonic()
        request = envelope(self.identity, f"ask/{step}", context, site, body)
        ask = self._hurry if step in SUM_STEPS and self.standings.hurried(site) else self._ask
        answer = ask(site, request, deadline_s)
        seconds = time.monotonic() - began
        if isinstance(answer, Absent):
            return answer, seconds
        try:
            check_answers(answer, request)
        except BadMessage as bad:
            return Absent(f"no answer: {bad}"), seconds
        with self._lock:
            self._sent[context, site] += sum(len(message.to_json()) for message in answer)
        if len(answer) == 1 and answer[0].kind == "refusal":
            return self._refused(site, step, context, answer), seconds
        return answer, seconds

    def _ask(self, site: str, request: Envelope, deadline_s: float) -> Answer | Absent:
        try:
            return self.sites.ask(site, request, deadline_s)
        except OSError as error:
            return Absent(f"cannot be reached: {error.strerror or error}")

    def _hurry(self, site: str, request: Envelope, deadline_s: float) -> Answer | Absent:
        """Ask a site that has held up sums before. The question goes on when it is no longer waited for: it may be
        what brings the site back."""
        answers, step = SimpleQueue[Answer | Absent](), request.kind.removeprefix("ask/")
        asking = threading.Thread(target=lambda: answers.put(self._ask(site, request, deadline_s)), daemon=True)
        began = time.monotonic()
        asking.start()
        while True:
            with suppress(Empty):
                return answers.get(timeout=HURRY_S)
            if self.standings.over(site, step):
                seconds = time.monotonic() - began
                return Absent(f"no answer to {step} within {seconds:.0f} s, when the others had", given_up=True)

    def count_vector(self, site: str, context: str, size: int) -> None:
        """Count a vector that a site has put on the exchange."""
        with self._lock:
            self._sent[context, site] += size

    def bytes_per_site(self, *contexts: str) -> int:
        """The most bytes that any site has sent in these contexts."""
        with self._lock:
            return max((sum(self._sent[context, site] for context in contexts) for site in self.plan.sites), default=0)

    def _refused(self, site: str, step: str, context: str, answer: Answer) -> Absent:
        key, receiver = self.consortium.sites[site], self.identity.name
        try:
            refusal = open_body(
                Refusal, answer[0], key=key, kind="refusal", context=context, sender=site, receiver=receiver
            )
        except BadMessage as bad:
            return Absent(str(bad))
        # Once a survivor set may be confirmed, no single site can stop the round from being finished.
        bad_input = refusal.error == BadInput.__name__ and step not in ("confirm", "reveal")
        return Absent(f"refused {step}: {shown(refusal.reason)}", bad_input, refusal.error == Pending.__name__)


def shown(reason: str) -> str:
    """A site's text as a terminal, a log and Prefect's pages show it: short, printable, and nothing but text there."""
    letters = "".join(letter for letter in reason[:LONGEST_REASON] if letter.isprintable())
    return letters.translate(LOOKALIKES)


_sessions: dict[str, Session] = {}


def session(training: str) -> Session:
    """The live parts of a training in this process.

    Raises:
        ValueError: if this process does not run it.
    """
    try:
        return _sessions[training]
    except KeyError:
        raise ValueError(f"training {training} has no session in this process: start it with fedseal run") from None


@contextmanager
def opened(live: Session) -> Iterator[Session]:
    """Make a session known to the flows for as long as it lasts."""
    _sessions[live.training] = live
    try:
        yield live
    finally:
        del _sessions[live.training]
