"""The command line.

Exit codes: 0 done; 1 failed; 2 refused or bad input, with one line that says what and how to mend it.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer

from deploy import EXAMPLE, SERVER_SETTINGS, ending, home, machine

# Read by Prefect when it is first imported, which the commands below do; what the operator has set stays.
for name, value in {
    **SERVER_SETTINGS,
    "PREFECT_LOGGING_LEVEL": "WARNING",
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",  # errors reach the terminal as one line of ours
    "PREFECT_WORKER_QUERY_SECONDS": "4",  # where five looked every two, SQLite was seen to lock a server out
}.items():
    os.environ.setdefault(name, value)

from deploy import author, coordinator, publish, records, renewing, site, smoke, steward, tidying  # noqa: E402, F401 - after the settings  # noqa: E402, F401
from deploy import submit as submitting  # noqa: E402

STARTING = "Starting. The first time takes longer: a Prefect server makes its database."

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
consortium_app = typer.Typer(
    no_args_is_help=True, help="Check the consortium file, which holds everybody's public keys."
)
app.add_typer(site.app, name="site")
app.add_typer(coordinator.app, name="coordinator")
app.add_typer(author.app, name="author")
app.add_typer(consortium_app, name="consortium")


@app.callback()
def fedseal() -> None:
    """Secure federated learning as Prefect workflows."""


@app.command("version")
def show_version() -> None:
    """Print the version."""
    print(version("fedseal"))


@app.command()
def run(
    plan: Annotated[Path | None, typer.Argument(help="A plan in TOML; without one, the embedded example.")] = None,
    data: Annotated[Path | None, typer.Option(help="Folder with the plan's data set.")] = None,
    overrides: Annotated[list[str] | None, typer.Option("--set", help="Override a field of the plan: a.b=c.")] = None,
    json: Annotated[Path | None, typer.Option(help="Write the report to this file.")] = None,
    resume: Annotated[Path | None, typer.Option(help="Go on with the run in this folder.")] = None,
    baselines: Annotated[bool, typer.Option(help="Also train each site alone and all pooled, to compare.")] = True,
    accept_code: Annotated[
        bool, typer.Option("--accept-code", help="Resume with other code than the plan names; the receipt names that.")
    ] = False,
    sandbox: Annotated[
        bool, typer.Option("--sandbox", help="Do each site's local work in a locked child process.")
    ] = False,
) -> None:
    """Run a federated training on this machine: every site in this process, each with its own keys and vault."""
    print(STARTING, file=sys.stderr, flush=True)
    with fitting():
        machine.check_home()
        machine.named_server()  # before anything else imports Prefect, which fails where its settings do
        from deploy import run as runs

        options = runs.Options(data, json, baselines, accept_code=accept_code, sandbox=sandbox)
        try:
            if resume is None:
                runs.start(plan, tuple(overrides or ()), options)
            else:
                runs.resume(resume, plan, tuple(overrides or ()), options)
        except runs.Failure as failure:
            raise site.fail(failure, failure.exit_code) from None


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="The folder of a run, in local mode or in the coordinator's runs.")],
    to: Annotated[Path | None, typer.Option(help="The file to write; default: last-model.safetensors there.")] = None,
) -> None:
    """Take the last model out of a training that has not finished."""
    from deploy import run as runs
    from deploy.export import export

    try:
        print(export(run, to))
    except runs.Failure as failure:
        raise site.fail(failure, failure.exit_code) from None


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="The folder of a run that has finished.")],
    data: Annotated[Path | None, typer.Option(help="Folder with the plan's data set, for the baselines.")] = None,
    json: Annotated[Path | None, typer.Option(help="Write the report to this file, too.")] = None,
    baselines: Annotated[bool, typer.Option(help="Train each site alone and all pooled, to compare.")] = True,
) -> None:
    """Make report, baselines and plot of a finished training again."""
    from deploy import run as runs
    from deploy.export import report

    with fitting():
        try:
            report(run, runs.Options(data, json, baselines))
        except runs.Failure as failure:
            raise site.fail(failure, failure.exit_code) from None


@app.command("plan")
def price_plan(
    plan: Annotated[Path, typer.Argument(help="A plan in TOML.")],
    overrides: Annotated[list[str] | None, typer.Option("--set", help="Override a field of the plan: a.b=c.")] = None,
) -> None:
    """Show what a plan costs and what it protects. Exit code 2, with the reason, if it is refused."""
    from deploy import run as runs
    from deploy.price import price, show_price
    from flows.code_digest import with_code
    from flows.plan import read_plan
    from ml_tasks.training import describe

    try:
        checked, task, _ = runs.check_plan(lambda: with_code(read_plan(plan, tuple(overrides or ()))))
    except runs.Failure as failure:
        raise site.fail(failure, failure.exit_code) from None
    sizes = describe(task).sizes
    show_price(checked, task, sizes, price(checked, sizes))


@app.command()
def code(task: Annotated[str, typer.Argument(help="A task, module:Class.")]) -> None:
    """Print the digest of a task's code, over all files of its package. None of them is run."""
    from flows.code_digest import code_digest
    from flows.plan import PlanError

    try:
        print(code_digest(task))
    except PlanError as error:
        raise site.fail(error) from None


