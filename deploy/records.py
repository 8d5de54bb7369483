"""``fedseal site status``, ``ledger`` and ``log``: what the data steward reads, in words or JSON (SPEC 7.1, 12.8)."""

import json
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from deploy.accounts import Account, Total, accounts, totals
from deploy.site import HERE, Folder, app, fail, one_line, one_printed_line
from flows.sandbox.host import layers
from flows.settings import SiteFolder
from flows.site_log import LogChanged, LogLine, SiteLog
from protocols.consortium import fingerprint
from protocols.errors import Refused
from protocols.ledger import EMPTY_LEDGER, LedgerEntry, check_chain, same_content
from protocols.vault import Vault

SHOWN_FAILURES = 10
SHOWN_DIGITS = 12
"""Of a plan's digest in a line: enough to name it."""

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]


@app.command()
def status(folder: Folder = HERE, as_json: AsJson = False) -> None:
    """Show what failed here, what waits for your approval, and what became of each training."""
    with one_line():
        site = SiteFolder.read(folder)
        vault = site.open_vault()
    done, key = accounts(site, vault), vault.identity.public
    if as_json:
        failed = [asdict(failure) for failure in SiteLog(vault.folder).failures()]
        found = {layer.name: layer.holds for layer in layers()}
        print_json(
            site=site.name,
            key=key,
            fingerprint=fingerprint(key),
            failures=failed,
            trainings=list(map(asdict, done)),
            same_content=same_content(vault.ledger()),
            sandbox={"policy": site.policy.sandbox, "layers": found},
        )
        return
    for line in failure_lines(vault):
        print(line)
    print(f"{site.name}: key {key} (compare: {fingerprint(key)})")
    for groups in same_content(vault.ledger()):
        print(f"CAUTION {', '.join(groups)}: hold the same content, and their charges count against each other")
    for account in done:
        print("\n".join(account_lines(account)))
    if not done:
        print("no training yet")
    print(f"sandbox = {site.policy.sandbox}; on this host:")
    for layer in layers():
        print(f"  {layer.name}: {'holds' if layer.holds else 'does not hold'}: {layer.why}")


def failure_lines(vault: Vault) -> list[str]:
    """The latest failures of local work, which nobody outside the site is told of."""
    failures = SiteLog(vault.folder).failures()
    lines = [
        one_printed_line(
            f"FAILED {as_text(failure.time)} {failure.fields.get('step', 'work')} in "
            f"{failure.fields.get('training', 'a training')}: {failure.reason}"
        )
        for failure in failures[-SHOWN_FAILURES:]
    ]
    more = len(failures) - len(lines)
    return [f"{more} earlier failures are in {vault.folder}", *lines] if more else lines


def account_lines(account: Account) -> list[str]:
    """What became of a training, and what waits for the data steward."""
    end = "finished, " if account.finished else ""
    lines = [
        f"{account.training}: {account.word}, {end}{sum(account.sums.values())} sums confirmed, plan "
        f"{account.plan or 'unknown'}"
    ]
    if account.task:
        lines.append(f"  {one_printed_line(what_with_whom(account))}; {period(account)}")
    for plan in account.waiting:
        lines.append(f"  waits for you: plan {plan[:SHOWN_DIGITS]}: fedseal site show {account.training}")
    return lines


def what_with_whom(account: Account) -> str:
    """The task, the data set and the other sites of a training."""
    return f"{account.task} on {account.data}, with {', '.join(account.sites) or 'nobody else'}"


def period(account: Account) -> str:
    """From when to when a site was in a training, as its log knows."""
    if account.first is None or account.last is None:
        return "when is not in the log"
    return f"joined {as_text(account.first)}, last answer {as_text(account.last)}"


