"""Sites that are in trouble for good, as processes: each costs one wait, and the others' rounds go on at their pace."""

from collections.abc import Iterator
from pathlib import Path
from statistics import mean
from uuid import UUID

import pytest
from prefect.states import Cancelling

from flows.settings import SITE_FILE
from tests.processes.harness import PATIENCE, TINY, Consortium, consortium, eventually

pytestmark = pytest.mark.slow

SITES = ("north", "east", "south", "west")
WAIT_S = 20.0 * PATIENCE
DEADLINES = {"join_s": 120 * PATIENCE, "step_s": WAIT_S, "train_s": WAIT_S, "finish_s": 60 * PATIENCE}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Consortium]:
    """Four sites that serve; west's file names an exchange that cannot be used."""
    folder = tmp_path_factory.mktemp("trouble")

    def spoil(home: object) -> None:
        path = home.site("west") / SITE_FILE  # type: ignore[attr-defined]
        (folder / "file").touch()
        path.write_text(path.read_text().replace(f"{folder / 'exchange'}", f"{folder / 'file' / 'exchange'}"))
        assert str(folder / "file") in path.read_text()

    with consortium(folder, SITES, tasks=(TINY,), prepare=spoil) as running:
        for site in SITES:
            eventually(lambda site=site: running.online(site), 120)
        yield running


def seconds(home: Consortium, run: UUID) -> list[float]:
    """What each finished round of training has taken."""
    if not list((home.home.coordinator / "runs").glob(f"*-{run.hex[:12]}/checkpoint/progress.json")):
        return []
    return [one["total_s"] for one in home.progress(run)["records"] if one["purpose"] == "training"]


def test_a_dead_exchange_costs_one_wait(home: Consortium) -> None:
    run = home.submit(home.plan(name="dead", rounds=6, min_sites=3, deadlines=DEADLINES))
    report = home.finished(run, 400)
    took = [one["seconds"]["total"] for one in report["rounds"]]
    print("a dead exchange:", [round(one, 1) for one in took])
    assert all("west" not in one["survivors"] for one in report["rounds"])
    assert "the exchange cannot be used (Not a directory)" in report["statistics"]["reasons"]["west"]
    assert "asked again in round" in str([one["reasons"] for one in report["rounds"]])
    resting = [one["seconds"]["total"] for one in report["rounds"][2:] if "is asked again" in one["reasons"]["west"]]
    assert mean(took[2:]) <= 1.3 * PATIENCE * mean(resting)


def test_a_dead_site_costs_one_wait_and_is_asked_again_when_it_is_back(home: Consortium) -> None:
    mend(home.home.site("west") / SITE_FILE)
    run = home.submit(home.plan(name="killed", rounds=300, min_sites=3, deadlines=DEADLINES))
    eventually(lambda: len(seconds(home, run)) >= 2, 180)
    home.kill("east")
    began = len(seconds(home, run))
    eventually(lambda: len(seconds(home, run)) >= began + 5, 300)
    took = seconds(home, run)
    print("a dead site:", [round(one, 1) for one in took])
    usual, after = mean(took[:began]), took[began : began + 5]  # the round that runs when it dies is the one that waits
    assert mean(after[2:]) <= 1.5 * PATIENCE * usual
    home.start("east")
    eventually(lambda: set(home.progress(run)["records"][-1]["survivors"]) == set(SITES), 180)
    home.client.set_flow_run_state(run, Cancelling())
    ended = home.ended(run, 60)
    assert f"its model after {len(seconds(home, run))} rounds: fedseal export" in str(
        ended.state and ended.state.message
    )


def mend(path: Path) -> None:
    """Have a site's file name the exchange of all."""
    path.write_text(path.read_text().replace("/file/exchange", "/exchange"))
