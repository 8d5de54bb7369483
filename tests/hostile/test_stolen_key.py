"""Whoever has the coordinator's own key: the sites still say no, run nothing but their tasks, and give one sum a round.

Every request here is signed as it must be. What a coordinator may do all the same is in SECURITY.md.
"""

import json
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

from flows.messages import AskJoin, AskWork, join_context
from flows.model import GlobalModel, shelf
from flows.plan import plan_digest
from protocols.contexts import sha256
from protocols.encoding import Segment
from protocols.messages import AskAdvertise, Envelope
from tests.flows.consortium import plan_for, trial
from tests.flows.test_site import advertise, join, send
from tests.flows.test_site import refusal as local_refusal
from tests.hostile.hand import PARAMETERS, Hand, Round, refusal, signed_by, unmoved
from tests.processes.harness import Consortium

pytestmark = pytest.mark.slow

UNUSABLE = "plan or task cannot be used here; the site's log says why"


def sign(hand: Hand, request: Envelope, **fields: str) -> Envelope:
    """A request with other fields, under the coordinator's own signature."""
    return signed_by(hand.identity, request, **fields)


def joining(hand: Hand, text: str) -> Envelope:
    """Asks north to agree to any text as a plan."""
    ask = AskJoin(hand.training, text)
    return hand.request("north", "join", join_context(hand.training, plan_digest(text)), ask)


def changed(hand: Hand, **fields: Any) -> str:
    """The plan's text with other fields, whether or not they make a plan."""
    raw = json.loads(hand.plan.to_json())
    for name, value in fields.items():
        table, _, last = name.rpartition("__")
        (raw[table] if table else raw)[last] = value
    return json.dumps(raw, sort_keys=True, separators=(",", ":"))


PLANS: dict[str, tuple[Callable[[Hand], str], str]] = {
    "an unlisted task": (lambda hand: changed(hand, task="os:system"), "the task os:system is not on this site's list"),
    "a task inside a listed one": (
        lambda hand: changed(hand, task="tests.processes.tasks:sys"),
        "the task tests.processes.tasks:sys is not on this site's list",
    ),
    "a task by a path": (lambda hand: changed(hand, task="../../evil:Task"), UNUSABLE),
    "data by a path": (lambda hand: changed(hand, data="../../etc"), UNUSABLE),
    "a name that is a path": (lambda hand: changed(hand, name="../../x"), UNUSABLE),
    "a threshold that is not safe": (lambda hand: changed(hand, protection__threshold=2), UNUSABLE),
    "nobody colluding": (lambda hand: changed(hand, protection__colluding=0), UNUSABLE),
    "no protection": (
        lambda hand: changed(hand, protection__protocol="plain", protection__allow_insecure=True),
        "this site does not allow the plain protocol",
    ),
    "without this site": (
        lambda hand: changed(hand, sites=["east", "south", "west"], min_sites=3),
        "the plan does not name this site",
    ),
    "another plan under the same name": (
        lambda hand: changed(hand, seed=99),
        "this site agreed to another plan for this training",
    ),
    "more rounds than are allowed": (
        lambda hand: changed(hand, rounds=99_999),
        "the plan's rounds (99999) may be at most 1000 here",
    ),
    "infinity": (lambda hand: changed(hand).replace('"learning_rate":0.1', '"learning_rate":1e400'), UNUSABLE),
    "NaN": (lambda hand: changed(hand, local__learning_rate=float("nan")), UNUSABLE),
    "a number of 10,000 digits": (
        lambda hand: changed(hand).replace('"seed":0', f'"seed":{"9" * 10_000}'),
        "the message does not parse",
    ),
    "text for a number": (
        lambda hand: changed(hand, rounds="1000"),
        "the plan does not read as the coordinator's: versions differ",
    ),
    "a field more": (lambda hand: changed(hand, entrypoint="os:system"), UNUSABLE),
    "a field that writes into the log": (lambda hand: changed(hand, **{"x\n2026 WARNING refused all": 1}), UNUSABLE),
    "200,000 sites": (
        lambda hand: changed(hand, sites=["north", *(f"s{number}" for number in range(200_000))]),
        UNUSABLE,
    ),
    "deep JSON": (lambda hand: '{"sites":' + "[" * 100_000 + "]" * 100_000 + "}", "the message does not parse"),
    "no JSON": (lambda hand: pickle.dumps(print, 0).decode("latin-1"), "the message does not parse"),
}