@app.command()
def submit(
    plan: Annotated[Path | None, typer.Argument(help="A plan in TOML; without one, the embedded example.")] = None,
    overrides: Annotated[list[str] | None, typer.Option("--set", help="Override a field of the plan: a.b=c.")] = None,
    folder: Annotated[
        Path | None,
        typer.Option(help="The coordinator's folder: server and credentials.", envvar="FEDSEAL_COORDINATOR"),
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", help="Print its rounds, and wait for its end.")] = False,
) -> None:
    """Start a training; print the id of its flow run. With --follow exit code 1 unless it ends well."""
    from flows.plan import PlanError, read_plan

    try:
        checked = read_plan(plan or EXAMPLE, tuple(overrides or ()))
    except PlanError as error:
        raise site.fail(error) from None
    submitting.submit(folder, {"plan": checked.model_dump(mode="json")}, follow)


@app.command()
def up(
    sites: Annotated[int, typer.Option(help="How many sites.", min=3, max=40)] = 4,
    port: Annotated[int, typer.Option(help="Port of the Prefect server on loopback.", min=1, max=65535)] = 4200,
    folder: Annotated[Path | None, typer.Option(help="Folder of all parties; default: $FEDSEAL_HOME/up.")] = None,
) -> None:
    """Run a server, sites and a coordinator on this machine, with the UI; Ctrl-C ends all of them."""
    from deploy.up import up

    with site.one_line():
        up(folder or home() / "up", sites, port)


@app.command()
def verify(
    receipt: Annotated[Path, typer.Argument(help="A training's receipt.json.")],
    consortium: Annotated[Path, typer.Option(help="The consortium file, as you got it from a source that you trust.")],
    model: Annotated[Path | None, typer.Option(help="Also check that this is the training's model.")] = None,
) -> None:
    """Check, offline, who took part in a training and under which plan. Exit code 1 if the receipt does not verify."""
    from deploy import verify as checks
    from protocols.consortium import ConsortiumError
    from protocols.receipt import ReceiptError

    try:
        lines = checks.verify(receipt, consortium, model)
    except (checks.Unreadable, ConsortiumError, ReceiptError) as error:
        raise site.fail(error, 1 if isinstance(error, ReceiptError) else 2) from None
    print("\n".join(lines))


@consortium_app.command("check")
def check_consortium(file: Annotated[Path, typer.Argument(help="A consortium file.")]) -> None:
    """Check a consortium file and print the keys' fingerprints, to compare with the others by phone or in person."""
    from protocols.consortium import ConsortiumError, fingerprint, read_consortium

    try:
        consortium = read_consortium(file)
    except ConsortiumError as error:
        raise site.fail(error) from None
    parties = {f"site {name}": key for name, key in sorted(consortium.sites.items())}
    authors = {f"author {name}": key for name, key in sorted(consortium.authors.items())}
    for party, key in {"coordinator": consortium.coordinator, **parties, **authors}.items():
        print(f"{party:<37} {fingerprint(key)}")


@contextmanager
def fitting() -> Iterator[None]:
    """Turn what is wrong with this machine into one line."""
    try:
        yield
    except machine.Unfit as unfit:
        raise site.fail(unfit, unfit.exit_code) from None


def main() -> None:
    """The console script."""
    ending.listen()
    with ending.one_line_at_most():
        try:
            machine.prepare()
        except machine.Unfit as unfit:
            sys.exit(site.fail(unfit).exit_code)
        app()


if __name__ == "__main__":
    main()
