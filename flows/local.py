"""Local mode: every site in the coordinator's process, for laptops, simulations and tests (SPEC 6.4).

The same handlers, envelopes and vaults as between organisations; only the way to a site is a function call. A request
and its answer pass as text, so that nothing but what the wire would carry gets across.
"""

import queue
import sqlite3
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from flows.code_digest import CodeRule, without_code
from flows.collect import Absent
from flows.data_sets import DataSet
from flows.exchange import Exchange
from flows.logs import keep_log
from flows.plan import Plan
from flows.policy import Policy
from flows.settings import SettingsError
from flows.site import Answer, Site, in_process
from flows.workshop import Workshop, Workshops
from protocols.keys import Consortium, Identity
from protocols.messages import COORDINATOR, Envelope
from protocols.vault import Vault


class Sites(Protocol):
    """A way to reach the sites."""

    def ask(self, site: str, request: Envelope, deadline_s: float) -> Answer | Absent:
        """Send a signed request; give the site's answer, unverified, or say that there was none in time."""

    def close(self) -> None:
        """Let go of the sites."""


@dataclass(frozen=True, slots=True)
class LocalSites:
    """Sites that live in this process, each with a vault of its own."""

    sites: Mapping[str, Site]

    def ask(self, site: str, request: Envelope, deadline_s: float) -> Answer | Absent:
        """Call the site's handler in a thread of its own; a handler that outlives the deadline is left behind."""
        answers: queue.SimpleQueue[list[str]] = queue.SimpleQueue()

        def handle(text: str) -> None:
            answers.put([message.to_json() for message in self.sites[site].answer(Envelope.from_json(text))])

        threading.Thread(target=handle, args=(request.to_json(),), daemon=True).start()
        try:
            return tuple(Envelope.from_json(text) for text in answers.get(timeout=deadline_s))
        except queue.Empty:
            return Absent(f"no answer within {deadline_s:g} s")

    def close(self) -> None:
        """Close every vault."""
        for site in self.sites.values():
            site.vault.close()


@dataclass(frozen=True, slots=True)
class LocalConsortium:
    """A consortium on one machine: identities and vaults of its own (``vault`` is the coordinator's), an exchange."""

    vault: Vault
    consortium: Consortium
    exchange: Exchange
    sites: LocalSites

    def close(self) -> None:
        """Close every vault."""
        self.sites.close()
        self.vault.close()

    def failures(self, training: str) -> dict[str, str]:
        """Why local work failed last, by site: here one person is all sites, and everything is shown."""
        return {name: site.failures[training] for name, site in self.sites.sites.items() if training in site.failures}

    @property
    def coordinator(self) -> Identity:
        """The coordinator's identity."""
        return self.vault.identity


def open_consortium(
    folder: Path,
    plan: Plan,
    data: Path | None,
    workshops: Workshops = in_process,
    code: CodeRule = "named",
) -> LocalConsortium:
    """Found a local consortium for ``plan`` in ``folder``, or open the one that is there.

    Args:
        folder: the run's.
        plan: names sites, task and data set.
        data: where every site finds its data set.
        workshops: makes the sites' workshops.
        code: whether the sites compare the code that the plan names.

    Raises:
        SettingsError: a vault cannot be opened.
    """
    vaults = {site: _open_vault(folder / "sites" / site, site) for site in plan.sites}
    keeper = _open_vault(folder / "coordinator", COORDINATOR)
    consortium = Consortium(keeper.identity.public, {site: vault.identity.public for site, vault in vaults.items()})
    exchange = Exchange(f"file://{folder.absolute()}/exchange")
    policy = Policy(tasks=[plan.task], code=code, protocols=[plan.protection.protocol])
    sites = {
        site: Site(vault, consortium, exchange, {plan.data: DataSet(data)}, policy, workshops=workshops)
        for site, vault in vaults.items()
    }
    for site, vault in vaults.items():
        keep_log(f"fedseal.site.{site}", vault.folder / "site.log")
    return LocalConsortium(keeper, consortium, exchange, LocalSites(sites))


def prefer(plan: Plan, made: Mapping[str, Workshop], otherwise: Workshops) -> Workshops:
    """Give the workshops that were made for this plan, and new ones for any other.

    Args:
        plan: the one that they were made for.
        made: by site; they have the data already.
        otherwise: makes the new ones.
    """

    def workshop(asked: Plan, site: str, folder: Path | None) -> Workshop:
        return made[site] if asked in (plan, without_code(plan)) and site in made else otherwise(asked, site, folder)

    return workshop


def _open_vault(folder: Path, name: str) -> Vault:
    try:
        vault = Vault(folder)
    except (OSError, sqlite3.DatabaseError) as error:
        raise SettingsError(f"{folder}: cannot be used ({error}): see to its disk, or put it back") from None
    if not vault.has_identity:
        vault.keep_identity(Identity.generate(name))
    return vault
