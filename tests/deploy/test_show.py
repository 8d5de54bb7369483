"""What a run prints: a line for each sum, and a table of the metrics that apply."""

from pathlib import Path

import pytest

from deploy.show import Screen
from flows.report import Report, RoundRecord
from tests.flows.consortium import plan_for
from tests.flows.tasks import Tiny


def shown(record: RoundRecord, capsys: pytest.CaptureFixture) -> str:
    screen = Screen(plan_for(), Tiny(), Path("folder"))
    screen.finished(record)
    screen.summary(Report("t", "0" * 64, "train", None, (), record, None, False), {"pooled": {"examples": 9.0}})
    return str(capsys.readouterr().out)


def test_metrics_that_no_model_has_have_no_column_and_the_reason_is_said(capsys: pytest.CaptureFixture) -> None:
    metrics = {"examples": 9.0, "loss": 16.0, "capped": 9.0, "loss_cap": 16.0}
    out = shown(RoundRecord("evaluation", 3, 1, ("ann", "bob"), {}, metrics, 0.1, 0.2, 100), capsys)
    assert not {"accuracy", "AUROC", "AUPRC", "observed/expected"} & set(out.split())
    assert "evaluation 3.1: loss 16.0000 (9 of 9 capped at 16) (0.2 s); the test examples are of one class" in out
    assert "Note: the test examples are of one class: metrics of two classes do not apply." in out


def test_what_the_bins_leave_open_is_in_the_round_s_line_and_explained(capsys: pytest.CaptureFixture) -> None:
    metrics = {"examples": 9.0, "loss": 0.5, "accuracy": 0.8, "auroc": 0.75, "auprc": 0.5}
    record = RoundRecord(
        "evaluation", 3, 1, ("ann",), {}, metrics, 0.1, 0.2, 100, bounds={"auroc": (0.7, 0.8), "auprc": (0.499, 0.501)}
    )
    out = shown(record, capsys)
    assert "loss 0.5000, accuracy 0.8000, auroc 0.7500 (0.700 to 0.800) (0.2 s)\n" in out
    assert "In brackets: what the metric is within, whatever the bins of its histogram hide." in out


@pytest.mark.parametrize("columns", [40, 80, 120, 200])
def test_the_table_is_lines_where_it_does_not_fit_the_screen(
    columns: int, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"FORCE_COLOR": "1", "TERM": "xterm", "COLUMNS": str(columns)}.items():
        monkeypatch.setenv(name, value)
    metrics = {"examples": 9.0, "loss": 0.5, "accuracy": 0.8, "auroc": 0.75, "auprc": 0.5, "observed_expected": 1.25}
    out = shown(RoundRecord("evaluation", 3, 1, ("ann",), {}, metrics, 0.1, 0.2, 100), capsys)
    assert ("━" in out) == (columns >= 120)
    assert all(len(line) <= columns for line in out.splitlines() if "│" in line)
    if columns < 120:
        assert "federated: accuracy 0.800, AUROC 0.750, AUPRC 0.500, loss 0.500, observed/expected 1.250" in out
