"""The coordinator played by hand, with its true key, over a real Prefect server, exchange and sites; and its attacker.

A test brings a round to any step, does its evil there, and goes on. The attacker can write everywhere that parties
meet, has read all that passed there, and has keys of its own: not the coordinator's, and no site's.
"""

import hashlib
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
from numpy.typing import NDArray
from prefect import flow
from prefect.states import Running

from flows.mailbox import Mailbox, answer_key, pack, request_key, unpack
from flows.messages import AskJoin, AskWork, join_context
from flows.model import GlobalModel, shelf
from flows.plan import Plan
from flows.policy import load_task
from flows.settings import PARTICIPATE, CoordinatorFolder, marked
from flows.tables import FAILED, count_values, rounding_key, segments_of, training_seed, training_values
from ml_tasks import training
from ml_tasks.training import LocalTraining, describe
from protocols import secagg_coordinator as coordinator
from protocols.contexts import AttemptContext
from protocols.encoding import encode, integers
from protocols.keys import Identity, verify
from protocols.messages import (
    COORDINATOR,
    AskAdvertise,
    AskConfirm,
    AskMask,
    AskReveal,
    AskShare,
    Envelope,
    Refusal,
    check_answers,
    envelope,
    parse,
)
from protocols.secagg_coordinator import Dealings, Roster
from tests.processes.harness import Consortium, eventually, programs

SITES = ("north", "east", "south", "west")
PARAMETERS = 3
"""The length of Tiny's model vector."""
SOON_S = 30.0

Answer = tuple[Envelope, ...]


@flow(name="place")
def place() -> None:
    """A flow run that nobody runs: a place for messages."""


@dataclass
class Attacker:
    """Whoever can write to the Prefect API and the exchange."""

    home: Consortium
    seen: list[Envelope] = field(default_factory=list)
    key: Identity = field(default_factory=lambda: Identity.generate(COORDINATOR))

    @property
    def exchange(self) -> Path:
        """The folder of the exchange."""
        return self.home.home.folder / "exchange"

    def post(self, run: UUID, key: str, text: str) -> None:
        """Put any text under any key into any run's inputs."""
        self.home.post(run, key, text)

    def send(self, run: UUID, request: Envelope) -> str:
        """Put an envelope where a site looks for requests; gives its key."""
        key = request_key(request)
        self.post(run, key, f"[{request.to_json()}]")
        return key

    def plant(self, owner: str, name: str, content: bytes) -> Path:
        """Put any bytes on the exchange, under any name."""
        path = self.exchange / owner / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
        return path