@pytest.mark.parametrize("plan", PLANS)
def test_a_plan_that_the_site_does_not_allow_or_cannot_read_is_refused(
    home: Consortium, hand: Hand, standing: Round, plan: str
) -> None:
    make, reason = PLANS[plan]
    with unmoved(home, "north") as north:
        assert refusal(hand.ask_again(joining(hand, make(hand)))) == reason
        north.tells(f"refused join: {reason}")
        assert all(line.startswith("20") and ":" in line[:20] for line in north.log.splitlines())


CONTEXTS: dict[str, tuple[Callable[[Hand], dict[str, Any]], str]] = {
    "a smaller threshold": (lambda hand: {"threshold": 2}, "must exceed sites"),
    "a smaller safe roster": (
        lambda hand: {"sites": {site: hand.consortium.sites[site] for site in ("north", "east", "south")}},
        "the invited sites are not those of the plan",
    ),
    "a key of the coordinator's own for a site": (
        lambda hand: {"sites": {**hand.consortium.sites, "west": hand.identity.public}},
        "the identity key of west is not the one in the consortium",
    ),
    "one key for two sites": (
        lambda hand: {"sites": {**hand.consortium.sites, "west": hand.consortium.sites["east"]}},
        "the identity key of west is not the one in the consortium",
    ),
    "a round that the plan does not have": (lambda hand: {"round": 1002}, "the plan has no training in round 1002"),
    "statistics in a round": (lambda hand: {"purpose": "statistics"}, "round 0 is for the statistics"),
    "a plan that was not agreed to": (
        lambda hand: {"plan": sha256("another")},
        "this is not the plan that the site agreed to",
    ),
    "a training that was not joined": (lambda hand: {"training": "another"}, "this site has not joined this training"),
    "a finer grid": (
        lambda hand: {"segments": tuple(replace(one, scale=1.0) for one in hand.context().segments)},
        "the segment table is not the plan's",
    ),
    "one more segment": (
        lambda hand: {"segments": (Segment("row", 1, 32, 1.0, 1.0), *hand.context().segments)},
        "the segment table is not the plan's",
    ),
}


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("step", ["advertise", "train"])
def test_an_attempt_that_is_not_the_agreed_plan_s_is_refused(
    home: Consortium, hand: Hand, standing: Round, context: str, step: str
) -> None:
    make, reason = CONTEXTS[context]
    proposed = hand.context(**{"attempt": 2, **make(hand)})
    body = AskAdvertise(proposed) if step == "advertise" else AskWork(proposed)
    with unmoved(home, "north") as north:
        assert reason in refusal(hand.ask("north", step, proposed.digest, body))
        north.tells(f"refused {step}: ")


BODIES = {
    "1e400": lambda body: body.replace('"threshold":3', '"threshold":1e400'),
    "NaN": lambda body: body.replace('"threshold":3', '"threshold":NaN'),
    "a truth for a number": lambda body: body.replace('"threshold":3', '"threshold":true'),
    "a negative round": lambda body: body.replace('"attempt":1', '"attempt":-1'),
    "a training that is a path": lambda body: body.replace('"training":"', '"training":"../../'),
    "deep JSON": lambda body: "[" * 100_000,
    "deep objects": lambda body: '{"context":' * 100_000,
    "a huge list": lambda body: f'{{"context":[{"0," * 2_000_000}0]}}',
    "a field twice": lambda body: body[:-1] + ',"context":{}}',
    "a field more": lambda body: body[:-1] + ',"__reduce__":"os.system"}',
    "a pickle": lambda body: pickle.dumps(print, 0).decode("latin-1"),
}


