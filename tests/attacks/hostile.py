"""A coordinator played by hand, step by step, so that a test can lie at any of them (SPEC 8).

The simulator's own ``run`` is the honest coordinator; here each step is a function that asks only the sites named, with
whatever the test hands over. ``readable`` is how well a coordinator can unmask with all that it has been told.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from protocols import secagg_coordinator as coordinator
from protocols import shamir
from protocols.contexts import AttemptContext
from protocols.encoding import encode, integers
from protocols.masks import Mask, apply_masks
from protocols.messages import AskAdvertise, AskConfirm, AskMask, AskReveal, AskShare, Envelope, Reveal, parse
from protocols.secagg_coordinator import Dealings, Roster
from protocols.secagg_site import pair_mask, self_mask_seed
from protocols.vault import Vault
from tests.simulator import ROUNDING_KEY, Simulator, Values

SITES = ("a", "b", "c", "d", "e")


def make(folder: Path, sites: Sequence[str] = SITES, threshold: int = 4) -> tuple[Simulator, dict[str, Values]]:
    """Give a consortium and an input for each of its sites."""
    simulator = Simulator(folder, sites, threshold=threshold)
    return simulator, simulator.random_values(np.random.default_rng(7), simulator.context.segments)


def reopen(simulator: Simulator, site: str) -> None:
    """Restart a site: nothing of it is left but its vault's folder."""
    folder = simulator.vaults[site].folder
    simulator.vaults[site].close()
    simulator.vaults[site] = Vault(folder)


def adverts(
    simulator: Simulator, context: AttemptContext | None = None, sites: Iterable[str] | None = None
) -> dict[str, Envelope]:
    """Ask for adverts."""
    context = context or simulator.context
    chosen = sorted(context.sites) if sites is None else sites
    return {site: simulator.ask(site, "advertise", context.digest, AskAdvertise(context))[0] for site in chosen}


def deal(simulator: Simulator, roster: Roster, sites: Iterable[str] | None = None) -> Dealings:
    """Ask for shares."""
    ask = AskShare(roster.envelopes)
    chosen = roster.sites if sites is None else sites
    return coordinator.inboxes(
        roster, {site: simulator.ask(site, "share", roster.context.digest, ask) for site in chosen}
    )


def to_dealings(simulator: Simulator, context: AttemptContext | None = None) -> Dealings:
    """Bring every site past ``share``."""
    context = context or simulator.context
    return deal(simulator, coordinator.open_roster(context, adverts(simulator, context).values()))


def mask(
    simulator: Simulator, dealings: Dealings, site: str, values: Values, dealers: Iterable[str] | None = None
) -> Envelope:
    """Ask one site for its masked vector, handing over the shares of ``dealers`` (all of U2)."""
    chosen = dealings.sites if dealers is None else dealers
    inbox = tuple(dealings.envelopes[dealer][site] for dealer in chosen)
    return simulator.ask(site, "mask", dealings.roster.round, AskMask(inbox), values)[0]


def to_masked(simulator: Simulator, values: Mapping[str, Values], context: AttemptContext | None = None) -> Dealings:
    """Bring every site past ``mask``."""
    dealings = to_dealings(simulator, context)
    for site in dealings.sites:
        mask(simulator, dealings, site, values[site])
    return dealings


def confirm(simulator: Simulator, dealings: Dealings, survivors: Sequence[str], site: str) -> Envelope:
    """Ask one site to confirm a survivor set."""
    return simulator.ask(site, "confirm", dealings.roster.round, AskConfirm(tuple(survivors)))[0]


def reveal(simulator: Simulator, dealings: Dealings, confirmations: Iterable[Envelope], site: str) -> Envelope:
    """Ask one site to reveal."""
    return simulator.ask(site, "reveal", dealings.roster.round, AskReveal(tuple(confirmations)))[0]


def confirm_and_reveal(simulator: Simulator, dealings: Dealings, survivors: Sequence[str]) -> dict[str, Envelope]:
    """Finish a round with these survivors; give the reveals."""
    confirmations = [confirm(simulator, dealings, survivors, site) for site in survivors]
    return {site: reveal(simulator, dealings, confirmations, site) for site in survivors}


def body_of(message: Envelope) -> Reveal:
    """Read what a site has revealed."""
    return parse(Reveal, message.body, party="test", step="reveal")


