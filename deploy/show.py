"""What a run shows: live progress, the final table, what was protected and how, the plot of the rounds."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from flows.plan import Plan
from flows.report import OPEN, UNCLEAR, Report, RoundRecord, metric_text, notes
from ml_tasks.task import Task

SHOWN = {
    "accuracy": "accuracy",
    "auroc": "AUROC",
    "auprc": "AUPRC",
    "loss": "loss",
    "observed_expected": "observed/expected",
}
"""The metrics in the final table, and their headings; one that no model has is left out."""
WIDEST_TABLE, NO_SCREEN = 1000, 110
"""Columns that any table fits, and those of what is no screen."""


class Screen:
    """Tells the operator how a training goes: a line for each sum, and a progress bar on a terminal.

    Args:
        plan: the plan.
        task: its task.
        folder: the run's.
        aside: whether standard output is the report's alone; everything goes to standard error then.
    """

    def __init__(self, plan: Plan, task: Task, folder: Path, aside: bool = False) -> None:
        self._plan, self._task, self._folder = plan, task, folder
        # As they are now: what a task prints is sent elsewhere while it runs.
        self._out = Console(file=sys.stderr if aside else sys.stdout, highlight=False)
        self._err = Console(file=sys.stderr, highlight=False)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._progress = Progress(*columns, console=self._err, disable=not self._err.is_terminal)
        self._bar = self._progress.add_task("starting", total=plan.rounds)
        self._introduced = False

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def _introduce(self) -> None:
        """Say what is running, once it has got as far as its first sum: what is refused before is one line."""
        plan, rules = self._plan, self._plan.protection
        self._say(f"{self._task.title}. {self._task.provenance}")
        self._say(
            f"{len(plan.sites)} sites ({', '.join(plan.sites)}), {plan.rounds} rounds, {rules.protocol}, "
            f"threshold {rules.threshold}, colluding {rules.colluding}"
        )
        self._say(f"The run's folder is {self._folder}")
        self._introduced = True

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def finished(self, record: RoundRecord) -> None:
        """Tell of a finished sum."""
        if not self._introduced:
            self._introduce()
        name = f"{record.purpose} {record.round}.{record.attempt}"
        figures = ", ".join(
            f"{key} {metric_text(record, key, 4)}" for key in ("loss", "accuracy", "auroc") if key in record.metrics
        )
        dropped = "".join(f"; without {site}: {reason}" for site, reason in sorted(record.dropped.items()))
        faults = "".join(f"; set aside: {fault}" for fault in record.faults)
        self._progress.update(self._bar, completed=min(record.round, self._plan.rounds), description=name)
        odd = "".join(f"; {note}" for note in notes(record))
        self._say(f"{name}: {figures or 'done'} ({record.total_s:.1f} s){dropped}{faults}{odd}")

    def summary(self, report: Report, compared: dict[str, dict[str, float]]) -> None:
        """Print the final table, what was protected, and where everything lies."""
        title = f"{self._task.title}: pooled test data of {len(self._plan.sites)} sites"
        alone = replace(report.final, intervals={}, bounds={})
        records = {"federated": report.final} | {
            name: replace(alone, metrics=metrics) for name, metrics in compared.items()
        }
        known = [key for key in SHOWN if any(key in record.metrics for record in records.values())]
        heads = [*(SHOWN[key] for key in known), "test examples"]
        rows = [
            [name, *(metric_text(record, key, 3) for key in known), metric_text(record, "examples", 0)]
            for name, record in records.items()
        ]
        print_table(self._out, title, ["model", *heads], rows)
        for line in (*(f"Note: {note}." for note in notes(report.final)), *metric_notes(report.final)):
            self._out.print(line, soft_wrap=True, markup=False)
        for line in protection_lines(self._plan, report):
            self._out.print(line, soft_wrap=True)
        self._out.print(f"Model, report, receipt and plot are in {self._folder}", soft_wrap=True)

    def _say(self, line: str) -> None:
        self._out.print(line, soft_wrap=True, markup=False)


def print_table(
    console: Console, title: str, heads: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1
) -> None:
    """Print a table; where the screen is too narrow for it, a line for each of its rows.

    Args:
        console: where to.
        title, heads, rows: what.
        left: how many columns are names, which stand on the left.
    """
    table = Table(title=title)
    for place, head in enumerate(heads):
        table.add_column(head, justify="left" if place < left else "right")
    for row in rows:
        table.add_row(*row)
    width = console.width if console.is_terminal else max(console.width, NO_SCREEN)
    if console.measure(table, options=console.options.update(width=WIDEST_TABLE)).maximum <= width:
        console.print(table, width=width)
        return
    console.print(f"{title}:", soft_wrap=True, markup=False)
    for row in rows:
        figures = ", ".join(f"{head} {text}" for head, text in zip(heads[left:], row[left:], strict=True))
        console.print(f"{' '.join(row[:left])}: {figures}", soft_wrap=True, markup=False)


def metric_notes(record: RoundRecord) -> list[str]:
    """Say what the intervals of metrics mean, and which metrics have no number and why."""
    if not record.intervals:
        wide = any(high - low > 2 * OPEN for low, high in record.bounds.values())
        return ["In brackets: what the metric is within, whatever the bins of its histogram hide."] if wide else []
    lines = [
        "In brackets: 90 % intervals, of the noise alone. Each metric is of these examples; how others would fare is "
        "another question."
    ]
    return [*lines, f"{', '.join(record.unclear)}: {UNCLEAR}."] if record.unclear else lines


def protection_lines(plan: Plan, report: Report) -> list[str]:
    """Say what was protected and how, and what was not."""
    rules = plan.protection
    if rules.protocol == "plain":
        return ["NOT PROTECTED: the plain protocol shows every site's update and counts to the coordinator."]
    records = report.records
    smallest = min(len(record.survivors) for record in records)
    return [
        "Protected: every update, weight, metric and statistic left its site inside a masked vector (secure "
        f"aggregation, active adversary); the coordinator learnt {len(records)} sums over {smallest} sites or more.",
        f"That holds against the coordinator together with {rules.colluding} colluding site(s); no sum is opened with "
        f"fewer than {rules.threshold} sites.",
        privacy_line(report),
        f"Each site sent at most {max(record.bytes_per_site for record in records):,} bytes a round; "
        f"{sum(record.clamped for record in records)} values were clamped to their range.",
    ]


def privacy_line(report: Report) -> str:
    """Say what differential privacy the training had."""
    if report.privacy is None:
        return "Not protected: no differential privacy was used, so that sums and model may tell of single records."
    unit, epsilon, delta = (report.privacy[name] for name in ("unit", "epsilon", "delta"))
    return (
        f"Differential privacy: epsilon {epsilon:.4g} at delta {delta:g} for adding or removing one {unit}, with all "
        "that was published: statistics, steps and final metrics."
    )


def plot_metrics(path: Path, report: Report) -> None:
    """Draw the metrics of the incoming model by round; the test data are not in it."""
    from matplotlib.figure import Figure  # a second to load, at the end of a run instead of at every start
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    rounds = [record.round for record in report.rounds]
    for name, style in (("accuracy", "o-"), ("auroc", "s-"), ("loss", "^--")):
        values = [record.metrics.get(name, float("nan")) for record in report.rounds]
        axes.plot(rounds, values, style, label=name, markersize=4)
    axes.set(
        xlabel="round", ylabel=f"incoming model on the {report.monitored} examples of all sites", title=report.training
    )
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150)
