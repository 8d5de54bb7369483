"""A site's part in a training: one long flow run that takes requests, answers them and ends (SPEC 6.9).

The run is started at the coordinator's wish by the site's own worker, in a fresh process with the site's folder. The
site opens no port: requests are inputs of this run, answers go into the training's run. Everything here is transport;
what a request may do is decided by ``flows.site`` and the vault behind it. Order: journal, answer, delete.

Whoever cancels this run in the Prefect UI withdraws the site, as ``fedseal site revoke`` does from the site.
"""

import logging
import sqlite3
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from uuid import UUID

import httpx
from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import State, StateType
from prefect.exceptions import PrefectHTTPStatusError
from prefect.futures import PrefectFuture
from prefect.states import Cancelled, Completed

from flows.exchange import Exchange, ExchangeAway
from flows.leftovers import Hold
from flows.mailbox import Mailbox, MailboxError, answer_key, pack, request_key, unpack, unreachable
from flows.pauses import pauses
from flows.settings import PARTICIPATE
from flows.site import Site
from protocols.decisions import Decision
from protocols.errors import BadMessage
from protocols.messages import COORDINATOR, Envelope

BUSY_S, IDLE_S, GROWTH = 0.05, 2.0, 1.5
"""Seconds between two looks into the mailbox: right after a message, at the most, and how they grow."""
TIDY_S = 0.25
"""A pause as long as this is used to delete what was answered: in the middle of a round every call counts."""
STATE_S, IDLE_STATE_S = 2.0, 10.0
"""Seconds for which the state of the runs is believed, while there are requests and while there are none."""
LONGEST_PAUSE_S = 30.0
MOST_ANSWERED = 256
"""Requests that were answered and not yet deleted: their keys go along in every look."""
MOST_AT_ONCE = 8
"""Requests that are handled at the same time."""
ENDED = {StateType.COMPLETED, StateType.FAILED, StateType.CRASHED, StateType.CANCELLED}


@dataclass(slots=True)
class Seat:
    """What the process of a participation holds, and Prefect must not.

    Attributes:
        site: answers the requests.
        training: its name.
        client: of the Prefect API.
        run, training_run: this run and the training's.
        exchange: where long messages lie.
        lease_s: seconds without a good request after which the site leaves.
    """

    site: Site
    training: str
    client: SyncPrefectClient
    run: UUID
    training_run: UUID
    exchange: Exchange
    lease_s: float
    taken: dict[str, Envelope] = field(default_factory=dict)
    answered: set[str] = field(default_factory=set)
    asked: float = field(default_factory=time.monotonic)
    finished: bool = False
    _attempt: str = ""
    _parcels: list[str] = field(default_factory=list)
    _requests: Mailbox = field(init=False)
    _answers: Mailbox = field(init=False)
    _hold: Hold = field(init=False)

    def __post_init__(self) -> None:
        self._hold = Hold(self.site.vault, self.training)
        self._requests = Mailbox(self.client, self.run)
        self._answers = Mailbox(self.client, self.training_run)

    @property
    def name(self) -> str:
        """The site's."""
        return self.site.identity.name

    @property
    def log(self) -> logging.Logger:
        """The site's own log."""
        return logging.getLogger(f"fedseal.site.{self.name}")

    def take(self) -> list[str]:
        """Take new requests out of the mailbox; gives their keys. What is no request is deleted."""
        new = []
        for key, text in self._requests.take("ask-", {*self.taken, *self.answered}).items():
            if len(self.taken) >= MOST_AT_ONCE:
                break
            try:
                self.taken[key] = self.request(key, text)
                new.append(key)
            except BadMessage as bad:
                self.log.warning("deleted %s, which is no request: %s", key, bad.reason)
                self._requests.delete(key)
            except ExchangeAway as away:
                self.log.warning("a request waits: %s", away.reason)
        return new

    def request(self, key: str, text: str) -> Envelope:
        """Read what lies under ``key``; who has signed it is seen when it is answered.

        Raises:
            BadMessage: it is not the one request whose key this is.
            ExchangeAway: it is long, and the exchange cannot be reached.
        """
        messages = unpack(text, self.exchange, COORDINATOR)
        if len(messages) != 1:
            raise BadMessage(COORDINATOR, "request", f"it holds {len(messages)} messages")
        if request_key(messages[0]) != key:
            raise BadMessage(COORDINATOR, "request", "it lies under the key of another")
        return messages[0]

    def handle(self, key: str) -> None:
        """Answer a request: the vault journals, then the answer is posted; ``tidy`` deletes the request.

        Raises:
            MailboxError: the server does not answer; the request is still there and will be taken again.
        """
        request = self.taken[key]
        messages = self.site.answer(request)
        if self.withdrawn:
            return
        if messages[0].kind == "advert" and request.context != self._attempt:
            self.clear()
            self._attempt = request.context
        text, parcel = pack(messages, self.exchange, self.name)
        self._parcels += [parcel] if parcel else []
        self._answers.put(answer_key(self.name, key), text)
        self.answered.add(key)
        if messages[0].kind == "refusal":
            self.tidy()  # it may be asked again soon
        else:
            self.asked = time.monotonic()
            self.finished |= request.kind == "ask/finish"

    def tidy(self) -> None:
        """Delete the requests that were answered.

        Raises:
            MailboxError: the server does not answer.
        """
        for key in tuple(self.answered):
            self._requests.delete(key)
            self.answered.discard(key)

    def clear(self) -> None:
        """Delete the long messages that were put on the exchange."""
        while self._parcels:
            self.exchange.delete(self.name, self._parcels.pop())

    def end(self, states: dict[UUID, StateType] | None) -> State[None] | None:
        """The state to end in, if it is time to end; ``states`` are those of the runs, where they were looked at."""
        if self.finished:
            return Completed(message="The training is finished; its secrets are erased.")
        if self.withdrawn:
            return Cancelled(message="The site has withdrawn from this training.")
        if states and states.get(self.run) in (StateType.CANCELLING, StateType.CANCELLED):
            self.withdraw()
            return Cancelled(message="This participation was cancelled: the site has withdrawn from the training.")
        if self.over(states):
            return Completed(message="The training has ended.")
        if states and states.get(self.run) in ENDED:  # by a coordinator that has found this site's worker offline
            return Completed(message="This participation was ended; the coordinator starts another.")
        if states is not None and not {self.run, self.training_run} <= set(states):
            return Completed(message="This run, or the training's, is not there.")
        if time.monotonic() - self.asked > self.lease_s:
            return Completed(message=f"No request for {self.lease_s:g} s: the lease is over.")
        return None

    def over(self, states: dict[UUID, StateType] | None) -> bool:
        """Whether the training's run is known to have ended."""
        return states is not None and states.get(self.training_run) in ENDED

    @property
    def withdrawn(self) -> bool:
        """Whether the site takes no further part in the training."""
        return self.site.vault.withdrawn(self.training)

    def withdraw(self) -> None:
        """Keep in the vault that this site takes no further part in the training."""
        vault = self.site.vault
        try:
            vault.decide(Decision(self.training, vault.agreed(self.training) or "", "", "revoked"))
            self.site.record.append("withdrawn", training=self.training, by="whoever cancelled the participation")
        except sqlite3.Error as error:
            self.log.error("withdrawn, but that cannot be kept (%s): use fedseal site revoke", error)

    def leave(self, over: bool) -> None:
        """Delete what was sent and what nobody takes any more; the answers too, where the training is ``over``.

        Where the site has withdrawn, everything goes that it holds of the training; else its secrets stay for a while,
        and its work while another participation of the site is in the training: whoever writes to the server may have
        had a second one started, and ended it.
        """
        try:
            if self.withdrawn:
                self.site.leave(self.training)
            elif self._hold.last():
                self.site.rest(self.training)
            self.clear()
            self._requests.clear("ask-")
            if over:
                self._answers.clear(answer_key(self.name, "ask-"))
        except (OSError, sqlite3.Error) as error:
            self.log.warning("something of this training is left behind: %s", error)
        finally:
            self._hold.close()

    def states(self) -> dict[UUID, StateType]:
        """The states of this run and of the training's.

        Raises:
            MailboxError: the server does not answer.
        """
        return run_states(self.client, [self.run, self.training_run])


