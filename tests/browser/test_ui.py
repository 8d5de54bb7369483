"""Operators work in the Prefect UI: its form starts a training, its pages show the rounds, its buttons withdraw a site.

A real Chromium (Debian's) looks at a real server; what is asserted is what the pages say. Screenshots are kept in
``.test-output/`` for people to look at.
"""

import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from uuid import UUID

import pytest
from playwright.sync_api import Page, expect, sync_playwright
from prefect.client.schemas.objects import StateType

from tests.conftest import REPOSITORY
from tests.processes.harness import TINY, Consortium, consortium, eventually

pytestmark = pytest.mark.slow

OUTPUT = REPOSITORY / ".test-output"
WAIT_MS = 60_000
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, debian_package: Callable[..., Path]) -> Iterator[Consortium]:
    """Four sites and a coordinator that are there."""
    debian_package("chromium")
    with consortium(tmp_path_factory.mktemp("ui")) as made:
        for site in made.home.sites:
            eventually(lambda site=site: made.online(site), 120)
        yield made


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    """A page of a new browser."""
    profile = tempfile.mkdtemp(prefix="fedseal-chromium-")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch_persistent_context(
            profile,
            executable_path=shutil.which("chromium"),
            headless=True,
            args=ARGUMENTS,
            viewport={"width": 1500, "height": 1100},
        )
        browser.set_default_timeout(WAIT_MS)
        expect.set_options(timeout=WAIT_MS)
        yield browser.pages[0] if browser.pages else browser.new_page()
        browser.close()
    shutil.rmtree(profile, ignore_errors=True)


def keep(page: Page, name: str) -> None:
    """Keep a screenshot, once what moves has come to rest."""
    OUTPUT.mkdir(exist_ok=True)
    page.wait_for_timeout(2000)
    page.screenshot(path=OUTPUT / f"{name}.png")


def open_tab(page: Page, name: str) -> None:
    """Open one of a page's tabs."""
    page.get_by_role("listitem").filter(has_text=re.compile(f"^{name}$")).first.click()


def of_run(running: Consortium, run: UUID) -> str:
    """The address of a flow run's page."""
    return f"{running.home.url.removesuffix('/api')}/runs/flow-run/{run}"


def submitted(running: Consortium, page: Page, name: str) -> UUID:
    """Press Submit; again where the page stays, since SQLite turns people away while others write. Gives the run."""
    for _ in range(3):
        page.get_by_role("button", name="Submit").click()
        with suppress(AssertionError):
            return started(running, name, 20)
    raise AssertionError("the form starts no training")


def started(running: Consortium, name: str, timeout_s: float = 60) -> UUID:
    """The flow run of the training whose plan has this name."""

    def look() -> UUID | None:
        runs = running.client.read_flow_runs(limit=200)
        return next((one.id for one in runs if (one.parameters.get("plan") or {}).get("name") == name), None)

    return eventually(look, timeout_s)


def test_the_form_starts_a_training(running: Consortium, page: Page) -> None:
    deployment = eventually(running.deployment, 60)
    address = f"{running.home.url.removesuffix('/api')}/deployments"
    page.goto(address)
    expect(page.get_by_text("federated-training").first).to_be_visible()
    page.goto(f"{address}/deployment/{deployment}")
    expect(page.get_by_text("federated-training").first).to_be_visible()
    open_tab(page, "Description")
    expect(page.get_by_text("every site decides").first).to_be_visible()
    keep(page, "1-deployment")

    page.goto(f"{address}/deployment/{deployment}/run")
    for said in ("Fewest sites", "Rounds of training.", "Time to join (seconds)", "Colluding sites", "Threshold"):
        expect(page.get_by_text(said).first).to_be_visible()
    boxes = page.locator("textarea")
    assert [boxes.nth(place).input_value() for place in (3, 4, 5, 6)] == list(running.home.sites)
    boxes.nth(0).fill("from-the-form")
    boxes.nth(1).fill(TINY)
    keep(page, "2-form")

    submitted(running, page, "from-the-form")


def test_the_pages_of_a_training_show_rounds_and_steps(running: Consortium, page: Page) -> None:
    run = started(running, "from-the-form")
    running.finished(run, 240)
    page.goto(of_run(running, run))
    expect(page.get_by_text(f"from-the-form-{run.hex[:12]}").first).to_be_visible()
    expect(page.get_by_text("Completed").first).to_be_visible()
    expect(page.get_by_text("training 5.1 over 4 sites").first).to_be_visible()
    expect(page.locator("canvas").first).to_be_visible()
    keep(page, "3-training")
    open_tab(page, "Subflow Runs")
    short = f"from-the-form-{run.hex[:4]}"
    for name in (f"{short} statistics 0.1", f"{short} 1.1", f"{short} 5.1", f"{short} evaluation 6.1"):
        expect(page.get_by_text(name, exact=True).first).to_be_visible()
    open_tab(page, "Artifacts")
    expect(page.get_by_text("What from-the-form").first).to_be_visible()

    (second,) = [one for one in running.rounds(run) if one.name == f"{short} 2.1"]
    page.goto(of_run(running, second.id))
    expect(page.get_by_text("34 Task runs").first).to_be_visible()
    expect(page.locator("canvas").first).to_be_visible()
    keep(page, "4-round")
    open_tab(page, "Task Runs")
    steps = ("train", "evaluate", "advertise", "share", "mask", "confirm", "reveal")
    names = [f"{step}[{site}]" for step in steps for site in running.home.sites]
    for name in (*names, "roster", "inboxes", "survivors", "quorum", "unmask", "average"):
        expect(page.get_by_text(name, exact=True).first).to_be_attached()
    keep(page, "5-steps")


def cancel(page: Page) -> None:
    """Press the page's button that cancels a run, and say yes."""
    page.get_by_role("button", name="Cancel").first.click()
    page.get_by_role("button", name="Confirm").click()


def test_cancelling_in_the_ui_withdraws_a_site_and_ends_a_training(running: Consortium, page: Page) -> None:
    run = running.submit(running.plan(rounds=200, min_sites=3, name="cancelled"))
    eventually(lambda: running.sums(run) >= 1, 180)
    (west,) = running.participations(run, "west")
    page.goto(of_run(running, west.id))
    expect(page.get_by_text("Running").first).to_be_visible()
    keep(page, "6-participation")
    cancel(page)
    ended = running.ended(west.id, 120)
    assert ended.state is not None and ended.state.type == StateType.CANCELLED
    assert "has withdrawn" in (ended.state.message or "")

    def without() -> bool:
        return any("withdrawn" in record["dropped"].get("west", "") for record in running.progress(run)["records"])

    eventually(without, 120)
    assert len(running.participations(run, "west")) == 1

    page.goto(of_run(running, run))
    cancel(page)
    state = running.ended(run, 120).state
    assert state is not None and state.type == StateType.CANCELLED
    for site in ("north", "east", "south"):
        state = running.ended(running.participations(run, site)[0].id, 120).state
        assert state is not None and state.message == "The training has ended."
