"""How the coordinator reaches sites that run elsewhere: through participations and their mailboxes (SPEC 6.9).

For each site of a training there is a *link*: the participation run that is asked, and whether the site has joined in
it. A participation is started when the site's worker is seen to be online; when it has ended, another is started and
joined before anything else is asked, so that a site that was killed goes on in the same round. A cancelled one is the
site's withdrawal. One thread looks for answers and for the state of the runs; an answer that its site has not signed
to that very request is thrown away, and the wait goes on.
"""

import logging
import math
import queue
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import httpx
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterId,
    FlowRunFilter,
    FlowRunFilterName,
)
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from prefect.states import Crashed, Pending, Scheduled

from flows.collect import Absent
from flows.exchange import Exchange, ExchangeAway
from flows.mailbox import Mailbox, MailboxError, answer_key, pack, request_key, unpack, unreachable
from flows.participation import BUSY_S, ENDED, GROWTH, IDLE_S, LONGEST_PAUSE_S, TIDY_S, run_states
from flows.pauses import pauses
from flows.settings import PARTICIPATE, marked, pool_of
from flows.site import Answer
from protocols.errors import BadMessage
from protocols.keys import Consortium, InvalidKey, verify
from protocols.messages import COORDINATOR, Envelope, check_answers

WORKER_S, OFFLINE_S = 15.0, 30.0
"""Seconds between two looks at the worker of a site that does not answer, and for which it must be seen to be offline:
a server that comes back calls every worker so until it has heard of it."""
BACK_S = 120.0
"""Seconds in which a site whose worker is back has to join again."""
SILENT_S = 5.0
"""Seconds without an answer after which a site's worker is looked at, or the server is at fault that shows none."""
CLOSE_S = 5.0
"""Seconds that participations which are being started are waited for at the end, all together."""
LOOK_S = 2.0
"""Seconds between two looks at the states of the runs, and the longest at a worker that is not there."""
AGAIN_S = 2.0
"""Seconds after a forged answer until the site is asked again."""
LONGEST_NUMBER = 10
"""Digits of a participation's number; anybody can give a run any name."""
ONLINE = "ONLINE"
ASKED_FOR, DUE = "AskedFor", "Due"
"""The names of a participation's first states: just made, and waiting for the site's worker."""
WRONG_CLOCK = timedelta(days=3)
"""How far this machine's clock may be ahead of the server's, which starts a run when its time has come."""
MOST_READ = 256
"""Answers that were read and not yet deleted: their keys go along in every look, so that there must not be many."""
TRIES = 2
"""Participations that one question is put to, if they end under it."""

log = logging.getLogger("fedseal.coordinator")


class Unreached(Exception):
    """A site that cannot be asked now, and why; the text is for the operator."""


class Ended(Unreached):
    """A participation that has ended under a question: the next one may answer it."""


class Withdrawn(Unreached):
    """A site that takes no further part in this training."""


@dataclass(slots=True)
class Link:
    """The coordinator's line to one site.

    Attributes:
        run: the participation that is asked.
        join: the request to join, which is put to each new participation.
        joined: whether the site has joined.
        leaving: whether it was asked to finish: its participation then ends for good.
        why: it cannot be asked.
        silent: whether its last answer is overdue.
        offline_since: when its worker was first seen to be offline, while it is.
        lock: held by whoever starts a participation.
    """

    run: UUID | None = None
    join: Envelope | None = None
    joined: bool = False
    leaving: bool = False
    why: str = "has not joined yet"
    silent: bool = False
    offline_since: float | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)


@dataclass(frozen=True, slots=True, eq=False)
class Question:
    """A request that waits for its answer; an empty one tells that something else was thrown away."""

    site: str
    request: Envelope
    answers: queue.SimpleQueue[Answer] = field(default_factory=queue.SimpleQueue)