def run_states(client: SyncPrefectClient, runs: list[UUID]) -> dict[UUID, StateType]:
    """The state types of flow runs, in one request.

    Raises:
        MailboxError: the server does not answer.
    """
    try:
        found = client.read_flow_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=runs)))
    except (PrefectHTTPStatusError, httpx.HTTPError) as error:
        raise unreachable(error) from None
    return {run.id: run.state.type for run in found if run.state is not None}


_seat: list[Seat] = []


@flow(name=PARTICIPATE, persist_result=False)
def participate(training: str, training_run: UUID) -> State[None]:
    """Take part in a training until it ends, the site withdraws, or nothing is asked for the time of the lease."""
    (seat,) = _seat
    return attend(seat, handle=lambda key: answer.submit(seat.taken[key].kind.removeprefix("ask/"), key))


@task(task_run_name="{step}", cache_policy=NO_CACHE, persist_result=False)
def answer(step: str, key: str) -> None:
    """Answer one request; what goes wrong on the way is in the site's log, and the request is taken again."""
    (seat,) = _seat
    try:
        seat.handle(key)
    except OSError as error:  # the server's, or the exchange's
        seat.log.warning("%s: the answer waits: %s", step, error)
    finally:
        seat.taken.pop(key)


def attend(seat: Seat, *, handle: Callable[[str], PrefectFuture[None]]) -> State[None]:
    """Look into the mailbox, often while there are requests and seldom while not, until it is time to end."""
    pause_s, looked, running = BUSY_S, 0.0, dict[str, PrefectFuture[None]]()
    states: dict[UUID, StateType] | None = None
    away, lost = pauses(1.0, LONGEST_PAUSE_S), None
    while True:
        new: list[str] = []
        try:
            new = seat.take()
            running = {key: future for key, future in running.items() if key in seat.taken}
            if time.monotonic() - looked > (STATE_S if new or running else IDLE_STATE_S):
                states, looked = seat.states(), time.monotonic()
            pause_s, away = BUSY_S if new else min(pause_s * GROWTH, IDLE_S), pauses(1.0, LONGEST_PAUSE_S)
            if pause_s > TIDY_S or len(seat.answered) > MOST_ANSWERED:
                seat.tidy()
            if lost is not None:
                seat.log.warning("the Prefect server answers again, after %.0f s", time.monotonic() - lost)
                lost = None
        except MailboxError as error:
            pause_s, lost = next(away), lost or time.monotonic()
            seat.log.warning("%s; looking again in %.0f s", error.reason, pause_s)
            with suppress(MailboxError):  # what was answered must not be what makes every look fail
                seat.tidy()
        if (ended := seat.end(states)) is not None:
            break
        running |= {key: handle(key) for key in new}
        time.sleep(pause_s)
    seat.site.stop_work(seat.training)
    for future in running.values():
        future.wait()
    seat.leave(seat.over(states))
    return ended


def seated(seat: Seat) -> None:
    """Make the seat known to the flow of this process."""
    _seat[:] = [seat]
