"""A training by the coordinator's own worker, under attack: it goes on, and comes to what the survivors' numbers are.

One long training serves all attacks, which come one after the other. When they are over, its model is computed anew
from the survivors' own data, without any masking, and must be the same, bit for bit.
"""

import hashlib
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pytest
from httpx import HTTPStatusError
from prefect.client.schemas.objects import StateType
from prefect.filesystems import LocalFileSystem
from prefect.results import ResultRecordMetadata
from prefect.serializers import PickleSerializer
from prefect.states import Cancelling, Completed

from flows.mailbox import Mailbox, answer_key
from flows.messages import Done
from flows.model import GlobalModel
from flows.plan import Plan
from flows.policy import load_task
from flows.settings import PARTICIPATE, coordinator_pool, marked
from flows.tables import (
    FAILED,
    count_values,
    rounding_key,
    segments_of,
    statistics_values,
    summed_update,
    training_seed,
    training_values,
)
from ml_tasks import tabular, training
from ml_tasks.averaging import FedAvg
from ml_tasks.training import LocalTraining, describe, initial_vector
from protocols import secagg_coordinator as coordinator
from protocols.contexts import AttemptContext
from protocols.encoding import decode, encode
from protocols.messages import COORDINATOR, envelope
from tests.hostile.hand import SITES, Attacker, keys
from tests.processes.harness import Consortium, eventually, state_of

pytestmark = pytest.mark.slow


@dataclass
class Live:
    """A training that runs."""

    home: Consortium
    attacker: Attacker
    plan: Plan
    run: UUID
    canary: Path

    @property
    def records(self) -> list[dict[str, Any]]:
        """The sums that are finished."""
        try:
            return list(self.home.progress(self.run)["records"])
        except (ValueError, OSError):
            return []

    def on(self, sums: int = 2) -> list[dict[str, Any]]:
        """Wait until the training has made some more sums; gives their records."""
        before = len(self.records)
        eventually(lambda: len(self.records) >= before + sums, 90 * sums)
        return self.records[before:]

    def participation(self, site: str) -> UUID:
        """The site's living participation: an impostor may be younger."""

        def look() -> UUID | None:
            found = self.home.participations(self.run, site)
            return next((one.id for one in found if state_of(one) == StateType.RUNNING), None)

        return eventually(look, 60)


