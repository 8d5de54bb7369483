"""What a participation leaves behind when it ends: nothing, though a training is killed in the middle of a question."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from prefect.client.orchestration import SyncPrefectClient
from prefect.states import Cancelled, Completed, Crashed

from flows.leftovers import Hold
from flows.mailbox import Mailbox, answer_key, pack, request_key
from flows.messages import AskFinish
from flows.participation import Seat, attend
from protocols.messages import COORDINATOR, envelope
from tests.flows.consortium import plan_for, trial
from tests.flows.server import COORDINATOR_KEY, client, keys_of, new_run

__all__ = ["client"]


@pytest.fixture
def seat(client: SyncPrefectClient, tmp_path: Path) -> Iterator[Seat]:
    """The seat of the site cat, in a training that nobody coordinates."""
    with trial(tmp_path, plan_for()) as run:
        site = run.local.sites.sites["cat"]
        yield Seat(site, "tiny-trial", client, new_run(client), new_run(client), run.local.exchange, 600.0)


def test_a_training_that_ends_in_the_middle_of_a_question_leaves_no_message(seat: Seat) -> None:
    """The question comes in the same look that finds the training ended, so that it is never answered."""
    request = envelope(COORDINATOR_KEY, "ask/finish", "1" * 64, "cat", AskFinish("tiny-trial"))
    requests, answers = Mailbox(seat.client, seat.run), Mailbox(seat.client, seat.training_run)
    for place, key in ((requests, request_key(request)), (answers, answer_key("cat", request_key(request)))):
        place.put(key, pack((request,), seat.exchange, COORDINATOR)[0])
    answers.put(others := answer_key("ann", request_key(request)), "another site's")
    seat.client.set_flow_run_state(seat.training_run, Crashed(), force=True)

    ended = attend(seat, handle=lambda key: pytest.fail("answered, though the training has ended"))
    assert ended.type == Completed().type
    assert keys_of(requests) == []
    assert keys_of(answers) == [others]


def test_a_second_participation_that_is_ended_leaves_the_first_one_s_work(seat: Seat) -> None:
    """Whoever writes to the server can have one started in the same training, and end it (found by replaying)."""
    first = Hold(seat.site.vault, seat.training)
    work = seat.site.vault.folder / "work" / seat.training / "0" / "train.values"
    work.parent.mkdir(parents=True)
    work.touch()
    seat.client.set_flow_run_state(seat.run, Crashed(), force=True)
    attend(seat, handle=lambda key: pytest.fail("answered, though ended"))
    assert work.exists()
    first.close()
    attend(replace(seat), handle=lambda key: pytest.fail("answered, though ended"))
    assert not work.exists()


def test_a_withdrawal_by_cancelling_is_in_the_site_s_log(seat: Seat) -> None:
    seat.client.set_flow_run_state(seat.run, Cancelled(), force=True)
    assert attend(seat, handle=lambda key: pytest.fail("answered, though cancelled")).type == Cancelled().type
    (line,) = seat.site.record.read()
    assert (line.event, line.fields["training"]) == ("withdrawn", "tiny-trial")
    assert seat.withdrawn