@pytest.mark.parametrize("body", BODIES)
def test_a_signed_body_that_is_not_its_kind_s_is_refused(
    home: Consortium, hand: Hand, standing: Round, body: str
) -> None:
    true = hand.request("north", "train", standing.context.digest, AskWork(standing.context))
    evil = sign(hand, true, body=BODIES[body](true.body))
    assert evil.body != true.body
    with unmoved(home, "north") as north:
        assert refusal(hand.ask_again(evil)) == "the message does not parse"
        north.tells("refused train: the message does not parse")


def of_type(name: str) -> bytes:
    """A safetensors file with a vector of another type, two bytes a number."""
    header = json.dumps({"vector": {"dtype": name, "shape": [3], "data_offsets": [0, 6]}}).encode()
    return len(header).to_bytes(8, "little") + header + bytes(6)


MODELS: dict[str, tuple[Callable[[], bytes], str]] = {
    "a pickle": (lambda: pickle.dumps(print), "the model is not a safetensors file"),
    "nothing": (lambda: b"", "the model is not a safetensors file"),
    "a header without an end": (lambda: b"\xff" * 7 + b"\x7f" + b"{", "the model is not a safetensors file"),
    "a deep header": (lambda: (3000).to_bytes(8, "little") + b"[" * 3000, "the model is not a safetensors file"),
    "another shape": (lambda: save({"vector": np.zeros((1, 3), np.float32)}), "does not have the task's shapes"),
    "another name": (lambda: save({"../vector": np.zeros(3, np.float32)}), "does not have the task's shapes"),
    "objects": (lambda: save({"vector": np.zeros(3, np.int64)}), "the model is not float32"),
    "a type that numpy lacks": (lambda: of_type("BF16"), "the model is not a safetensors file"),
    "NaN": (lambda: GlobalModel(np.full(PARAMETERS, np.nan, np.float32)).to_bytes(), "the model holds NaN or infinity"),
    "100 MB": (lambda: bytes(100_000_000), "the object is larger than it may be"),
}


@pytest.mark.parametrize("model", MODELS)
def test_a_model_that_is_none_of_the_task_s_is_refused(tmp_path: Path, model: str) -> None:
    """A site reads a model for an attempt that it has advertised, which ends every other: here it is in memory."""
    make, reason = MODELS[model]
    with trial(tmp_path, plan_for("Bare")) as run:
        assert join(run, "ann").kind == "joined"
        digest = run.live.exchange.put(shelf(run.live.training), make())
        context = replace(run.live.context("training", 1, 1), model=digest)
        advertise(run, "ann", context)
        assert reason in local_refusal(send(run, "ann", "train", context.digest, AskWork(context)))


def test_a_model_is_not_even_read_for_an_attempt_that_was_not_advertised(
    home: Consortium, hand: Hand, standing: Round
) -> None:
    context = hand.context(attempt=2, model=hand.exchange.put(shelf(hand.training), b"none"))
    with unmoved(home, "north") as north:
        said = refusal(hand.ask("north", "train", context.digest, AskWork(context)))
        assert said == "this site has not advertised in this context"
        north.tells(f"refused train: {said}")


def test_a_step_that_there_is_not_is_refused(home: Consortium, hand: Hand, standing: Round) -> None:
    with unmoved(home, "north") as north:
        for kind in ("ask/run", "ask/__import__".replace("_", "/"), "ask/", "refusal", "masked"):
            request = sign(hand, standing.masking("north"), kind=kind)
            assert refusal(hand.ask_again(request)) == "this site knows no such step"
        north.tells("refused run: this site knows no such step")