@dataclass
class Hand:
    """A training whose coordinator is played by hand.

    Attributes:
        home: the consortium.
        plan: what its sites are asked to agree to.
        training: its name.
        run: its flow run, where answers go.
        boxes: the mailbox of each site that takes part.
    """

    home: Consortium
    attacker: Attacker
    plan: Plan
    training: str
    run: UUID
    boxes: dict[str, Mailbox] = field(default_factory=dict)
    number: int = 0

    @classmethod
    def begin(cls, home: Consortium, attacker: Attacker, name: str, sites: Iterable[str] = SITES) -> "Hand":
        """Start a training, with the participations of ``sites``; nobody has joined yet."""
        run = home.client.create_flow_run(place, state=Running()).id
        hand = cls(home, attacker, home.plan(rounds=1000, name=name), f"{name}-{run.hex[:12]}", run)
        for site in sites:
            hand.participate(site)
        return hand

    def __post_init__(self) -> None:
        folder = CoordinatorFolder.read(self.home.home.coordinator)
        vault = folder.open_vault()
        self.identity, self.consortium, self.exchange = vault.identity, folder.consortium, folder.open_exchange()
        vault.close()

    def participate(self, site: str, number: int = 1, training_run: UUID | None = None) -> UUID:
        """Start a site's participation, with its answers going to ``training_run`` if that is another."""
        deployment = self.home.client.read_deployment_by_name(f"{PARTICIPATE}/{marked(site, self.home.key)}")
        run = self.home.client.create_flow_run_from_deployment(
            deployment.id,
            name=f"{self.training}-{site}-{number}",
            parameters={"training": self.training, "training_run": str(training_run or self.run)},
        ).id
        self.boxes[site] = self.box(run)
        return run

    def box(self, run: UUID) -> Mailbox:
        """A run's inputs."""
        return Mailbox(self.home.client, run)

    @property
    def answers(self) -> Mailbox:
        """Where the sites' answers come."""
        return self.box(self.run)

    def request(self, site: str, step: str, context: str, body: object) -> Envelope:
        """Sign a request."""
        return envelope(self.identity, f"ask/{step}", context, site, body)

    def joining(self, site: str, plan: Plan | None = None, training: str | None = None) -> Envelope:
        """The request to join."""
        plan, training = plan or self.plan, training or self.training
        return self.request(site, "join", join_context(training, plan.digest), AskJoin(training, plan.to_json()))

    def send(self, request: Envelope) -> Envelope:
        """Post a request to the site that it is for."""
        text, _ = pack((request,), self.exchange, COORDINATOR)
        self.boxes[request.receiver].put(request_key(request), text)
        self.attacker.seen.append(request)
        return request

    def heard(self, request: Envelope, site: str | None = None, timeout_s: float = SOON_S) -> Answer:
        """Wait for a site's answer to a request, check that the site has signed it, and take it away."""
        site = site or request.receiver
        key = answer_key(site, request_key(request))
        text = eventually(lambda: self.answers.take(key).get(key), timeout_s, 0.05)
        answer = unpack(text, self.exchange, site)
        for message in answer:
            verify(self.consortium.sites[site], message.signed_bytes, bytes.fromhex(message.signature))
        check_answers(answer, request)
        self.answers.delete(key)
        self.attacker.seen += answer
        return answer

    def ask(self, site: str, step: str, context: str, body: object) -> Answer:
        """Ask one site."""
        return self.heard(self.send(self.request(site, step, context, body)))

    def ask_again(self, request: Envelope) -> Answer:
        """Send a request that may have been answered before, and be lying there still."""
        gone(self.boxes[request.receiver], request_key(request))
        return self.heard(self.send(request))

    def process(self, site: str) -> int:
        """The process of a site's participation; 0 where it has none."""
        found = programs(self.home.home.processes[site].pid)
        known = self.home.client.read_flow_run(self.boxes[site].run).infrastructure_pid
        return next((one for one in found if str(one) == known), 0)

    def ask_all(
        self, step: str, context: str, body: Callable[[str], object], sites: Iterable[str]
    ) -> dict[str, Answer]:
        """Ask several sites at once."""
        asked = {site: self.send(self.request(site, step, context, body(site))) for site in sites}
        return {site: self.heard(request) for site, request in asked.items()}

    def join(self) -> "Hand":
        """Have every site join that takes part."""
        asked = [self.send(self.joining(site)) for site in self.boxes]
        assert [self.heard(request, timeout_s=120)[0].kind for request in asked] == ["joined"] * len(asked)
        return self

    def state(self, run: UUID) -> object:
        """The type of a run's state."""
        found = self.home.client.read_flow_run(run).state
        return found.type if found else None

    def context(self, attempt: int = 1, **fields: Any) -> AttemptContext:
        """The attempt context of this round; ``fields`` override."""
        vector = np.full(PARAMETERS, self.number / 1000, np.float32)
        rules = self.plan.protection
        honest = AttemptContext(
            purpose="training",
            training=self.training,
            round=self.number,
            attempt=attempt,
            plan=self.plan.digest,
            sites={site: self.consortium.sites[site] for site in self.plan.sites},
            threshold=rules.threshold,
            colluding=rules.colluding,
            model=self.exchange.put(shelf(self.training), GlobalModel(vector).to_bytes()),
            segments=segments_of(self.plan, "training", describe(load_task(self.plan.task)).sizes),
            noise={},
        )
        return replace(honest, **fields)

    def round(self) -> "Round":
        """Begin the next round: nobody has been asked yet."""
        self.number += 1
        return Round(self, self.context())


