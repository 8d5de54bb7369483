"""Write our own test vectors, ``tests/vectors/own/*.json``: for other implementations, and against unseen changes.

``python -m tests.vectors.generate`` writes them, with ``--check`` it compares. All randomness comes from labels, so
that every run gives the same bytes. A difference in these files is a change of the protocol: SPEC and ``SPEC_VERSION``
change with it.
"""

import argparse
import hashlib
import itertools
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from protocols import secagg_coordinator, secagg_site, shamir
from protocols.contexts import AttemptContext, canonical, round_context, sha256
from protocols.encoding import CLAMPED, Segment, encode, integers
from protocols.gaussian import discrete_gaussian, tail
from protocols.history import NO_HISTORY, NONE_CONFIRMED, next_confirmed
from protocols.keys import KEY_BYTES, Consortium, Entropy, Identity, framed, public_of
from protocols.ledger import EMPTY_LEDGER, Charge, LedgerEntry, next_head
from protocols.masks import Mask, apply_masks
from protocols.messages import (
    COORDINATOR,
    Advert,
    AskAdvertise,
    AskConfirm,
    AskMask,
    AskReveal,
    AskShare,
    Envelope,
    envelope,
)
from protocols.privacy.clipping import Noised, noise_multiplier, sensitivity
from protocols.privacy.noise import carried, share
from protocols.receipt import Evidence, Tensor, add_entry, sign_receipt
from protocols.rotation import rotate
from protocols.vault import SALT_BYTES

FOLDER = Path(__file__).parent / "own"
ROUNDING_KEY = hashlib.sha256(b"fedseal vectors: rounding").digest()
SEGMENTS = (
    Segment("weight", 1, 64, 2.0**40, 1000.0),
    Segment("update", 6, 32, 2.0**16, 4.0),
    Segment("counts", 3, 16, 1.0, 500.0),
    Segment(CLAMPED, 1, 32, 1.0, 1000.0),
)


def entropy(label: str) -> Entropy:
    """The n-th draw from a label is SHAKE-256("fedseal vectors: <label>/<n>"), n from 0."""
    draws = itertools.count()
    return lambda length: hashlib.shake_256(f"fedseal vectors: {label}/{next(draws)}".encode()).digest(length)


def digest_vectors() -> dict[str, Any]:
    """Framing, canonical JSON, contexts and commitments."""
    context, _, _ = _consortium("contexts", ("ann", "bob", "cat"), threshold=3)
    adverts = [b"advert two", b"advert one", b""]
    secret = entropy("commitment")(32)
    return {
        "framed": [{"parts": ["", "a", "bc"], "hex": framed("", "a", "bc").hex()}],
        "sha256": [
            {"parts": ["ab", "c"], "digest": sha256("ab", "c")},
            {"parts": ["a", "bc"], "digest": sha256("a", "bc")},
        ],
        "attempt_context": {"canonical": canonical(asdict(context)), "digest": context.digest},
        "round_context": {
            "attempt": context.digest,
            "adverts": [advert.hex() for advert in adverts],
            "digest": round_context(context.digest, adverts),
        },
        "empty_ledger": EMPTY_LEDGER,
        "no_confirmed_sum": NONE_CONFIRMED,
        "confirmed_sum": {
            "before": NONE_CONFIRMED,
            "round": context.digest,
            "survivors": ["ann", "bob", "cat"],
            "head": next_confirmed(NONE_CONFIRMED, context.digest, ("cat", "ann", "bob")),
        },
        "commitments": [
            {
                "round": context.digest,
                "what": what,
                "dealer": "ann",
                "receiver": receiver,
                "secret": secret.hex(),
                "commitment": secagg_site.commit(context.digest, what, "ann", receiver, secret),
            }
            for what, receiver in (("seed", ""), ("self share", "bob"), ("key share", "bob"))
        ],
    }


def shamir_vectors() -> list[dict[str, Any]]:
    """Shares of a random secret and of the two ends of the range."""
    secrets = (entropy("shamir secret")(32), bytes(32), b"\xff" * 32)
    cases = []
    for number, (secret, (threshold, holders)) in enumerate(zip(secrets, ((3, 5), (1, 2), (4, 4)), strict=True)):
        label = f"shamir {number}"
        shares = shamir.split(secret, threshold=threshold, holders=holders, entropy=entropy(label))
        cases.append(
            {
                "entropy": label,
                "secret": secret.hex(),
                "threshold": threshold,
                "shares": [share.hex() for share in shares],
            }
        )
    return cases


