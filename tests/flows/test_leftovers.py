"""What is left at a site after each ending of a training: in its work folder, its vault, and on the exchange."""

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from flows.leftovers import Hold, left_over, tidy, unused
from flows.messages import AskFinish, AskWork, join_context
from flows.site import Site
from protocols.contexts import AttemptContext
from protocols.messages import AskAdvertise, AskMask, AskShare
from protocols.secagg_coordinator import inboxes, open_roster
from protocols.vault import Decision
from tests.flows.consortium import Trial, plan_for, trial
from tests.flows.test_site import join, send

HOUR_S, WEEK_S = 3600.0, 604_800.0


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Trial]:
    """A training whose sites have masked in its first round, and that is then cut off."""
    with trial(tmp_path, plan_for("Bare")) as made:
        masked(made)
        yield made


def masked(run: Trial, attempt: int = 1) -> AttemptContext:
    """Have every site join, work and mask in the first round."""
    context, sites = run.live.context("training", 1, attempt), run.plan.sites
    for site in sites:
        join(run, site)
    roster = open_roster(
        context, [send(run, site, "advertise", context.digest, AskAdvertise(context)) for site in sites]
    )
    dealt = {}
    for site in sites:
        request = AskShare(roster.envelopes)
        dealt[site] = _answers(run, site, "share", context.digest, request)
        for work in ("train", "evaluate"):
            assert send(run, site, work, context.digest, AskWork(context)).kind == "done"
    dealings = inboxes(roster, dealt)
    for site in sites:
        assert send(run, site, "mask", roster.round, AskMask(dealings.inbox(site))).kind == "masked"
    return context


def _answers(run: Trial, site: str, step: str, context: str, body: object):  # type: ignore[no-untyped-def]
    from protocols.messages import envelope

    request = envelope(run.live.identity, f"ask/{step}", context, site, body)
    return run.local.sites.sites[site].answer(request)


def row(run: Trial) -> tuple[int, int, int, int]:
    """What is left of the training at ann: pieces of local work, secrets, masked vectors in the vault, objects."""
    site = run.local.sites.sites["ann"]
    work = [path for path in (site.vault.folder / "work").rglob("*.safetensors")]
    secrets = sum(context.state is not None for context in site.vault.of_training(run.live.training))
    vectors = list((site.vault.folder / "masked").iterdir())
    objects = [path for path in (site.vault.folder.parents[1] / "exchange" / "ann").glob("*") if path.is_file()]
    return len(work), secrets, len(vectors), len(objects)


def finish(run: Trial, site: Site) -> None:
    context = join_context(run.live.training, run.plan.digest)
    assert send(run, "ann", "finish", context, AskFinish(run.live.training)).kind == "done"


def withdraw(run: Trial, site: Site) -> None:
    site.vault.decide(Decision(run.live.training, run.plan.digest, "", "revoked"))


def tidied(run: Trial, site: Site, later_s: float = 0.0) -> None:
    """Tidy up, some time later."""
    for path in (site.vault.folder / "work" / run.live.training).iterdir():
        os.utime(path, (time.time() - later_s,) * 2)
    tidy(site.vault, run.local.exchange, work_s=HOUR_S, keep_s=WEEK_S)


ENDINGS: dict[str, tuple[Callable[[Trial, Site], None], tuple[int, int, int, int]]] = {
    "it runs": (lambda run, site: None, (2, 1, 1, 1)),
    "finished": (finish, (0, 0, 0, 0)),
    "failed or cancelled: the participation ends": (lambda run, site: site.rest(run.live.training), (0, 1, 1, 0)),
    "the site has withdrawn": (lambda run, site: site.leave(run.live.training), (0, 0, 0, 0)),
    "killed, and started again soon": (lambda run, site: tidied(run, site), (2, 1, 1, 1)),
    "killed, and tidied an hour later": (lambda run, site: tidied(run, site, 2 * HOUR_S), (0, 1, 1, 0)),
    "killed, and tidied a week later": (lambda run, site: tidied(run, site, 2 * WEEK_S), (0, 0, 0, 0)),
    "killed, withdrawn and tidied": (lambda run, site: (withdraw(run, site), tidied(run, site)), (0, 0, 0, 0)),
}
"""By ending: how it comes, and what is then left (SPEC 7.3)."""


@pytest.mark.parametrize("ending", ENDINGS)
def test_what_is_left_after_each_ending(run: Trial, ending: str) -> None:
    how, left = ENDINGS[ending]
    how(run, run.local.sites.sites["ann"])
    assert row(run) == left
    assert bool(left_over(run.local.sites.sites["ann"].vault)) == any(left)


def test_what_a_participation_is_in_is_not_tidied_up(run: Trial) -> None:
    site = run.local.sites.sites["ann"]
    first, second = Hold(site.vault, run.live.training), Hold(site.vault, run.live.training)
    assert not second.last()
    second.close()
    tidied(run, site, 2 * WEEK_S)
    assert row(run) == (2, 1, 1, 1)
    assert first.last()
    first.close()
    with unused(site.vault, run.live.training) as free:
        assert free


def test_a_held_round_is_finished_after_the_participation_has_ended(run: Trial) -> None:
    """The secrets that stay are those: the site goes on at ``confirm`` in its next participation."""
    from protocols.messages import AskConfirm

    site = run.local.sites.sites["ann"]
    site.rest(run.live.training)
    (context,) = site.vault.of_training(run.live.training)
    assert send(run, "ann", "confirm", context.round_context, AskConfirm(run.plan.sites)).kind == "confirmation"


def test_an_exchange_that_is_away_keeps_no_local_work_there(run: Trial) -> None:
    from flows.exchange import ExchangeAway

    site = run.local.sites.sites["ann"]
    exchange = site.vault.folder.parents[1] / "exchange"
    exchange.rename(exchange.with_name("away"))
    exchange.touch()
    run.local.exchange._patience_s = 0
    with pytest.raises(ExchangeAway):
        site.leave(run.live.training)
    assert row(run) == (0, 0, 0, 0)
    exchange.unlink()
    exchange.with_name("away").rename(exchange)
    tidy(site.vault, run.local.exchange, work_s=-1, keep_s=WEEK_S)
    assert row(run) == (0, 0, 0, 0) and left_over(site.vault) == []


def test_a_data_set_that_one_steward_takes_away_is_that_site_s_refusal(tmp_path: Path) -> None:
    from tests.flows.test_site import refusal

    with trial(tmp_path / "run", plan_for("Bare")) as run:
        site, folder = run.local.sites.sites["ann"], tmp_path / "data"
        folder.mkdir()
        site._data = {"tiny": folder}
        join(run, "ann")
        folder.rmdir()
        context = run.live.context("training", 1, 1)
        reason = refusal(send(run, "ann", "advertise", context.digest, AskAdvertise(context)))
        assert reason == "the data set tiny is not there: its folder was taken away"
        site._data = {}
        assert "is not one of this site's" in refusal(
            send(run, "ann", "advertise", context.digest, AskAdvertise(context))
        )
        site._data, site._policy = {"tiny": tmp_path}, site._policy.model_copy(update={"data": ["other"]})
        assert "the data set tiny may not be used here" in refusal(join(run, "ann"))
