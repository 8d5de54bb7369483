"""``fedseal site tidy``: what trainings that have ended left at this site, and its removal (SPEC 7.3)."""

import sys
import threading
import time
from typing import Annotated

import typer

from deploy.site import HERE, Folder, app, fail, one_line
from flows.exchange import Exchange, ExchangeAway
from flows.leftovers import Left, erase, left_over, tidy, unused
from flows.settings import SiteFolder
from flows.site_log import SiteLog
from protocols.vault import Vault

EVERY_S = 3600.0
"""Seconds between two tidyings of a site that serves."""
DAY_S, HOUR_S = 86_400.0, 3_600.0


@app.command("tidy")
def tidy_command(
    folder: Folder = HERE,
    now: Annotated[
        bool, typer.Option("--now", help="Also remove what resuming a training would need; it cannot be finished then.")
    ] = False,
) -> None:
    """Remove what trainings have left here that no process is in: local work, vectors, and secrets past their time."""
    with one_line():
        site = SiteFolder.read(folder)
        vault, exchange = site.open_vault(), site.open_exchange()
        rules = site.policy
        try:
            work_s, keep_s = (0.0, -1.0) if now else (rules.lease_s, rules.keep_s)
            removed = tidied(vault, exchange, work_s, keep_s)
        except ExchangeAway as away:
            raise fail(f"{away.reason}: the rest is tidied when that works", 1) from None
    for left in removed:
        print(f"removed: {described(left)}")
    for left in left_over(vault):
        print(f"stays: {described(left)}")


def tidied(vault: Vault, exchange: Exchange, work_s: float, keep_s: float) -> list[Left]:
    """As ``flows.leftovers.tidy``, with a line in the site's log for each training."""
    removed = tidy(vault, exchange, work_s=work_s, keep_s=keep_s)
    for left in removed:
        SiteLog(vault.folder).append("tidied", training=left.training)
    return removed


def described(left: Left) -> str:
    """What is left of a training, in a line."""
    age = f"{left.age_s / DAY_S:.0f} days" if left.age_s > 2 * DAY_S else f"{left.age_s / HOUR_S:.0f} hours"
    return (
        f"{left.training}: {left.work} pieces of local work, {left.vectors} vectors on the exchange, secrets of "
        f"{left.secrets} attempts, {age} old"
    )


def erase_left(site: SiteFolder, vault: Vault, training: str) -> str:
    """Erase what is left of a training that the site has withdrawn from, unless a participation does it that is in it.

    Returns:
        What is in the way; empty where nothing is.
    """
    with unused(vault, training) as free:
        if not free:
            return ""
        try:
            erase(vault, site.open_exchange(), training)
        except ExchangeAway as away:
            return f"{away.reason}: its vectors may still be there: fedseal site tidy removes them"
    return ""


def keep_tidy(site: SiteFolder, vault: Vault) -> None:
    """Tidy now and every hour, as long as this process lives; what fails is tried again the next time."""

    def work() -> None:
        while True:
            try:
                tidied(vault, site.open_exchange(), site.policy.lease_s, site.policy.keep_s)
            except OSError as error:
                print(f"warning: something of an ended training is left: {error}", file=sys.stderr, flush=True)
            time.sleep(EVERY_S)

    threading.Thread(target=work, daemon=True).start()