@app.command()
def ledger(
    folder: Folder = HERE,
    accept: Annotated[
        bool,
        typer.Option(
            "--accept", help="After the vault was moved or restored: you know what its data were charged since."
        ),
    ] = False,
    lines: Annotated[bool, typer.Option("--lines", help="Also print each line of the ledger.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show what each training has cost, with totals by data set. Exit code 2 if a line was changed."""
    with one_line():
        site = SiteFolder.read(folder)
        vault = site.open_vault()
    try:
        check_chain(site.name, vault.ledger_lines())
    except Refused as refused:
        raise fail(refused.reason) from None
    if accept:
        with one_line(), vault.exclusive():
            vault.enter(LedgerEntry("accepted", EMPTY_LEDGER))
    done, entries = accounts(site, vault), vault.ledger()
    summed = [account for account in done if any(account.sums.values()) or account.epsilon is not None]
    groups, same = totals(site, vault, summed), same_content(entries)
    if as_json:
        print_json(
            site=site.name,
            trainings=list(map(asdict, summed)),
            totals=list(map(asdict, groups)),
            same_content=same,
            lines=list(map(asdict, entries)),
        )
        return
    for account in summed:
        print(cost_line(account))
    for number, entry in enumerate(entries, start=1):
        if lines or entry.kind in ("restored", "accepted"):
            print(entry_line(vault, number, entry))
    for total in groups:
        print(total_line(total))
    for names in same:
        print(f"{', '.join(names)}: hold the same content, and count against each other")
    if not entries:
        print("no sum yet")


def cost_line(account: Account) -> str:
    """What a training has summed, when, with whom, and what that has cost."""
    sums = (
        ", ".join(f"{count} {purpose}" for purpose, count in sorted(account.sums.items()) if count) or "none confirmed"
    )
    price = "no privacy" if account.epsilon is None else f"epsilon {account.epsilon:.4g} at delta {account.delta:g}"
    what = what_with_whom(account) if account.task else "task and data are not in the log"
    return one_printed_line(f"{account.training}: {what}; {period(account)}; sums: {sums}; {price}")


def entry_line(vault: Vault, number: int, entry: LedgerEntry) -> str:
    """A line of the ledger, with the round that it is of."""
    context = vault.find(entry.context)
    where = (
        f"{context.training} {context.purpose} round {context.round}.{context.attempt}" if context else entry.context
    )
    return f"{number}: {entry.kind}{f' {entry.charge.data}' if entry.charge else ''} {where}"


def total_line(total: Total) -> str:
    """What a budget group was charged with in all."""
    of = "no budget" if total.budget is None else f"of {total.budget:g}"
    sets = f" ({', '.join(total.members)})" if total.members not in ((), (total.group,)) else ""
    return (
        f"{total.group}{sets}: trainings: {total.trainings}, sums: {total.sums}, epsilon {total.epsilon:.4g} at delta "
        f"{total.delta:g}, {of}"
    )


@app.command("log")
def show_log(
    folder: Folder = HERE,
    verify: Annotated[bool, typer.Option("--verify", help="Check that no line was changed; print the head.")] = False,
    since: Annotated[str, typer.Option(help="From this day or time on, as in 2026-11-28 or 2026-11-28T06:00Z.")] = "",
    as_json: AsJson = False,
) -> None:
    """Show what was asked of the site, what it answered and what was decided. Exit code 2 if the log was changed."""
    with one_line():
        log = SiteLog(SiteFolder.read(folder).open_vault().folder)
    try:
        from_time = as_time(since) if since else None
        if verify:
            number, head = log.verify()
            print(f"{number} lines, none changed. Keep this elsewhere: line {number}, head {head}")
            return
        for line in log.read(from_time):
            print(json.dumps(asdict(line), default=str) if as_json else log_line(line))
    except ValueError:
        raise fail(f"--since {since}: is no day or time: write it as 2026-11-28 or 2026-11-28T06:00Z") from None
    except LogChanged as changed:
        raise fail(f"{log.path}: {changed}") from None


SENTENCES = {
    "asked": "was asked to take part in {training}: {task} on {data}, plan {plan}",
    "joined": "agreed to take part in {training}: {task} on {data}, sites {sites}, plan {plan}",
    "advertised": "entered {purpose} round {round}, attempt {attempt} of {training} ({cost})",
    "confirmed": "confirmed the sum of {purpose} round {round}, attempt {attempt} of {training}, over {sites}",
    "unmasked": "sent its own UNMASKED values for {purpose} round {round}, attempt {attempt} of {training}",
    "answered": "answered {step} ({context})",
    "refused": "refused {step}: {reason}",
    "failed": "local work failed: {step} in {training}: see fedseal site status",
    "stopped": "ended its own work on {step} in {training}",
    "finished": "{training} has ended; its secrets are erased",
    "approved": "you approved {training}, plan {plan}",
    "withdrawn": "left {training}: {by}",
    "renewed": "the site has a new key: {key}; the one before was {former}",
    "tidied": "removed what {training} had left here",
    "returned": "took back that it had left {training}",
}
"""What a steward reads of an event, whose fields it names; another event, or one without a field, is shown as it is."""


def log_line(line: LogLine) -> str:
    """A line of the log in words."""
    fields = {name: one_printed_line(str(value)) for name, value in line.fields.items()}
    try:
        words = SENTENCES[line.event].format_map(fields)
    except KeyError:
        words = " ".join(f"{name}={value}" for name, value in fields.items())
    return f"{line.number} {as_text(line.time)} {line.event}: {words}"


def as_time(text: str) -> datetime:
    """Read a day or a time; without a zone it is UTC.

    Raises:
        ValueError: it is neither.
    """
    time = datetime.fromisoformat(text)
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def as_text(time: datetime) -> str:
    """A time in UTC, to the second."""
    return f"{time.astimezone(UTC):%Y-%m-%d %H:%M:%S}"


def print_json(**fields: Any) -> None:
    """Print an object; times are ISO 8601."""
    print(json.dumps(fields, indent=2, default=lambda value: value.isoformat()))
