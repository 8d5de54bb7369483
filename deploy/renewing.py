"""``fedseal site renew``: a new key for a site, with its past where that is there (SPEC 7.4)."""

import shutil
import sys
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from deploy.alone import alone
from deploy.site import HERE, Folder, app, one_line
from flows.settings import SettingsError, SiteFolder
from flows.site_log import SiteLog
from protocols.errors import Refused
from protocols.keys import Identity
from protocols.renewal import begin_anew, renew
from protocols.vault import Vault

KEPT = ("log.jsonl", "failures.jsonl")
"""Files of the vault's folder that the data steward goes on reading."""


@app.command("renew")
def renew_command(
    folder: Folder = HERE,
    lost: Annotated[
        bool, typer.Option("--lost", help="The vault is lost, or cannot be read: begin without its past.")
    ] = False,
) -> None:
    """Give the site a new key and a new vault; print its entry for consortium.toml. The old vault is set aside."""
    with one_line():
        site = SiteFolder.read(folder)
        with alone(folder, "serving", "fedseal site serve"):
            try:
                public, former, aside = renewed(site, lost)
            except Refused as refused:
                raise SettingsError(f"{refused.reason}: --lost begins without it") from None
    print(f'{site.name} = "{public}"')
    print("Enter this line under [sites] in everybody's consortium.toml, in place of the old one.", file=sys.stderr)
    if former:
        print(f'[former]\n{site.name} = ["{former}"]')
        print("And this under [former], so that the others know with whom their data were summed.", file=sys.stderr)
    else:
        print(
            "What its data were charged, and with whom they were summed, is not known: plans wait or are refused until "
            "you say that you know it: fedseal site ledger --accept",
            file=sys.stderr,
        )
    if aside is not None:
        print(f"The old vault is in {aside}: delete it once the new key is in use.", file=sys.stderr)


def renewed(site: SiteFolder, lost: bool) -> tuple[str, str, Path | None]:
    """Put a new vault in the place of the old one; one that was made and not yet put there is made again.

    Args:
        site: the site's folder; nobody serves it.
        lost: whether to begin without the old vault's past.

    Returns:
        The new public key; the one before, empty where it is not known; where the old vault is now.

    Raises:
        SettingsError: there is no vault whose past could be taken over, and it is not said to be lost.
        Refused: a line of its ledger was changed.
    """
    place, identity, former = site.vault_place, Identity.generate(site.name), ""
    made = place.with_name(f"{place.name}.new")
    shutil.rmtree(made, ignore_errors=True)
    with closing(Vault(made)) as new:
        if lost:
            begin_anew(new, identity)
        else:
            with closing(site.open_vault()) as old:
                renew(old, new, identity)
                former = old.identity.public
        for name in KEPT:
            if (place / name).exists():
                shutil.copy(place / name, made / name)
        SiteLog(made).append("renewed", key=identity.public, former=former or "unknown")
    day = f"{datetime.now(UTC):%Y%m%d-%H%M%S}"
    aside = place.with_name(f"{place.name}.before-{day}") if place.exists() else None
    if aside is not None:
        place.rename(aside)
    made.rename(place)
    if site.epoch is not None and site.epoch.exists():
        site.epoch.rename(site.epoch.with_name(f"{site.epoch.name}.before-{day}"))
    return identity.public, former, aside