def mask_vectors() -> dict[str, Any]:
    """Pair and self mask seeds, and the first 64 bytes of masks in each ring."""
    round_digest = sha256("a round")
    secrets = {site: entropy(f"mask secret {site}")(32) for site in ("ann", "bob")}
    adverts = {site: Advert.of(public_of(secret).hex(), "00" * 32, NO_HISTORY) for site, secret in secrets.items()}
    pairs = {
        site: secagg_site.pair_mask(secrets[site], site, peer, adverts[peer], round_digest)
        for site, peer in (("ann", "bob"), ("bob", "ann"))
    }
    seed = entropy("self mask")(32)
    own = secagg_site.self_mask_seed(seed, round_digest, "ann")
    masked = {}
    for bits in (16, 32, 64):
        vector = np.zeros(64, np.uint8)
        apply_masks(vector, (Segment("zeros", 512 // bits, bits, 1.0, 1.0),), (Mask(own, 1), pairs["bob"]))
        masked[str(bits)] = vector.data.hex()
    return {
        "round": round_digest,
        "mask_secrets": {site: secret.hex() for site, secret in secrets.items()},
        "pair_masks": {site: {"seed": mask.seed.hex(), "sign": mask.sign} for site, mask in pairs.items()},
        "self_mask": {"site": "ann", "b": seed.hex(), "seed": own.hex()},
        "zeros_plus_self_mask_minus_pair_mask": masked,
    }


def encoding_vectors() -> dict[str, Any]:
    """Clamping, negative numbers, integers that stay, ties and tiny fractions."""
    values = {"weight": [-999.25], "update": [0.1, -0.1, 4.5, -4.5, 1.0, -(2.0**-17)], "counts": [0.0, 500.0, 500.5]}
    vector = encode("ann", _arrays(values), SEGMENTS, ROUNDING_KEY)
    return {
        "segments": [asdict(segment) for segment in SEGMENTS],
        "rounding_key": ROUNDING_KEY.hex(),
        "values": values,
        "vector": vector.data.hex(),
        "integers": _integers(vector),
    }


def round_vectors(label: str, sites: Sequence[str], dropped: Sequence[str], *, threshold: int) -> dict[str, Any]:
    """One whole round: every envelope, the masked vectors and the sum.

    Args:
        label: which the randomness comes from.
        sites: U1.
        dropped: sites that share and then are gone.
        threshold: of the attempt.
    """
    context, coordinator, identities = _consortium(label, sites, threshold=threshold)
    consortium = Consortium(coordinator.public, context.sites)
    randomness = {site: entropy(f"{label}/{site}") for site in sites}
    messages: dict[str, list[Envelope]] = {}

    def ask(step: str, digest: str, receivers: Sequence[str], body: Callable[[str], Any]) -> dict[str, str]:
        """Sign the requests of a step; give the digest of each by its site."""
        asked = [envelope(coordinator, f"ask/{step}", digest, site, body(site)) for site in receivers]
        messages[f"ask/{step}"] = asked
        return {request.receiver: request.digest for request in asked}

    of = ask("advertise", context.digest, sites, lambda _: AskAdvertise(context))
    advertised = {
        site: secagg_site.advertise(identities[site], consortium, context, NO_HISTORY, randomness[site], of[site])
        for site in sites
    }
    messages["advert"] = [advert for _, advert in advertised.values()]
    roster = secagg_coordinator.open_roster(context, messages["advert"])
    request = AskShare(roster.envelopes)
    of = ask("share", context.digest, sites, lambda _: request)
    shared = {
        site: secagg_site.share(identities[site], advertised[site][0], request, randomness[site], of[site])
        for site in sites
    }
    messages["share"] = [message for _, dealt in shared.values() for message in dealt]
    dealings = secagg_coordinator.inboxes(roster, {site: dealt for site, (_, dealt) in shared.items()})

    survivors = tuple(site for site in sites if site not in dropped)
    values = {site: _values(f"{label}/{site}") for site in survivors}
    vectors = {site: encode(site, _arrays(values[site]), SEGMENTS, ROUNDING_KEY) for site in survivors}
    encoded = {site: vector.data.hex() for site, vector in vectors.items()}
    inboxes = {site: AskMask(dealings.inbox(site)) for site in survivors}
    of = ask("mask", roster.round, survivors, lambda site: inboxes[site])
    masked = {
        site: secagg_site.mask(identities[site], shared[site][0], inboxes[site], vectors[site], of[site])
        for site in survivors
    }
    messages["masked"] = [message for _, message in masked.values()]
    of = ask("confirm", roster.round, survivors, lambda _: AskConfirm(survivors))
    confirmed = {
        site: secagg_site.confirm(identities[site], masked[site][0], AskConfirm(survivors), of[site])
        for site in survivors
    }
    messages["confirmation"] = [message for _, message in confirmed.values()]
    proof = AskReveal(tuple(messages["confirmation"]))
    of = ask("reveal", roster.round, survivors, lambda _: proof)
    messages["reveal"] = [
        secagg_site.reveal(identities[site], confirmed[site][0], proof, of[site]) for site in survivors
    ]

    recovered = secagg_coordinator.recover_masks(dealings, survivors, messages["reveal"])
    total = secagg_coordinator.sum_vectors(context, vectors.values())
    masked_sum = total.data.hex()
    secagg_coordinator.unmask(total, context, recovered)
    return {
        "entropy": {"identity": f"{label} identity <party>", "site": f"{label}/<site>"},
        "identity_secrets": {site: identities[site].secret.hex() for site in sites}
        | {COORDINATOR: coordinator.secret.hex()},
        "attempt_context": context.digest,
        "round_context": roster.round,
        "dropped": list(dropped),
        "rounding_key": ROUNDING_KEY.hex(),
        "values": values,
        "envelopes": {kind: [asdict(message) for message in sent] for kind, sent in messages.items()},
        "encoded": encoded,
        "masked": {site: vector.data.hex() for site, vector in vectors.items()},
        "masked_sum": masked_sum,
        "unmasking": [{"seed": mask.seed.hex(), "sign": mask.sign} for mask in recovered.masks],
        "sum": total.data.hex(),
        "sum_integers": _integers(total),
    }


def receipt_vectors(finished: Mapping[str, Any]) -> dict[str, Any]:
    """The round of three as the only entry of a receipt: too few for a training, enough for its bytes."""
    context, coordinator, _ = _consortium("round of 3", ("ann", "bob", "cat"), threshold=3)
    adverts, confirmations = (
        tuple(Envelope(**one) for one in finished["envelopes"][kind]) for kind in ("advert", "confirmation")
    )
    total = hashlib.sha256(bytes.fromhex(finished["sum"])).hexdigest()
    evidence = Evidence(context, adverts, ("ann", "bob", "cat"), confirmations, total)
    entry, tensors = add_entry(None, evidence, sha256("next model"), None), (Tensor("weight", (2, 3)),)
    plan = '{"name":"vectors"}'
    receipt = sign_receipt(coordinator, context.training, plan, context.sites, (entry,), tensors)
    return asdict(receipt) | {"signed_bytes": receipt.signed_bytes.hex()}


def gaussian_vectors() -> list[dict[str, Any]]:
    """Samples without a fine part and with one; rejected ones are drawn anew, further on in the stream."""
    cases = []
    for sigma, length in ((0.25, 32), (2.0, 32), (511.75, 32), (1000.0, 64), (50000.0, 64), (2.0**39, 32)):
        label = f"gaussian {sigma:g}"
        samples = discrete_gaussian(sigma, length, entropy(label)(KEY_BYTES))
        cases.append({"entropy": label, "sigma": sigma, "samples": samples.tolist()})
    return cases


def rotation_vectors() -> list[dict[str, Any]]:
    """Whole blocks, and a last one that overlaps; whole numbers, which no order of additions rounds."""
    cases = []
    for length in (1, 5, 16, 37):
        draw = entropy(f"rotation {length}")
        values = np.frombuffer(draw(length), np.int8).astype(np.float64)
        seed, rotated = draw(KEY_BYTES), values.copy()
        rotate(rotated, seed)
        cases.append({"seed": seed.hex(), "values": values.tolist(), "rotated": rotated.tolist()})
    return cases


def privacy_vectors() -> list[dict[str, Any]]:
    """Sensitivities, noise shares and what a sum then has for noise multiplier."""
    cases = []
    for bound, scale, length, summed, sigma in ((1.0, 2.0**10, 1, 1, 500.0), (2.5, 2.0**16, 1000, 4096, 1.5e5)):
        each = share(sigma, threshold=4, colluding=1)
        noise = carried(each, 5, threshold=4, colluding=1)
        cases.append(
            {
                "clip": bound,
                "scale": scale,
                "length": length,
                "summed": summed,
                "sigma": sigma,
                "threshold": 4,
                "colluding": 1,
                "survivors": 5,
                "sensitivity": sensitivity(bound, scale, length, summed=summed),
                "share": each,
                "noise_multiplier": noise_multiplier(bound, (Noised(length, scale, noise),), summed=summed),
                "tail": tail(each, 1e-9),
            }
        )
    return cases


def ledger_vectors() -> dict[str, Any]:
    """A sum that was masked, one that was not, and a vault that was restored."""
    first, second = sha256("first attempt"), sha256("second attempt")
    charge = Charge("icu", ((1.5, 0.01, 100, 0.0), (8.0, 1.0, 1, 1e-17)))
    entries = (
        LedgerEntry("reserve", first, charge),
        LedgerEntry("spent", first, content=sha256("what stands for the content")),
        LedgerEntry("reserve", second, charge),
        LedgerEntry("release", second),
        LedgerEntry("restored", EMPTY_LEDGER),
    )
    heads, draw, salts = [EMPTY_LEDGER], entropy("ledger"), list[str]()
    for number, entry in enumerate(entries, start=1):
        salts.append(draw(SALT_BYTES).hex())
        heads.append(next_head(heads[-1], number, entry.line, bytes.fromhex(salts[-1])))
    return {"lines": [json.loads(entry.line) for entry in entries], "salts": salts, "heads": heads}


def vectors() -> dict[str, str]:
    """Every file's text by name."""
    round_of_3 = round_vectors("round of 3", ("ann", "bob", "cat"), (), threshold=3)
    contents = {
        "digests": digest_vectors(),
        "shamir": shamir_vectors(),
        "masks": mask_vectors(),
        "encoding": encoding_vectors(),
        "gaussian": gaussian_vectors(),
        "rotation": rotation_vectors(),
        "privacy": privacy_vectors(),
        "ledger": ledger_vectors(),
        "round_of_3": round_of_3,
        "receipt": receipt_vectors(round_of_3),
        "round_of_4_one_dropped": round_vectors("round of 4", ("ann", "bob", "cat", "dan"), ("bob",), threshold=3),
    }
    return {f"{name}.json": json.dumps(content, indent=1) + "\n" for name, content in contents.items()}


def differences(folder: Path) -> list[str]:
    """Name the files in ``folder`` that are missing, superfluous or differ from what the code gives."""
    expected = vectors()
    found = {path.name: path.read_text() for path in folder.glob("*")}
    return sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))


def main() -> None:
    """Write the files, or compare."""
    parser = argparse.ArgumentParser(description="Write the protocol's own test vectors.")
    parser.add_argument("--check", action="store_true", help="compare with the files instead")
    if parser.parse_args().check:
        if different := differences(FOLDER):
            sys.exit(f"these differ from what the code gives: {', '.join(different)}")
        return
    FOLDER.mkdir(exist_ok=True)
    for name, text in vectors().items():
        (FOLDER / name).write_text(text)


def _consortium(
    label: str, sites: Sequence[str], *, threshold: int
) -> tuple[AttemptContext, Identity, dict[str, Identity]]:
    coordinator = Identity.generate(COORDINATOR, entropy(f"{label} identity {COORDINATOR}"))
    identities = {site: Identity.generate(site, entropy(f"{label} identity {site}")) for site in sites}
    keys = {site: identity.public for site, identity in identities.items()}
    context = AttemptContext(
        "training", "vectors", 1, 1, sha256("plan"), keys, threshold, 1, sha256("model"), SEGMENTS, {}
    )
    return context, coordinator, identities


def _values(label: str) -> dict[str, list[float]]:
    draw = np.frombuffer(entropy(f"{label}/values")(40), "<u4") * 2.0**-32
    return {
        "weight": [float(draw[0]) * 1000],
        "update": [float(one) * 10 - 5 for one in draw[1:7]],  # some beyond the range, so that they are clamped
        "counts": [float(int(one * 500)) for one in draw[7:10]],
    }


def _arrays(values: Mapping[str, Sequence[float]]) -> dict[str, np.ndarray[Any, np.dtype[np.float64]]]:
    return {name: np.array(numbers, np.float64) for name, numbers in values.items()}


def _integers(vector: np.ndarray[Any, np.dtype[np.uint8]]) -> dict[str, list[int]]:
    return {name: [int(one) for one in signed] for name, signed in integers(vector, SEGMENTS).items()}


if __name__ == "__main__":
    main()
