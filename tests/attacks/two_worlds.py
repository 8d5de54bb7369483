"""One site, one hostile script, two unrelated data sets: it must let out the same bytes before a masked vector.

``play`` drives a whole site (participation, handlers, vault, exchange) by a random script of a coordinator that does
not keep to the protocol. Everything that the site draws from the operating system comes from a tape here, so that two
plays of one script differ by what depends on the data, and by nothing else. Local work draws from a tape of its own:
how often it draws is nobody's business. The mailbox is a fake one, in memory, which records every call.
"""

import logging
import os
import random
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from types import FunctionType
from typing import Any
from uuid import UUID

import numpy as np
from torch import nn

from flows import participation
from flows.data_sets import DataSet
from flows.exchange import Exchange
from flows.mailbox import request_key, unpack
from flows.messages import AskFinish, AskJoin, AskWork, join_context
from flows.model import GlobalModel, shelf
from flows.participation import Seat
from flows.plan import Plan, make_plan
from flows.policy import Policy
from flows.privacy import shares_of
from flows.site import Site
from flows.tables import segments_of
from ml_tasks.layout import Sizes
from ml_tasks.tabular import Standardisation
from ml_tasks.task import DataError, Examples, Feature, SiteData, Task
from protocols import secagg_site
from protocols.contexts import AttemptContext, Purpose, sha256
from protocols.history import NO_HISTORY
from protocols.keys import Consortium, Identity
from protocols.masks import keystream
from protocols.messages import (
    COORDINATOR,
    AskAdvertise,
    AskConfirm,
    AskMask,
    AskReveal,
    AskShare,
    Envelope,
    envelope,
)
from protocols.vault import Vault

ME, PEERS = "ann", ("bob", "cat", "dan")
BIG = float(np.finfo(np.float32).max)
KEYS = {name: Identity(name, bytes([number]) * 32) for number, name in enumerate((ME, *PEERS, COORDINATOR), start=1)}
CONSORTIUM = Consortium(KEYS[COORDINATOR].public, {name: KEYS[name].public for name in (ME, *PEERS)})
RUNS = UUID(int=1), UUID(int=2)


