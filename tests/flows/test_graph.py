"""The picture in the Prefect UI is the documentation of the protocol: its edges are exactly the intended ones."""

from itertools import product
from pathlib import Path
from types import SimpleNamespace

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterName

from flows.secure_round import round_name
from tests.flows.consortium import always, plan_for, trial
from tests.flows.server import graph_nodes
from tests.flows.tasks import SITES


def graph(name: str) -> tuple[dict[str, str], set[tuple[str, str]]]:
    """Nodes (label to state) and edges of the newest flow run called ``name``, as the API gives them to the UI."""
    with get_client(sync_client=True) as client:
        runs = client.read_flow_runs(flow_run_filter=FlowRunFilter(name=FlowRunFilterName(any_=[name])))
        newest = max(runs, key=lambda run: run.created)
        nodes = graph_nodes(client, newest.id)
    labels = {node: body["label"] for node, body in nodes.items()}
    edges = {(labels[node], labels[child["id"]]) for node, body in nodes.items() for child in body["children"]}
    return {body["label"]: body["state_type"] for body in nodes.values()}, edges


def intended(work: tuple[str, ...], last: str, u1: tuple[str, ...], u2: tuple[str, ...], u3: tuple[str, ...]) -> set:
    """The edges of a round in which U1, U2 and U3 took part."""
    return {
        *((f"advertise[{site}]", "roster") for site in SITES),
        *(("roster", f"share[{site}]") for site in u1),
        *((f"share[{site}]", "inboxes") for site in u1),
        *(("inboxes", f"mask[{site}]") for site in u2),
        *((f"{step}[{site}]", f"mask[{site}]") for step, site in product(work, u2)),
        *((f"mask[{site}]", "survivors") for site in u2),
        *(("survivors", f"confirm[{site}]") for site in u3),
        *((f"confirm[{site}]", "quorum") for site in u3),
        *(("quorum", f"reveal[{site}]") for site in u3),
        *((f"reveal[{site}]", "unmask") for site in u3),
        ("unmask", last),
    }


@pytest.mark.slow
def test_the_graph_of_every_kind_of_round_has_exactly_the_intended_edges(tmp_path: Path) -> None:
    with trial(tmp_path, plan_for(name="graph"), name="graph-trial") as run:
        run.train()
    for name, work, last in (
        ("graph-trial statistics 0.1", ("moments",), "standardise"),
        ("graph-trial 1.1", ("train", "evaluate"), "average"),
        ("graph-trial 2.1", ("train", "evaluate"), "average"),
        ("graph-trial evaluation 3.1", ("evaluate",), "score"),
    ):
        nodes, edges = graph(name)
        assert edges == intended(work, last, SITES, SITES, SITES), name
        loose = {f"{step}[{site}]" for step, site in product(work, SITES)}
        assert set(nodes) == {node for edge in edges for node in edge} | loose
        assert set(nodes.values()) == {"COMPLETED"}


@pytest.mark.slow
def test_a_site_that_drops_out_is_seen_to_drop_out_in_the_graph(tmp_path: Path) -> None:
    faults = {("dan", "share"): always("lost")}
    with trial(tmp_path, plan_for("Bare", rounds=1), faults, name="graph-dropped") as run:
        report = run.train()
    assert report.rounds[0].survivors == ("ann", "bob", "cat")
    assert report.rounds[0].dropped == {"dan": "not reached"}
    nodes, edges = graph("graph-dropped 1.1")
    rest = ("ann", "bob", "cat")
    assert edges == intended(("train", "evaluate"), "average", SITES, rest, rest)
    assert "mask[dan]" not in nodes
    assert "train[dan]" in nodes


@pytest.mark.slow
def test_the_training_s_own_graph_has_a_task_for_every_round_and_attempt(tmp_path: Path) -> None:
    faults = {(site, "mask"): lambda count: "lost" if count == 1 else "" for site in ("ann", "bob")}
    with trial(tmp_path, plan_for("Bare"), faults, name="graph-whole") as run:
        run.train()
    nodes, _ = graph("graph-whole")
    rounds = {"training[1.1]", "training[2.1]", "training[2.2]", "evaluation[3.1]"}
    assert rounds <= set(nodes)
    assert nodes["training[2.1]"] == "FAILED"
    assert nodes["training[2.2]"] == "COMPLETED"


@pytest.mark.parametrize(
    ("training", "purpose", "shown"),
    [
        ("heart-3f2a1b2c3d4e", "training", "heart-3f2a 2.1"),
        ("heart-20261128-115706-3f2a", "training", "heart-3f2a 2.1"),
        ("heart-3f2a1b2c3d4e", "evaluation", "heart-3f2a evaluation 2.1"),
        ("heart", "statistics", "heart statistics 2.1"),
    ],
)
def test_a_round_is_named_after_its_training(
    training: str, purpose: str, shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    of = {"training": training, "purpose": purpose, "round": 2, "attempt": 1}
    monkeypatch.setattr("flows.secure_round.flow_run", SimpleNamespace(parameters=of))
    assert round_name() == shown