@pytest.fixture(scope="module")
def live(home: Consortium, attacker: Attacker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """The training; its deployment and its pool show whatever an attacker would have a worker run."""
    canary = tmp_path_factory.mktemp("evil") / "canary"
    touch, http = f"touch {canary}", home.client._client
    deployment = eventually(home.deployment, 60)
    poison = {"command": touch, "env": {"PYTHONSTARTUP": str(canary)}}
    steps = [{"prefect.deployments.steps.run_shell_script": {"script": touch}}]
    evil = {"entrypoint": "os:system", "path": "/", "pull_steps": steps, "job_variables": poison}
    http.patch(f"/deployments/{deployment}", json=evil).raise_for_status()
    template = {"job_configuration": {"command": touch}, "variables": {"type": "object", "properties": {}}}
    http.patch(f"/work_pools/{coordinator_pool(home.key)}", json={"base_job_template": template}).raise_for_status()
    deadlines = {"join_s": 120, "step_s": 20, "train_s": 20, "finish_s": 60}
    plan = home.plan(name="attacked", rounds=1000, min_sites=3, seed=11, max_attempts=20, deadlines=deadlines)
    run = home.submit(plan)
    impostors(home, plan, run)
    live = Live(home, attacker, plan, run, canary)
    eventually(lambda: len(live.records) >= 2, 300)
    yield live
    home.client.set_flow_run_state(run, Cancelling())
    assert home.ended(run, 60).state.type == StateType.CANCELLED
    assert not canary.exists()
    progress = home.progress(run)
    assert honest(plan, progress["records"]) == progress["model"]
    log = (home.home.coordinator / "coordinator.log").read_text()
    assert "Traceback" not in log


def impostors(home: Consortium, plan: Plan, run: UUID) -> None:
    """Runs that are named as this training's participations, before there are any."""
    training = f"{plan.name}-{run.hex[:12]}"
    for site in SITES:
        deployment = home.client.read_deployment_by_name(f"{PARTICIPATE}/{marked(site, home.key)}").id
        for number in ("9" * 5000, "0", "-1", "1.5", "x", "\u0661\u0662"):
            name = f"{training}-{site}-{number}"
            state = {"type": "COMPLETED"}
            asked = {"name": name, "deployment_id": str(deployment), "state": state, "parameters": {}}
            flow = str(home.client.create_flow_from_name(PARTICIPATE))
            home.client._client.post("/flow_runs/", json={**asked, "flow_id": flow}).raise_for_status()


def honest(plan: Plan, records: list[dict[str, Any]]) -> str:
    """The digest of the model that the survivors' own numbers come to, sum by sum."""
    task = load_task(plan.task)
    data = {site: task.load(None, site) for site in plan.sites}
    model = GlobalModel(initial_vector(task, plan.seed))
    for record in records:
        purpose, number = record["purpose"], record["round"]
        segments = segments_of(plan, purpose, describe(task).sizes)
        context = AttemptContext(
            purpose,
            plan.name,
            number,
            1,
            plan.digest,
            dict.fromkeys(plan.sites, "0" * 64),
            3,
            1,
            "0" * 64,
            segments,
            {},
        )
        encoded = []
        for site in record["survivors"]:
            if purpose == "statistics":
                values = statistics_values(plan, data[site].train.features, task.features)
            else:
                settings, seed = LocalTraining(**plan.local.model_dump()), training_seed(plan, site, number)
                update = training.train(task, data[site].train, model.vector, model.standardisation, settings, seed)
                values = training_values(plan, len(data[site].train), update, describe(task))
                counts = training.evaluate(task, data[site].monitored[1], model.vector, model.standardisation)
                values |= count_values(counts)
            values[FAILED] = np.zeros(1)
            encoded.append(encode(site, values, segments, rounding_key(plan, site, number)))
        total = decode(coordinator.sum_vectors(context, encoded), context.segments)
        if purpose == "statistics":
            model = GlobalModel(model.vector, tabular.standardisation(total["moments"], task.features))
        else:
            vector = FedAvg().apply(model.vector, summed_update(total, describe(task)), float(total["weight"][0]))
            model = GlobalModel(vector, model.standardisation)
    return hashlib.sha256(model.to_bytes()).hexdigest()


def meddling(live: Live, meddle: Callable[[], object], sums: int = 2) -> list[dict[str, Any]]:
    """Do something again and again while the training makes some sums; gives their records."""
    over = threading.Event()

    def again() -> None:
        while not over.wait(0.02):
            meddle()

    thread = threading.Thread(target=again, daemon=True)
    thread.start()
    try:
        return live.on(sums)
    finally:
        over.set()
        thread.join(30)


def placed(live: Live, key: str, text: str) -> set[str]:
    """Put an answer into the training's mailbox; gives its key, unless the site's own is there already."""
    asked = {"key": key, "value": text}
    with suppress(HTTPStatusError):
        live.home.client._client.post(f"/flow_runs/{live.run}/input", json=asked)
        return {key}
    return set()


def test_runs_named_as_participations_and_poisoned_deployments_keep_no_site_out(live: Live) -> None:
    assert set(live.records[0]["survivors"]) == set(SITES)


FORGED = {
    "unsigned": lambda live, key: f"[{answer_by(live, 'north').replace('0' * 8, '1' * 8)}]",
    "of a key of the attacker's": lambda live, key: f"[{answer_by(live, 'north')}]",
    "a parcel that is a folder": lambda live, key: folder(live),
    "too long": lambda live, key: "x" * 100_000,
}


def answer_by(live: Live, site: str) -> str:
    """An answer in a site's name."""
    key = replace(live.attacker.key, name=site)
    return envelope(key, "done", "0" * 64, COORDINATOR, Done()).to_json()


def folder(live: Live) -> str:
    """A parcel of north's that is a folder."""
    digest = "d" * 64
    (live.attacker.exchange / "north" / digest).mkdir(exist_ok=True, parents=True)
    return f'{{"object":"{digest}","size":10}}'


@pytest.mark.parametrize("forgery", FORGED)
def test_a_forged_answer_that_comes_before_the_site_s_own_is_thrown_away(live: Live, forgery: str) -> None:
    done, box = set[str](), Mailbox(live.home.client, live.participation("north"))

    def meddle() -> None:
        for key in keys(box):
            if len(done) < 3:
                done.update(placed(live, answer_key("north", key), FORGED[forgery](live, key)))

    records = meddling(live, meddle)
    assert done
    assert all(set(record["survivors"]) >= {"east", "south", "west"} for record in records)


def test_garbage_beside_the_answers_is_in_nobody_s_way(live: Live) -> None:
    for number in range(20):
        live.attacker.post(live.run, f"answer-north-{number}\n", "x" * 1000)
        live.attacker.post(live.run, f"answer-{number}", "x" * 500_000 if number < 3 else "[]")
    for record in live.on(3):
        assert set(record["survivors"]) == set(SITES)


def test_a_site_s_answer_under_another_site_s_key_is_no_answer(live: Live) -> None:
    moved, told = set[str](), list[str]()
    answers, requests = Mailbox(live.home.client, live.run), Mailbox(live.home.client, live.participation("north"))

    def meddle() -> None:
        told.extend(answers.take("answer-east-").values())
        for key in keys(requests) if told else ():
            if len(moved) < 3:
                moved.update(placed(live, answer_key("north", key), told[-1]))

    records = meddling(live, meddle)
    assert moved
    assert all(set(record["survivors"]) >= {"east", "south", "west"} for record in records)


SWAPS: dict[str, Callable[[Path], object]] = {
    "another's": lambda path: shutil.copy(next(path.parent.with_name("east").iterdir()), path),
    "one bit": lambda path: path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:]),
    "a pipe": lambda path: (path.unlink(), os.mkfifo(path)),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("swap", SWAPS)