def numbers(seed: int, rows: int) -> SiteData:
    """Examples that have nothing to do with those of another seed."""
    drawn = np.random.default_rng(seed)
    features = drawn.uniform(-4, 4, (rows, 2)).astype(np.float32)
    targets = (drawn.random(rows) < drawn.random()).astype(np.float32)
    tenth = max(1, rows // 10)
    return SiteData(Examples(features[tenth:], targets[tenth:]), Examples(features[:tenth], targets[:tenth]))


def spoilt(value: float) -> SiteData:
    """Examples of which one holds a value that nothing can be computed with."""
    data = numbers(3, 20)
    data.train.features[5, 0] = value
    return data


def missing() -> SiteData:
    """No data set at all."""
    raise DataError("/srv/patients/heart.csv: line 4711 has 3 columns")


def crashing() -> SiteData:
    """A loader with a fault of its own, and a record in its text."""
    raise RuntimeError("PATIENT-4711")


def strange() -> SiteData:
    """Columns and targets that the task does not have."""
    return SiteData(
        Examples(np.ones((7, 3), np.float32), np.full(7, 2.5, np.float32)),
        Examples(np.ones((0, 3), np.float32), np.ones(0, np.float32)),
    )


WORLDS: dict[str, Callable[[], SiteData]] = {
    "one": lambda: numbers(1, 40),
    "other": lambda: numbers(2, 333),
    "one row": lambda: numbers(4, 2),
    "nan": lambda: spoilt(float("nan")),
    "infinite": lambda: spoilt(float("inf")),
    "none": missing,
    "broken": crashing,
    "strange": strange,
    "a million rows": lambda: numbers(5, 10**6),
}
_world: list[str] = ["one"]


class Chameleon(Task):
    """A task whose data are those of the world that is played."""

    title, provenance, needs_data = "Chameleon", "Synthetic.", False
    features = (Feature("first", -4.0, 4.0), Feature("second", -4.0, 4.0))

    def load(self, folder: Path | None, site: str) -> SiteData:
        return WORLDS[_world[0]]()

    def model(self) -> nn.Module:
        return nn.Linear(2, 1)


@dataclass
class Tape:
    """Random bytes that are the same in every play; the local work's threads have one of their own."""

    seed: bytes
    _main: Callable[[int], bytes] = field(init=False)

    def __post_init__(self) -> None:
        self._main = keystream(self.seed)

    def __call__(self, length: int) -> bytes:
        if threading.current_thread() is threading.main_thread():
            return self._main(length)
        return os.urandom(length)


@contextmanager
def taped(seed: bytes) -> Iterator[None]:
    """Have every function of the product that draws from the operating system draw from a tape."""
    tape, undo = Tape(seed), list[Callable[[], None]]()
    for name, module in list(sys.modules.items()):
        if not name.startswith(("protocols.", "flows.")):
            continue
        for key, value in list(vars(module).items()):
            if value is os.urandom:
                undo.append(lambda module=module, key=key: setattr(module, key, os.urandom))
                setattr(module, key, tape)
            for function in [value, *vars(value).values()] if isinstance(value, type) else [value]:
                if isinstance(function, FunctionType) and os.urandom in (function.__defaults__ or ()):
                    kept = function.__defaults__
                    undo.append(lambda function=function, kept=kept: setattr(function, "__defaults__", kept))
                    function.__defaults__ = tuple(tape if one is os.urandom else one for one in kept or ())
    try:
        yield
    finally:
        for take_back in undo:
            take_back()


class FakeMailbox:
    """A mailbox in memory, which tells the recorder of each call that another party could see."""

    boxes: dict[UUID, dict[str, str]]
    record: Callable[[str, str], None]

    def __init__(self, client: Any, run: UUID) -> None:
        self._box, self._run, self._record = client.boxes[run], run, client.record

    def put(self, key: str, text: str) -> None:
        self._record(f"put {self._run.int} {key}", text)
        self._box[key] = text

    def take(self, prefix: str, known: Any = ()) -> dict[str, str]:
        return {key: text for key, text in self._box.items() if key.startswith(prefix) and key not in known}

    def delete(self, key: str) -> None:
        self._record("delete", key)
        self._box.pop(key, None)

    def clear(self, prefix: str) -> None:
        for key in [key for key in self._box if key.startswith(prefix)]:
            self.delete(key)


class World:
    """A site with one data set, and what it has let out so far.

    Args:
        folder: empty.
        plan: the one that the coordinator uses most.
        world: which data the site has.
    """

    def __init__(self, folder: Path, plan: Plan, world: str) -> None:
        self.plan, self.world = plan, world
        self.out: list[tuple[str, str]] = []
        self.boxes: dict[UUID, dict[str, str]] = {run: {} for run in RUNS}
        self.masked = False
        self.vault = Vault(folder / "vault")
        self.vault.keep_identity(KEYS[ME])
        self.exchange = Exchange(f"file://{folder}/exchange", patience_s=0)
        self._folder = folder / "exchange"
        policy = Policy(tasks=[plan.task], max_train_s=30.0)
        site = Site(self.vault, CONSORTIUM, self.exchange, {"play": DataSet()}, policy, only="play")
        site.advert_s = 0.0  # requests are answered one at a time here: none that comes later can be waited for
        self.seat = Seat(site, "play", self, RUNS[0], RUNS[1], self.exchange, 3600.0)  # type: ignore[arg-type]
        self.adverts: dict[str, tuple[AttemptContext, Envelope]] = {}
        self.dealt: dict[str, tuple[str, tuple[Envelope, ...]]] = {}

    def record(self, what: str, text: str) -> None:
        """Note what somebody outside sees."""
        self.out.append((what, text))

    def send(self, request: Envelope) -> tuple[Envelope, ...]:
        """Put a request into the site's mailbox and have it answered; everything that can be seen is recorded."""
        key = request_key(request)
        self.boxes[RUNS[0]][key] = f"[{request.to_json()}]"
        said: tuple[Envelope, ...] = ()
        for taken in self.seat.take():
            before = len(self.out)
            self.seat.handle(taken)
            self.seat.taken.pop(taken, None)
            for number, (what, text) in enumerate(self.out[before:], start=before):
                if what.startswith("put"):
                    said = unpack(text, self.exchange, ME)
                    if said[0].kind == "masked":
                        self.masked = True
                        self.out[number] = (what, f"masked, {len(text)} characters")
        self.seat.tidy()
        if not self.masked:
            for path in sorted(self._folder.rglob("*")):
                if path.is_file() and COORDINATOR not in str(path):
                    self.record("object", f"{path.relative_to(self._folder)} {path.read_bytes().hex()}")
        return said

    def close(self) -> None:
        """Close the vault, and let the training go."""
        self.seat._hold.close()
        self.vault.close()


@dataclass(frozen=True)
class Move:
    """One request of a script: which step, and the numbers that choose its contents."""

    step: str
    purpose: Purpose
    round: int
    attempt: int
    model: int
    plan: int
    twist: int


STEPS = (
    *("join",) * 3,
    *("advertise",) * 4,
    *("moments", "train", "evaluate") * 3,
    *("share",) * 3,
    *("mask",) * 3,
    *("confirm", "reveal", "submit", "finish", "again", "garbage"),
)
PURPOSES: tuple[Purpose, ...] = ("training", "training", "training", "statistics", "evaluation")


def script(seed: int) -> list[Move]:
    """A hostile coordinator's moves: most of them in an order that gets somewhere, and any others in between."""
    drawn = random.Random(seed)
    moves = [Move("join", "training", 1, 1, 0, 0, 0)]
    for _ in range(drawn.randint(2, 4)):
        purpose = drawn.choice(PURPOSES)
        number = {"statistics": 0, "training": drawn.randint(1, 2), "evaluation": 3}[purpose]
        attempt, model = drawn.randint(1, 2), drawn.choice((0, 0, 0, *range(len(MODELS))))
        works = {"statistics": ["moments"], "training": ["train", "evaluate"], "evaluation": ["evaluate"]}[purpose]
        for step in ["advertise", *works, "share", "mask"]:
            if drawn.random() < 0.2:
                moves.append(any_move(drawn))
            if drawn.random() < 0.92:
                moves.append(Move(step, purpose, number, attempt, model, 0, 0))
    return moves


def any_move(drawn: random.Random) -> Move:
    """Any move."""
    return Move(
        drawn.choice(STEPS),
        drawn.choice(PURPOSES),
        drawn.randint(0, 3),
        drawn.randint(1, 4),
        drawn.randrange(len(MODELS)),
        drawn.randrange(6),
        drawn.randrange(4),
    )


def _model(vector: list[float], mean: float = 0.0, scale: float = 1.0) -> bytes:
    scaling = Standardisation(np.full(2, mean, np.float32), np.full(2, scale, np.float32))
    return GlobalModel(np.array(vector, np.float32), scaling).to_bytes()


MODELS = (
    _model([0.1, -0.2, 0.3]),
    _model([BIG / 4096, 0.0, -BIG / 4096]),
    _model([9e8, -9e8, 1.0]),
    _model([float("nan"), 0.0, 0.0]),
    _model([2.0**20, -(2.0**20), 0.0], mean=1e6),
    _model([1.0, 1.0, 1.0], scale=1e-30),
    GlobalModel(np.zeros(3, np.float32)).to_bytes(),
    b"no model",
)


NOISE = {"epsilon": 90.0, "clip": 1.0, "training_noise": 5.0, "statistics_noise": 5.0, "metrics_noise": 5.0}
"""Named, so that no plan need be calibrated."""


@cache
def plan_of(privacy: str) -> Plan:
    """The plan of a play, with privacy for nobody, for records or for sites."""
    rules: dict[str, dict[str, object]] = {
        "none": {},
        "record": NOISE | {"sampling_rate": 0.5, "expected_batch": 10.0},
        "site": NOISE | {"sampling_rate": 1.0, "least_weight": 0.1, "statistics": "bounds"},
    }
    raw = {
        "name": "play",
        "task": "tests.attacks.two_worlds:Chameleon",
        "data": "play",
        "sites": [ME, *PEERS],
        "rounds": 2,
        "max_attempts": 2,
        "local": {"steps": 1, "batch_size": 4},
        "deadlines": {"train_s": 20},
        "protection": {"max_examples": 100, "update": {"bits": 64}},
        "privacy": {"unit": privacy, **rules[privacy]} if privacy != "none" else {},
    }
    return make_plan(raw, source="play")


def other_plan(plan: Plan, number: int) -> Plan:
    """Plans that ask a site something about its data, if it answered."""
    rules = plan.protection
    return (
        plan,
        plan.model_copy(update={"protection": rules.model_copy(update={"max_examples": 1})}),
        plan.model_copy(update={"protection": rules.model_copy(update={"max_examples": 39})}),
        plan.model_copy(update={"data": "else"}),
        plan.model_copy(update={"rounds": 3}),
        plan.model_copy(update={"deadlines": plan.deadlines.model_copy(update={"train_s": 31.0})}),
    )[number]


class Coordinator:
    """Plays a script's moves against a world; what it remembers is what the site has told it."""

    def __init__(self, world: World) -> None:
        self.world, self.last = world, None

    def context(self, move: Move) -> AttemptContext:
        """The attempt context of a move, on whatever model the move has."""
        plan = self.world.plan
        table = segments_of(plan, move.purpose, Sizes(weights=3, tensors=2, features=2))
        rules = plan.protection
        return AttemptContext(
            purpose=move.purpose,
            training="play",
            round=move.round,
            attempt=move.attempt,
            plan=plan.digest,
            sites=dict(CONSORTIUM.sites),
            threshold=rules.threshold,
            colluding=rules.colluding,
            model=self.world.exchange.put(shelf("play"), MODELS[move.model]),
            segments=table,
            noise=shares_of(plan, move.purpose, table),
        )

    def play(self, move: Move) -> None:
        """Send a move's request, if it has one."""
        request = self.request(move)
        if request is None:
            return
        answer = self.world.send(request)
        self.last = request
        if answer and answer[0].kind == "advert":
            self.world.adverts[request.context] = (self.context(move), answer[0])
        if answer and answer[0].kind == "share":
            mine = next(message for message in answer if message.receiver == ME)
            self.world.dealt[self.asked_for] = (answer[0].context, (*self.peers_shares, mine))

    def request(self, move: Move) -> Envelope | None:
        """The request of a move."""
        context = self.context(move)
        match move.step:
            case "join":
                plan = other_plan(self.world.plan, move.plan)
                return self.signed("join", join_context("play", plan.digest), AskJoin("play", plan.to_json()))
            case "finish":
                return self.signed("finish", join_context("play", self.world.plan.digest), AskFinish("play"))
            case "advertise":
                return self.signed("advertise", context.digest, AskAdvertise(context))
            case "train" | "evaluate" | "moments" | "submit":
                return self.signed(move.step, context.digest, AskWork(context))
            case "share":
                return self.share(context)
            case "mask":
                if context.digest not in self.world.dealt:
                    return self.signed("mask", context.digest, AskMask(()))
                digest, inbox = self.world.dealt[context.digest]
                return self.signed("mask", digest, AskMask(inbox))
            case "confirm":
                return self.signed("confirm", context.digest, AskConfirm((ME, *PEERS)))
            case "reveal":
                return self.signed("reveal", context.digest, AskReveal(()))
            case "again":
                return self.last
            case _:
                request = self.signed("train", context.digest, AskWork(context))
                return replace(request, signature="0" * 128)

    def share(self, context: AttemptContext) -> Envelope:
        """Ask for shares, with the peers' adverts, and have the peers deal too."""
        if context.digest not in self.world.adverts:
            return self.signed("share", context.digest, AskShare(()))
        advertised = {
            peer: secagg_site.advertise(KEYS[peer], CONSORTIUM, context, NO_HISTORY, entropy_of(peer)) for peer in PEERS
        }
        adverts = (self.world.adverts[context.digest][1], *(advert for _, advert in advertised.values()))
        ask = AskShare(adverts)
        self.peers_shares: tuple[Envelope, ...] = ()
        for peer, (state, _) in advertised.items():
            _, dealt = secagg_site.share(KEYS[peer], state, ask, entropy_of(peer))
            self.peers_shares += tuple(message for message in dealt if message.receiver == ME)
        self.asked_for = context.digest
        return self.signed("share", context.digest, ask)

    @staticmethod
    def signed(step: str, context: str, body: object) -> Envelope:
        """A request of the coordinator's."""
        return envelope(KEYS[COORDINATOR], f"ask/{step}", context, ME, body)


def entropy_of(peer: str) -> Callable[[int], bytes]:
    """A peer's own randomness, which is the same in every play."""
    return keystream(bytes.fromhex(sha256("peer", peer)))


def play(seed: int, privacy: str, world: str) -> list[tuple[str, str]]:
    """Play a script against a site with a world's data; returns what it let out before a masked vector."""
    folder = Path(tempfile.mkdtemp(prefix="fedseal-worlds-"))
    before, participation.Mailbox = participation.Mailbox, FakeMailbox  # type: ignore[misc, assignment]
    _world[:] = [world]
    made, log = None, logging.getLogger(f"fedseal.site.{ME}")
    log.disabled = True  # it holds what a task has raised, for the site alone
    try:
        with taped(bytes.fromhex(sha256("tape", str(seed)))):
            made = World(folder, plan_of(privacy), world)
            coordinator = Coordinator(made)
            for move in script(seed):
                coordinator.play(move)
                if made.masked:
                    break
            return made.out
    finally:
        if made is not None:
            made.close()
        participation.Mailbox = before  # type: ignore[misc]
        log.disabled = False
        shutil.rmtree(folder)


def difference(seed: int, privacy: str, worlds: tuple[str, str]) -> str:
    """What two plays of one script show of the data: the first thing that differs, or an empty text."""
    one, other = (play(seed, privacy, world) for world in worlds)
    for number, (left, right) in enumerate(zip(one, other, strict=False)):
        if left != right:
            return f"script {seed}, {privacy}, {worlds}: thing {number}: {left[0]}: {left[1][:400]} | {right[1][:400]}"
    return "" if len(one) == len(other) else f"script {seed}, {privacy}, {worlds}: {len(one)} things, or {len(other)}"
