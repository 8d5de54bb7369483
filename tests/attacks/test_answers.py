"""Whoever carries messages puts a site's genuine answer to one question under another: it is no answer to that one.

Finding 14: the signed `done` of `ask/train`, copied under the key of `ask/evaluate`, had an honest site blamed for bad
input and the whole training stopped.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from flows.collect import Absent
from flows.messages import AskWork
from flows.session import Session
from flows.site import Answer
from protocols import secagg_coordinator as coordinator
from protocols.contexts import AttemptContext
from protocols.messages import AskAdvertise, AskMask, AskShare, Envelope, envelope
from tests.flows.consortium import Trial, plan_for, trial
from tests.flows.test_site import join, refusal

SITES = ("ann", "bob", "cat", "dan")


class Meddler:
    """A carrier that gives kept answers in place of some, and keeps the question to itself."""

    def __init__(self, live: Session) -> None:
        self.sites = live.sites
        self.instead: dict[tuple[str, str], Answer] = {}

    def ask(self, site: str, request: Envelope, deadline_s: float) -> Answer | Absent:
        given = self.instead.get((site, request.kind))
        return self.sites.ask(site, request, deadline_s) if given is None else given

    def close(self) -> None:
        """Nothing is held."""


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Trial]:
    """A consortium in which everybody has joined, behind a carrier that meddles."""
    with trial(tmp_path, plan_for(task="Bare")) as made:
        for site in SITES:
            assert join(made, site).kind == "joined"
        made.live.sites = Meddler(made.live)
        yield made


def asked(run: Trial, site: str, step: str, context: str, body: object) -> Answer | Absent:
    """What the coordinator takes for a site's answer."""
    return run.live.ask(site, step, context, body, 20.0)[0]


def to_shared(run: Trial, context: AttemptContext) -> coordinator.Dealings:
    """Run an attempt up to its shares; the sites' local work is for each test."""
    adverts = [asked(run, site, "advertise", context.digest, AskAdvertise(context))[0] for site in SITES]
    roster = coordinator.open_roster(context, adverts)
    body = AskShare(roster.envelopes)
    return coordinator.inboxes(roster, {site: asked(run, site, "share", context.digest, body) for site in SITES})


def test_done_of_one_question_is_no_answer_to_another_and_blames_nobody_s_data(run: Trial) -> None:
    context = run.live.context("training", 1, 1)
    dealings = to_shared(run, context)
    trained = asked(run, "ann", "train", context.digest, AskWork(context))
    assert [message.kind for message in trained] == ["done"]
    run.live.sites.instead["ann", "ask/evaluate"] = trained
    found = asked(run, "ann", "evaluate", context.digest, AskWork(context))
    assert found == Absent("no answer: ann: answer: it answers another request")

    # A coordinator that were fooled, and asked for the sum, would hear a refusal that blames no data.
    refused = asked(run, "ann", "mask", dealings.roster.round, AskMask(dealings.inbox("ann")))
    assert refused == Absent("refused mask: this site has not done its local work for this attempt")


def test_a_refusal_of_another_step_or_another_time_is_no_answer(run: Trial) -> None:
    context = run.live.context("training", 1, 1)
    early = envelope(run.live.identity, "ask/share", context.digest, "ann", AskShare(()))
    old = run.local.sites.sites["ann"].answer(early)
    assert "has not advertised" in refusal(old[0])
    for step in ("train", "advertise", "share"):
        run.live.sites.instead = {("ann", f"ask/{step}"): old}
        found = asked(run, "ann", step, context.digest, AskWork(context))
        assert found == Absent("no answer: ann: answer: it answers another request")


def test_what_a_site_says_under_the_name_of_another_request_does_not_verify(run: Trial) -> None:
    context = run.live.context("training", 1, 1)
    request = envelope(run.live.identity, "ask/share", context.digest, "ann", AskShare(()))
    (old,) = run.local.sites.sites["ann"].answer(request)
    other = envelope(run.live.identity, "ask/advertise", context.digest, "ann", AskAdvertise(context))
    run.live.sites.instead["ann", "ask/advertise"] = (replace(old, answers=other.digest),)
    found = asked(run, "ann", "advertise", context.digest, AskAdvertise(context))
    assert found == Absent("ann: refusal: the signature does not verify")


def test_every_answer_of_a_training_names_its_request_and_comes_again_byte_for_byte(tmp_path: Path) -> None:
    with trial(tmp_path, plan_for(task="Bare")) as run:
        for site in SITES:
            join(run, site)
        context = run.live.context("training", 1, 1)
        to_shared(run, context)
        for site in SITES:
            for step in ("train", "evaluate"):
                asked(run, site, step, context.digest, AskWork(context))
        for request in run.sites.requests:
            first, again = (run.local.sites.sites[request.receiver].answer(request) for _ in range(2))
            assert first == again
            assert {message.answers for message in first} == {request.digest}
