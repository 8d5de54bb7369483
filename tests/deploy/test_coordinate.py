"""The coordinator's program: a run's folder is its own for good, and what sites have written is text in its tables."""

import threading
from pathlib import Path
from typing import cast
from uuid import UUID

import pytest
from prefect.client.orchestration import SyncPrefectClient

from deploy import coordinate
from deploy.coordinate import prepare, results
from deploy.up import found_home
from flows.checkpoint import Checkpoint
from flows.collect import Absent
from flows.plan import Plan, PlanError
from flows.report import Report, RoundRecord
from flows.session import shown
from flows.settings import CoordinatorFolder, SettingsError
from flows.site import Answer
from protocols.files import claim
from protocols.messages import Envelope, Refusal, envelope
from tests.flows.consortium import plan_for, trial
from tests.flows.tasks import SITES

RUN = UUID("123456789abc4000800000000000000a")
SAME_START = UUID("123456789abc4000800000000000000b")
BITES = [
    "![image](http://evil.example/x.png)",
    "[click](http://evil.example)",
    "<img src=x onerror=alert(1)>",
    "a | b | c |\n|---|",
    "`` ` ``![x](y)",
    "http://evil.example",
    "\x1b[2J\u202e",
]


class NoSites:
    """The way to sites that nobody asks."""

    def __init__(self, *given: object) -> None:
        pass


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CoordinatorFolder:
    """A coordinator's folder, for trainings whose sites are not asked."""
    monkeypatch.setattr(coordinate, "RemoteSites", NoSites)
    home = found_home(tmp_path, SITES, "http://127.0.0.1:9/api", (plan_for().task,))
    return CoordinatorFolder.read(home.coordinator)


def prepared(settings: CoordinatorFolder, plan: Plan, run: UUID) -> tuple[Path, Checkpoint]:
    """Prepare a training, and end before it begins."""
    live, _, folder = prepare(settings, plan, cast(SyncPrefectClient, None), run)
    live.vault.close()
    live.checkpoint.close()
    return folder, live.checkpoint


def test_a_run_takes_up_its_own_folder_and_no_other_takes_it(settings: CoordinatorFolder) -> None:
    folder, checkpoint = prepared(settings, plan_for(), RUN)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    for plan in (plan_for(), plan_for(rounds=3)):
        with pytest.raises(SettingsError, match="is another flow run's"):
            prepared(settings, plan, SAME_START)
    with pytest.raises(PlanError, match="has another plan"):
        prepared(settings, plan_for(rounds=3), RUN)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert prepared(settings, plan_for(), RUN)[1].progress == checkpoint.progress


def test_a_folder_that_nobody_has_claimed_is_not_taken_unless_it_is_empty(settings: CoordinatorFolder) -> None:
    folder = settings.runs / f"tiny-{RUN.hex[:12]}"
    folder.mkdir(parents=True)
    (folder / "plan.json").write_text("of an older version")
    with pytest.raises(SettingsError, match="is another flow run's"):
        prepared(settings, plan_for(), RUN)
    (folder / "plan.json").unlink()
    (folder / "flow-run.cut-off").write_text("")
    assert prepared(settings, plan_for(), RUN)[0] == folder


def test_of_many_that_claim_a_place_at_once_one_gets_it(tmp_path: Path) -> None:
    got = list[bytes]()
    owners = [str(number).encode() for number in range(8)]
    threads = [
        threading.Thread(target=lambda owner=owner: got.extend([owner] * claim(tmp_path / "place", owner)))
        for owner in owners
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == [(tmp_path / "place").read_bytes()]
    assert claim(tmp_path / "place", got[0]) and [path.name for path in tmp_path.iterdir()] == ["place"]


def test_the_results_leave_out_what_does_not_apply_and_name_what_is_odd_about_each_sum() -> None:
    first = RoundRecord(
        "training",
        1,
        1,
        ("ann",),
        {},
        {"loss": 0.5},
        1.0,
        2.0,
        3,
        clamped_shares={"1.running_var": 0.034, "bias": 0.001},
    )
    final = RoundRecord("evaluation", 2, 1, ("ann",), {}, {"examples": 0.0}, 1.0, 2.0, 3)
    text = results(Report("t", "0" * 64, "train", None, (first,), final, None, False))
    assert "| sum | sites | without | loss | epsilon |" in text and "auroc" not in text
    assert "- training 1.1: `clamped to their range: 3% of 1.running_var: lower local.learning_rate" in text
    assert text.count("no site has a test example") == 1


@pytest.mark.parametrize("bite", BITES)
def test_what_a_site_writes_is_text_in_the_table_of_results(bite: str) -> None:
    record = RoundRecord("training", 1, 1, ("ann", "bob"), {"cat": f"refused mask: {bite}"}, {}, 1.0, 2.0, 3)
    lines = results(Report("t", "0" * 64, "train", None, (), record, None, False)).split("\n")
    (row,) = [line for line in lines if line.startswith("| training")]
    cells = row.split("|")
    assert len(cells) == lines[2].count("|") + 1
    assert not set("[]<>") & set(row)
    why = cells[3].strip().removeprefix("cat: ")
    assert why.startswith("`") and why.endswith("`") and why.count("`") == 2, "a code span: not even an address links"


@pytest.mark.parametrize("bite", BITES)
def test_what_a_site_writes_is_text_in_prefect_s_states_and_logs(tmp_path: Path, bite: str) -> None:
    assert not set("[]<>|`\n\x1b\u202e") & set(shown(bite))
    with trial(tmp_path, plan_for()) as run:
        site = run.local.sites.sites["ann"]

        class Lying:
            def ask(self, name: str, request: Envelope, deadline_s: float) -> Answer:
                body = Refusal("share", "Refused", bite)
                return (envelope(site.identity, "refusal", request.context, "@coordinator", body, request.digest),)

        run.live.sites = Lying()
        found, _ = run.live.ask("ann", "share", "1" * 64, Refusal("", "", ""), 1.0)
    assert found == Absent(f"refused share: {shown(bite)}")


def test_a_long_reason_is_cut() -> None:
    assert len(shown("x" * 10_000)) == 500