class RemoteSites:
    """Sites that are reached through the Prefect API.

    Args:
        client: of the Prefect API.
        training: the training's name; participations are named after it.
        run: the training's flow run, whose inputs are the answers.
        consortium: the pinned keys.
        exchange: where long messages lie.
        ending: set when no site need be waited for any more; this sets it when the training's run is cancelled.
        paused: this sets it while the training's run is paused.

    Attributes:
        cancelled: whether the training's run was cancelled, or ended, by somebody else.
        returned: told of a site that has joined again, in a new participation.
    """

    def __init__(
        self,
        client: SyncPrefectClient,
        training: str,
        run: UUID,
        consortium: Consortium,
        exchange: Exchange,
        ending: threading.Event,
        paused: threading.Event | None = None,
    ) -> None:
        self.cancelled = False
        self.returned: Callable[[str], None] = lambda site: None
        self._client = client
        self._training = training
        self._run = run
        self._answers = Mailbox(client, run)
        self._consortium = consortium
        self._store = exchange
        self._links = {site: Link() for site in consortium.sites}
        self._ended: dict[UUID, StateType] = {}
        self._read: set[str] = set()
        self._waiting: dict[str, Question] = {}
        self._wake, self._ending, self._paused = threading.Event(), ending, paused or threading.Event()
        self._began, self._trouble, self._lost = time.monotonic(), "", 0.0
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop looking; who still waits for a site is told that there is no answer, and what came late is deleted."""
        self._ending.set()
        self._wake.set()
        self._thread.join()
        deadline = time.monotonic() + CLOSE_S
        for link in self._links.values():  # who starts a participation still needs the client
            if link.lock.acquire(timeout=max(0.0, deadline - time.monotonic())):
                link.lock.release()
        try:
            self._answers.clear("answer-")
        except MailboxError as error:
            log.warning("answers are left in the training's run: %s", error.reason)

    def ask(self, site: str, request: Envelope, deadline_s: float) -> Answer | Absent:
        """Ask a site, or say why it cannot be asked or has not answered.

        A server that is away is waited for, and so is, for joining, a worker that is not online.
        """
        deadline, link, ended = time.monotonic() + deadline_s, self._links[site], 0
        if joining := request.kind == "ask/join":
            link.join = request
        link.leaving |= request.kind == "ask/finish"
        for pause_s in pauses(last_s=LOOK_S):
            try:
                answer = self._talk(site, self._reach(site, joining, deadline), request, deadline)
                link.joined |= joining and answer[0].kind == "joined"
                return answer
            except (Unreached, MailboxError) as missing:
                link.why = str(missing)
                ended += isinstance(missing, Ended)
                passing = isinstance(missing, Ended | MailboxError) or (joining and not isinstance(missing, Withdrawn))
                if not passing or ended == TRIES or time.monotonic() + pause_s > deadline or self._ending.wait(pause_s):
                    break
        return Absent(link.why)

    def _reach(self, site: str, joining: bool, deadline: float) -> UUID:
        """The participation to ask; one that has ended is followed by another, which is joined first.

        Raises:
            Unreached: the site has not joined, or has withdrawn, or its worker is not online.
            MailboxError: the server does not answer.
        """
        link = self._links[site]
        if not joining and not link.joined:
            raise Unreached(link.why)  # at once: whoever waits for a late site's worker must not hold up a round
        if not link.lock.acquire(timeout=max(0.0, deadline - time.monotonic())):
            raise Unreached("no answer in time: another question waits for its participation")
        try:
            if link.run is None or link.run in self._ended:
                link.run = self._participation(site)
                if not joining and link.join is not None:
                    self._join_again(site, link.run, link.join, deadline)
                    self.returned(site)
            return link.run
        except (Unreached, MailboxError):
            link.run = None
            raise
        finally:
            link.lock.release()

    def _join_again(self, site: str, run: UUID, join: Envelope, deadline: float) -> None:
        if self._talk(site, run, join, deadline)[0].kind != "joined":
            raise Unreached("has come back and does not join again")

    def _participation(self, site: str) -> UUID:
        """The site's living participation; started where there is none and its worker is online.

        Raises:
            Unreached: it is not registered, not online, or has withdrawn.
            MailboxError: the server does not answer.
        """
        try:
            key = self._consortium.coordinator
            deployment = self._client.read_deployment_by_name(f"{PARTICIPATE}/{marked(site, key)}").id
            prefix = f"{self._training}-{site}-"
            runs = {number: run for run in self._runs(deployment, prefix) if (number := self._number(run, prefix))}
            given = {"training": self._training, "training_run": str(self._run)}
            for run in (run for run in runs.values() if run.parameters == given):
                if run.state is not None and run.state.name == ASKED_FOR:
                    return self._due(run.id)
                if run.state is not None and run.state.type in (StateType.CANCELLED, StateType.CANCELLING):
                    raise Withdrawn("has withdrawn from this training")
                if run.state is not None and run.state.type not in ENDED:
                    return run.id
            if not self._online(site):
                raise Unreached("its worker is not online: fedseal site serve starts it")
            number = max(runs, default=0) + 1
            made = self._client.create_flow_run_from_deployment(
                deployment,
                name=f"{prefix}{number}",
                parameters=given,
                state=Pending(name=ASKED_FOR),
                idempotency_key=str(uuid4()),  # one that can be guessed gives the run that somebody has made under it
            )
            return self._due(made.id)
        except ObjectNotFound:
            raise Unreached("is not registered at the Prefect server: fedseal site serve does it") from None
        except (PrefectHTTPStatusError, httpx.HTTPError) as error:
            raise unreachable(error) from None

    def _due(self, run: UUID) -> UUID:
        """Have a participation start at once. The server calls a run late by the first time that it is given, and by
        this name it does not.
        """
        state: State[None] = Scheduled(scheduled_time=datetime.now(UTC) - WRONG_CLOCK, name=DUE)
        self._client.set_flow_run_state(run, state, force=True)
        return run

    def _runs(self, deployment: UUID, prefix: str) -> list[FlowRun]:
        return self._client.read_flow_runs(
            flow_run_filter=FlowRunFilter(name=FlowRunFilterName(like_=prefix)),
            deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=[deployment])),
        )

    @staticmethod
    def _number(run: FlowRun, prefix: str) -> int:
        number = run.name.removeprefix(prefix)
        return int(number) if number.isdecimal() and len(number) <= LONGEST_NUMBER else 0

    def _talk(self, site: str, run: UUID, request: Envelope, deadline: float) -> Answer:
        """Post a request and wait for the answer that the site has signed.

        Raises:
            Ended: the participation has ended.
            Unreached: there was no answer in time.
            MailboxError: the server does not take the request.
        """
        key, asked = request_key(request), time.monotonic()
        expected, question, box = answer_key(site, key), Question(site, request), Mailbox(self._client, run)
        text, parcel = pack((request,), self._store, COORDINATOR)
        self._waiting[expected] = question
        try:
            if expected in self._read:  # asked before: that answer is not the one to this
                self._answers.delete(expected)
                self._read.discard(expected)
            box.put(key, text)
            self._wake.set()
            again = math.inf
            while (left := deadline - time.monotonic()) > 0 and not self._ending.is_set():
                with suppress(queue.Empty):
                    if answer := question.answers.get(timeout=min(left, 0.5)):
                        self._links[site].silent, self._links[site].offline_since = False, None
                        return answer
                    again = min(again, time.monotonic() + AGAIN_S)
                if time.monotonic() > again:  # the site's own answer may have been thrown away with a forged one
                    box.put(key, text)
                    again = time.monotonic() + AGAIN_S
                if run in self._ended:
                    raise Ended(f"its participation has ended ({self._ended[run].value.lower()})")
                self._links[site].silent |= time.monotonic() - asked > SILENT_S
            why = "before the training's end" if self._ending.is_set() else f"within {time.monotonic() - asked:.0f} s"
            raise Unreached(f"no answer {why}{self._server_trouble()}")
        except Unreached:
            with suppress(MailboxError):
                box.delete(key)
            raise
        finally:
            del self._waiting[expected]
            if parcel:
                with suppress(OSError):
                    self._store.delete(COORDINATOR, parcel)

    def _server_trouble(self) -> str:
        """What keeps the coordinator from seeing any answer; empty where nothing does."""
        hangs_s = time.monotonic() - self._began
        if not self._trouble and hangs_s > SILENT_S:
            return f": the Prefect server has not answered for {hangs_s:.0f} s"
        return f": {self._trouble}" if self._trouble else ""

    def _look(self) -> None:
        """Look for answers, often while somebody waits, and for the states of the runs."""
        pause_s, looked, away = BUSY_S, 0.0, pauses(LOOK_S, LONGEST_PAUSE_S)
        at_workers = time.monotonic()
        while not self._ending.is_set():
            try:
                self._began = time.monotonic()
                found = self._answers.take("answer-", self._read) if self._waiting else {}
                self._began = math.inf
                self._deliver_all(found)
                self._began = time.monotonic()
                if time.monotonic() - looked > LOOK_S:
                    self._look_at_runs()
                    looked = time.monotonic()
                if time.monotonic() - at_workers > WORKER_S:
                    self._look_at_workers()
                    at_workers = time.monotonic()
                pause_s = BUSY_S if found or self._wake.is_set() else min(pause_s * GROWTH, IDLE_S)
                if pause_s > TIDY_S or len(self._read) > MOST_READ:
                    self._tidy()
                away = pauses(LOOK_S, LONGEST_PAUSE_S)
                self._hear("")
            except OSError as error:  # the server's, or the exchange's
                pause_s = next(away)
                self._hear(f"{error}")
                log.warning("%s; looking again in %.0f s", error, pause_s)
                with suppress(MailboxError):  # what was read must not be what makes every look fail
                    self._tidy()
            self._wake.clear()
            self._began = math.inf
            self._wake.wait(pause_s)

    def _hear(self, trouble: str) -> None:
        """Note what the look has met, and log that what was away is back."""
        if trouble and not self._trouble:
            self._lost = min(self._began, time.monotonic())
        if self._trouble and not trouble:
            log.warning("answers come in again, after %.0f s (%s)", time.monotonic() - self._lost, self._trouble)
        self._trouble = trouble

    def _look_at_workers(self) -> None:
        """End the participation of a silent site whose worker is gone, since a program ends with its worker; start
        another where the worker is back. Nobody waits for either.
        """
        for site, link in self._links.items():
            gone = link.run is None or link.run in self._ended
            if link.joined and not link.leaving and gone and not link.lock.locked():
                threading.Thread(target=self._bring_back, args=(site,), daemon=True).start()
            if not link.silent or link.run is None or link.run in self._ended:
                continue
            if self._online(site):
                link.offline_since = None
                continue
            link.offline_since = link.offline_since or time.monotonic()
            if time.monotonic() - link.offline_since >= OFFLINE_S:
                log.warning("%s: its worker is offline: its participation is ended", site)
                self._end_run(link.run, Crashed(message="Its worker is offline."))
                self._ended[link.run] = StateType.CRASHED

    def _bring_back(self, site: str) -> None:
        """Have a site join again whose participation has ended, if its worker is online."""
        with suppress(Unreached, MailboxError, ExchangeAway):
            if not self._ending.is_set():
                self._reach(site, False, time.monotonic() + BACK_S)

    def _online(self, site: str) -> bool:
        try:
            workers = self._client.read_workers_for_work_pool(pool_of(site, self._consortium.coordinator))
            return ONLINE in {worker.status for worker in workers}
        except ObjectNotFound:
            return False
        except (PrefectHTTPStatusError, httpx.HTTPError) as error:
            raise unreachable(error) from None

    def _end_run(self, run: UUID, state: State[None]) -> None:
        try:
            self._client.set_flow_run_state(run, state, force=True)
        except (PrefectHTTPStatusError, httpx.HTTPError) as error:
            raise unreachable(error) from None

    def _deliver_all(self, found: Mapping[str, str]) -> None:
        """Deliver what a look has found; one that cannot be read now holds up no other.

        Raises:
            MailboxError: the server does not answer.
            ExchangeAway: a long answer's text cannot be read now; it lies there until the next look.
        """
        away: list[ExchangeAway] = []
        for key, text in found.items():
            try:
                self._deliver(key, text)
            except ExchangeAway as error:
                away.append(error)
        if away:
            raise away[0]

    def _deliver(self, key: str, text: str) -> None:
        """Hand an answer to who waits for it, if its site has signed it to that request; ``_tidy`` deletes it.

        Another one is deleted at once, since the site's own comes under the same key; an empty answer tells of it. So
        is what nobody waits for: a flood of it must cost neither memory nor the next look.
        """
        question = self._waiting.get(key)
        if question is None:
            self._answers.delete(key)
            return
        try:
            question.answers.put(self._signed(question, unpack(text, self._store, question.site)))
            self._read.add(key)
        except BadMessage as bad:
            log.warning("threw away %s: %s", key, bad)
            self._answers.delete(key)
            question.answers.put(())

    def _tidy(self) -> None:
        for key in tuple(self._read):
            self._answers.delete(key)
            self._read.discard(key)

    def _signed(self, question: Question, messages: Answer) -> Answer:
        site = question.site
        try:
            for message in messages:
                if message.sender != site:
                    raise InvalidKey
                verify(self._consortium.sites[site], message.signed_bytes, bytes.fromhex(message.signature))
        except InvalidKey:
            raise BadMessage(site, "answer", "the site has not signed it") from None
        if not messages:
            raise BadMessage(site, "answer", "the answer is empty")
        check_answers(messages, question.request)
        return messages

    def _look_at_runs(self) -> None:
        living = [link.run for link in self._links.values() if link.run is not None and link.run not in self._ended]
        states = run_states(self._client, [self._run, *living])
        for run in living:
            state = states.get(run, StateType.CRASHED)  # one that was deleted has ended too
            if state in ENDED or state == StateType.CANCELLING:
                self._ended[run] = state
            if state in ENDED and run in states:  # killed before it could tidy
                Mailbox(self._client, run).clear("ask-")
        (self._paused.set if states.get(self._run) == StateType.PAUSED else self._paused.clear)()
        if states.get(self._run) in {StateType.CANCELLING, *ENDED}:
            self.cancelled = True
            self._ending.set()
