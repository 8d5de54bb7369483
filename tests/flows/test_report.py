"""How a sum's numbers are told: with their bounds and caps, and what is odd about them."""

import json

import pytest

from flows.report import RoundRecord, metric_text, notes, shares_text


def record(purpose: str = "training", metrics: dict[str, float] | None = None, **fields: object) -> RoundRecord:
    return RoundRecord(purpose, 1, 1, ("ann", "bob"), {}, metrics or {}, 0.1, 0.2, 100, **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("bounds", "text"),
    [((0.8113, 0.8151), "0.8132"), ((0.8067, 0.8196), "0.8132 (0.807 to 0.820)")],
)
def test_what_the_bins_leave_open_is_shown_where_it_is_above_two_thousandths(
    bounds: tuple[float, float], text: str
) -> None:
    assert metric_text(record(metrics={"auroc": 0.81315}, bounds={"auroc": bounds}), "auroc", 4) == text


def test_a_loss_that_was_capped_is_shown_with_its_cap() -> None:
    capped = {"loss": 16.0, "examples": 1200.0, "capped": 1100.0, "loss_cap": 16.0}
    assert metric_text(record(metrics=capped), "loss", 4) == "16.0000 (1,100 of 1,200 capped at 16)"
    assert metric_text(record(metrics={"loss": 0.5}), "loss", 4) == "0.5000"


def test_a_tensor_of_which_more_than_a_hundredth_was_clamped_is_named_with_its_share() -> None:
    said = record(clamped_shares={"0.weight": 0.009, "1.running_var": 0.34, "1.bias": 0.02})
    (note,) = notes(said)
    assert note.startswith("clamped to their range: 34% of 1.running_var, 2% of 1.bias: lower local.learning_rate")
    assert said.to_json()["clamped_shares"]["0.weight"] == 0.009
    assert json.loads(json.dumps(said.to_json()))["notes"] == [note]


def test_of_many_tensors_the_most_clamped_are_named_and_the_others_counted() -> None:
    shares = {f"{layer}.weight": layer / 100 for layer in range(1, 9)}
    assert shares_text(shares).startswith("8% of 8.weight, 7% of 7.weight")
    assert shares_text(shares).endswith(" and 3 more")


@pytest.mark.parametrize(
    ("said", "note"),
    [
        (record("statistics", outside={"age": 3, "lactate": 1200}), "bounds: 3 of age, 1,200 of lactate"),
        (record(grid_noise=0.0255), "rounding adds 0.025 to each weight: lower protection.max_examples"),
        (record("evaluation", {"examples": 0.0}), "no site has a test example"),
        (record("evaluation", {"examples": 9.0, "loss": 0.1}), "the test examples are of one class"),
    ],
)
def test_what_is_odd_is_said_with_its_number(said: RoundRecord, note: str) -> None:
    (found,) = notes(said)
    assert note in found


def test_nothing_is_said_of_a_sum_that_is_sound_nor_of_a_noised_one() -> None:
    assert notes(record("evaluation", {"examples": 9.0, "loss": 0.1, "auroc": 0.5}, grid_noise=1e-6)) == []
    assert notes(record("evaluation", {"examples": 9.0}, intervals={"examples": (1.0, 20.0)}, unclear=("auroc",))) == []