def test_a_vector_that_is_swapped_on_the_exchange_at_most_drops_its_site(live: Live, swap: str) -> None:
    swapped = set()

    def meddle() -> None:
        for path in (live.attacker.exchange / "north").glob("*"):
            try:
                if not swapped and path.is_file() and path.stat().st_size > 4000 and len(path.name) == 64:
                    SWAPS[swap](path)
                    swapped.add(path)
            except (OSError, StopIteration):
                pass  # it has gone already

    records = meddling(live, meddle)
    assert swapped
    assert all(set(record["survivors"]) >= {"east", "south", "west"} for record in records)


def test_a_result_that_is_a_pickle_is_loaded_by_nobody(live: Live, tmp_path: Path) -> None:
    """Prefect's own results name their deserialiser; the server also says where results are stored by default."""
    client = live.home.client
    store = LocalFileSystem(basepath=str(tmp_path / "results"))
    block = eventually(lambda: store.save("evil", overwrite=True, client=None), 300)
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "evil").write_bytes(b"cos\nsystem\n(S'touch " + str(live.canary).encode() + b"'\ntR.")
    evil = ResultRecordMetadata(storage_key="evil", serializer=PickleSerializer(), storage_block_id=block)
    default = {"default_result_storage_block_id": str(block)}
    eventually(lambda: client._client.put("/admin/storage", json=default), 300)
    for run in [*(one.id for one in live.home.rounds(live.run)[:-1]), live.participation("north")]:
        client.set_flow_run_state(run, Completed(data=evil), force=True)
    live.on(3)
    assert not live.canary.exists()
    assert [path.name for path in (tmp_path / "results").iterdir()] == ["evil"]