def secrets_of(vault: Vault, attempt_context: str) -> Iterator[tuple[str, str]]:
    """Walk every secret in a site's open context: what it is, and its text as the vault keeps it (base64)."""
    found = vault.find(attempt_context)
    assert found is not None and found.state

    def walk(name: str, node: object) -> Iterator[tuple[str, str]]:
        if isinstance(node, Mapping):
            for key, value in node.items():
                if key in ("mask_secret", "channel_secret", "seed") and isinstance(value, str):
                    yield key, value
                elif name.endswith("_shares") and isinstance(value, str):
                    yield f"{name} {key}", value
                else:
                    yield from walk(key, value)

    yield from walk("", json.loads(found.state)["state"])


def decode_all(
    dealings: Dealings,
    vectors: Mapping[str, NDArray[np.uint8]],
    reveals: Iterable[Envelope],
    masked_with: Mapping[str, Iterable[str]] | None = None,
) -> Iterator[tuple[tuple[str, ...], dict[str, list[int]]]]:
    """Decode every subset of the vectors with every mask that can be recovered from ``reveals``, honest or not.

    This coordinator checks nothing and stops at nothing: it puts together whatever shares it was given.

    Args:
        dealings: the round.
        vectors: masked vectors by site.
        reveals: shares, from whatever survivor sets.
        masked_with: by site, whose shares were in its inbox, where that was not all of U2.
    """
    self_masks, pair_secrets = _recover(dealings, list(reveals))
    roster = dealings.roster
    for size in range(1, len(vectors) + 1):
        for chosen in combinations(sorted(vectors), size):
            total = coordinator.sum_vectors(roster.context, (vectors[site] for site in chosen))
            masks = [
                Mask(self_mask_seed(self_masks[one], roster.round, one), -1) for one in chosen if one in self_masks
            ]
            masks += _left_over(roster, chosen, pair_secrets, masked_with or {})
            apply_masks(total, roster.context.segments, masks)
            decoded = integers(total, roster.context.segments)
            yield chosen, {name: [int(one) for one in values] for name, values in decoded.items()}


def readable(
    simulator: Simulator,
    values: Mapping[str, Values],
    dealings: Dealings,
    vectors: Mapping[str, NDArray[np.uint8]],
    reveals: Iterable[Envelope],
    masked_with: Mapping[str, Iterable[str]] | None = None,
) -> set[tuple[str, ...]]:
    """Give the sets of sites whose plain sum a coordinator that does its worst has read, by the 64-bit segment."""
    segments = simulator.context.segments
    plain: dict[tuple[int, ...], tuple[str, ...]] = {}
    encoded = {
        site: [int(one) for one in integers(encode(site, values[site], segments, ROUNDING_KEY), segments)["wide"]]
        for site in values
    }
    for size in range(1, len(values) + 1):
        for chosen in combinations(sorted(values), size):
            plain[tuple(sum(column) for column in zip(*(encoded[site] for site in chosen), strict=True))] = chosen
    decoded = decode_all(dealings, vectors, reveals, masked_with)
    return {plain[tuple(total["wide"])] for _, total in decoded if tuple(total["wide"]) in plain}


def _left_over(
    roster: Roster,
    chosen: Sequence[str],
    pair_secrets: Mapping[str, bytes],
    masked_with: Mapping[str, Iterable[str]],
) -> Iterator[Mask]:
    """Give the known pair masks that do not cancel among the chosen vectors, with the sign that removes them."""
    for site in chosen:
        for peer in set(masked_with.get(site, roster.sites)) - {site}:
            if peer in chosen and site in masked_with.get(peer, roster.sites):
                continue
            if peer in pair_secrets:
                yield pair_mask(pair_secrets[peer], peer, site, roster.adverts[site], roster.round)
            elif site in pair_secrets:
                known = pair_mask(pair_secrets[site], site, peer, roster.adverts[peer], roster.round)
                yield Mask(known.seed, 1 if known.sign < 0 else -1)


def _recover(dealings: Dealings, reveals: Sequence[Envelope]) -> tuple[dict[str, bytes], dict[str, bytes]]:
    roster = dealings.roster
    threshold = roster.context.threshold
    self_masks: dict[str, bytes] = {}
    pair_secrets: dict[str, bytes] = {}
    for dealer in roster.sites:
        for kind, found in (("self_shares", self_masks), ("key_shares", pair_secrets)):
            shares = {
                roster.sites.index(message.sender) + 1: bytes.fromhex(held[dealer])
                for message in reveals
                if dealer in (held := getattr(body_of(message), kind))
            }
            secret = shamir.combine(shares) if len(shares) >= threshold else None
            if secret is not None:
                found[dealer] = secret
    return self_masks, pair_secrets
