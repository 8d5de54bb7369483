"""What a data steward approves is what runs, and no question changes it (SPEC 6.11, 7.2; findings 7, 13)."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from deploy.cli import app
from flows.code_digest import with_code
from flows.plan import Plan
from protocols.contexts import sha256
from protocols.decisions import MOST_WAITING_OF_TRAINING, Decision
from protocols.errors import Refused
from protocols.vault import Vault
from tests.flows.consortium import Trial, plan_for, trial
from tests.flows.test_site import join, refusal

HARMLESS, OTHER = plan_for(task="Bare", rounds=1), plan_for(task="Bare", rounds=900)
WAITS = "waits for its data steward"


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Trial]:
    """A consortium in which ann approves each training by hand."""
    with trial(tmp_path / "run", HARMLESS) as made:
        site = made.local.sites.sites["ann"]
        site._policy = site._policy.model_copy(update={"approval": "by-hand"})
        yield made


def steward(run: Trial, tmp_path: Path, *words: str) -> Result:
    """Ann's data steward's command, on the vault of the trial."""
    folder = tmp_path / "ann"
    if not folder.exists():
        given = ["--prefect", "http://x/api", "--exchange", "memory://x", "--folder", str(folder)]
        assert CliRunner().invoke(app, ["site", "init", "ann", *given]).exit_code == 0
        (folder / "vault").rename(tmp_path / "unused")
        (folder / "vault").symlink_to(run.local.sites.sites["ann"].vault.folder)
    return CliRunner().invoke(app, ["site", *words, "--folder", str(folder)])


def approve(run: Trial, plan: Plan) -> None:
    vault = run.local.sites.sites["ann"].vault
    vault.decide(Decision(run.live.training, plan.digest, plan.to_json(), "approved"))


def test_a_plan_is_shown_before_it_is_approved_and_only_by_its_digest(run: Trial, tmp_path: Path) -> None:
    name = run.live.training
    assert WAITS in refusal(join(run, "ann", HARMLESS))
    shown = steward(run, tmp_path, "show", name)
    assert shown.exit_code == 0 and "rounds       1, at most" in shown.output and HARMLESS.digest in shown.output
    assert WAITS in refusal(join(run, "ann", OTHER))  # swapped under the same name
    assert steward(run, tmp_path, "approve", name).exit_code == 2
    assert WAITS in refusal(join(run, "ann", HARMLESS)) and WAITS in refusal(join(run, "ann", OTHER))
    assert steward(run, tmp_path, "approve", name, HARMLESS.digest).exit_code == 0
    assert WAITS in refusal(join(run, "ann", OTHER))
    assert join(run, "ann", HARMLESS).kind == "joined"


def test_no_question_undoes_an_approval_however_many_are_asked(run: Trial) -> None:
    assert WAITS in refusal(join(run, "ann", HARMLESS))
    approve(run, HARMLESS)
    for rounds in range(2, 5 + MOST_WAITING_OF_TRAINING):
        assert WAITS in refusal(join(run, "ann", plan_for(task="Bare", rounds=rounds)))
    assert join(run, "ann", HARMLESS).kind == "joined"


def test_a_restored_vault_joins_nothing_that_it_knew_whatever_is_approved(run: Trial) -> None:
    """Finding 7: else the next sum, over other sites, would tell the one between them."""
    approve(run, HARMLESS)
    assert join(run, "ann", HARMLESS).kind == "joined"
    site = run.local.sites.sites["ann"]
    site.vault.close()
    (site.vault.folder / "place").unlink()
    site.vault = Vault(site.vault.folder)
    assert "has withdrawn" in refusal(join(run, "ann", HARMLESS))
    with pytest.raises(Refused, match="put back from a copy"):
        approve(run, HARMLESS)
    with pytest.raises(Refused, match="put back from a copy"):
        approve(run, OTHER)
    for plan in (HARMLESS, OTHER):
        assert "has withdrawn" in refusal(join(run, "ann", plan))
    assert WAITS in refusal(join(run, "ann", HARMLESS, training="another"))


def test_a_plan_for_other_code_is_refused_with_both_digests_before_the_steward_is_asked(run: Trial) -> None:
    here, other = with_code(HARMLESS), HARMLESS.model_copy(update={"code": sha256("other code")})
    reason = refusal(join(run, "ann", other))
    assert here.code in reason and other.code in reason
    assert run.local.sites.sites["ann"].vault.decisions() == []
    assert WAITS in refusal(join(run, "ann", here))
    approve(run, here)
    assert join(run, "ann", here).kind == "joined"


def test_a_site_that_pins_code_takes_no_plan_that_names_none(run: Trial) -> None:
    site = run.local.sites.sites["ann"]
    site._policy = site._policy.model_copy(update={"code": "pinned"})
    assert "does not name the digest" in refusal(join(run, "ann", HARMLESS))
    assert WAITS in refusal(join(run, "ann", with_code(HARMLESS)))