@dataclass
class Round:
    """One attempt at a secure sum, step by step; each step does what must be done before it."""

    hand: Hand
    context: AttemptContext
    _roster: Roster | None = None
    _dealings: Dealings | None = None
    _vectors: dict[str, NDArray[np.uint8]] = field(default_factory=dict)
    _confirmations: dict[str, Envelope] = field(default_factory=dict)

    def advertised(self) -> Roster:
        """Have every site advertise, and then do its local work."""
        if self._roster is None:
            sites, context = self.hand.boxes, self.context
            answers: dict[str, list[Envelope]] = {}
            for steps, body in ((("advertise",), AskAdvertise(context)), (("train", "evaluate"), AskWork(context))):
                asked = {
                    step: [self.hand.send(self.hand.request(site, step, context.digest, body)) for site in sites]
                    for step in steps
                }
                for step, requests in asked.items():
                    answers[step] = [self.hand.heard(request)[0] for request in requests]
            self._roster = coordinator.open_roster(context, answers["advertise"])
        return self._roster

    def shared(self) -> Dealings:
        """Have every site share."""
        if self._dealings is None:
            roster = self.advertised()
            body = AskShare(roster.envelopes)
            dealt = self.hand.ask_all("share", self.context.digest, lambda site: body, roster.sites)
            self._dealings = coordinator.inboxes(roster, dealt)
        return self._dealings

    def masking(self, site: str) -> Envelope:
        """The request for a site's masked vector."""
        dealings = self.shared()
        return self.hand.request(site, "mask", dealings.roster.round, AskMask(dealings.inbox(site)))

    def masked(self, sites: Iterable[str] = SITES) -> tuple[str, ...]:
        """Have sites mask, once; gives the survivors."""
        if not self._vectors:
            asked = [self.hand.send(self.masking(site)) for site in sites]
            for request in asked:
                (message,) = self.hand.heard(request)
                said = coordinator.check_masked(self.shared(), request.receiver, message)
                content = self.hand.exchange.get(request.receiver, said.vector, size=said.size)
                self._vectors[request.receiver] = np.frombuffer(content, np.uint8)
        return tuple(sorted(self._vectors))

    def vector(self, site: str) -> str:
        """The name of a site's masked vector on the exchange."""
        return hashlib.sha256(self._vectors[site]).hexdigest()

    def confirmed(self) -> dict[str, Envelope]:
        """Have the survivors confirm."""
        if not self._confirmations:
            survivors = self.masked()
            body = AskConfirm(survivors)
            said = self.hand.ask_all("confirm", self.shared().roster.round, lambda site: body, survivors)
            self._confirmations = {site: answer[0] for site, answer in said.items()}
        return self._confirmations

    def revealing(self, site: str) -> Envelope:
        """The request for a site's shares."""
        body = AskReveal(tuple(self.confirmed().values()))
        return self.hand.request(site, "reveal", self.shared().roster.round, body)

    def total(self) -> dict[str, list[int]]:
        """Have the survivors reveal; gives the sum."""
        asked = [self.hand.send(self.revealing(site)) for site in self.masked()]
        reveals = [self.hand.heard(request)[0] for request in asked]
        recovered = coordinator.recover_masks(self.shared(), self.masked(), reveals)
        assert recovered.faults == ()
        total = coordinator.sum_vectors(self.context, self._vectors.values())
        coordinator.unmask(total, self.context, recovered)
        return {name: [int(one) for one in values] for name, values in integers(total, self.context.segments).items()}

    def honest(self) -> dict[str, list[int]]:
        """What the survivors' own integers come to, computed without any masking."""
        plan, task = self.hand.plan, load_task(self.hand.plan.task)
        model = GlobalModel.from_bytes(
            self.hand.exchange.get(shelf(self.context.training), self.context.model, size=10_000),
            parameters=PARAMETERS,
            features=2,
        )
        encoded = []
        for site in self.masked():
            data = task.load(None, site)
            settings, seed = LocalTraining(**plan.local.model_dump()), training_seed(plan, site, self.context.round)
            update = training.train(task, data.train, model.vector, None, settings, seed)
            values = training_values(plan, len(data.train), update, describe(task))
            values |= count_values(training.evaluate(task, data.monitored[1], model.vector, None))
            values[FAILED] = np.zeros(1)
            key = rounding_key(plan, site, self.context.round)
            encoded.append(encode(site, values, self.context.segments, key))
        total = coordinator.sum_vectors(self.context, encoded)
        return {name: [int(one) for one in values] for name, values in integers(total, self.context.segments).items()}

    def assert_honest(self) -> None:
        """Finish the round; its sum must be the honest one, bit for bit."""
        assert self.total() == self.honest()


def refusal(answer: Answer) -> str:
    """The reason of a refusal."""
    (message,) = answer
    assert message.kind == "refusal", message.kind
    return parse(Refusal, message.body, party="site", step="refusal").reason


def forged(message: Envelope, **fields: str) -> Envelope:
    """The same message with other fields, and the signature that it had."""
    return replace(message, **fields)


def signed_by(key: Identity, message: Envelope, **fields: str) -> Envelope:
    """The same message with other fields, signed by a key that is not its sender's."""
    changed = replace(message, **fields)
    return replace(changed, signature=key.sign(changed.signed_bytes).hex())


@dataclass
class Watch:
    """A site, watched from now on: what its log says, and whether its journal stays as it is."""

    home: Consortium
    site: str

    def __post_init__(self) -> None:
        self._log = self.home.home.site(self.site) / "site.log"
        self._began = self._log.stat().st_size if self._log.exists() else 0

    @property
    def log(self) -> str:
        """What the site's log has said since."""
        if not self._log.exists():
            return ""
        with self._log.open() as log:
            log.seek(self._began)
            return log.read()

    def tells(self, line: str) -> None:
        """Wait until the site's log has said ``line``."""
        eventually(lambda: line in self.log, 10, 0.05)

    def journal(self) -> list[tuple[str, ...]]:
        """What the site has answered: of which context, which step, to which request, with which digest."""
        path = self.home.home.site(self.site) / "vault" / "vault.sqlite"
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db:
            query = "SELECT attempt_context, step, request, answer_digest FROM journal ORDER BY 1, 2"
            return db.execute(query).fetchall()


@contextmanager
def unmoved(home: Consortium, site: str) -> Iterator[Watch]:
    """Within the block the site answers no step of any round, and meets nothing that nobody has foreseen."""
    watch = Watch(home, site)
    before = watch.journal()
    yield watch
    assert watch.journal() == before
    assert "Traceback" not in watch.log


def gone(box: Mailbox, key: str, timeout_s: float = SOON_S) -> None:
    """Wait until an input is gone."""
    eventually(lambda: key not in keys(box), timeout_s, 0.05)


def keys(box: Mailbox) -> list[str]:
    """The keys of the inputs of a run, the newest last."""
    asked = {"prefix": "", "limit": 200, "exclude_keys": []}
    found = box.client._client.post(f"/flow_runs/{box.run}/input/filter", json=asked, timeout=120).json()
    return [one["key"] for one in found]


def memory(pid: int | None = None) -> int:
    """The most bytes of memory that a process, or this one, has ever held."""
    status = Path(f"/proc/{pid or 'self'}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024
