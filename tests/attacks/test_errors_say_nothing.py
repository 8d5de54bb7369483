"""Rule 7: errors pickle, and neither they nor any answer hold secret bytes (SPEC 9)."""

import base64
import pickle
import traceback
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from protocols import errors
from protocols.errors import ProtocolError
from protocols.messages import AskConfirm, AskMask, AskReveal, AskShare, Envelope, envelope
from protocols.secagg_coordinator import open_roster
from protocols.vault import Vault
from tests.attacks.hostile import adverts, body_of, confirm, deal, make, mask, reveal, secrets_of
from tests.simulator import Simulator, Values, durable

TREE = [one for one in vars(errors).values() if isinstance(one, type) and issubclass(one, ProtocolError)]


@pytest.mark.parametrize("error", TREE, ids=lambda error: error.__name__)
def test_every_error_goes_through_pickle_whole(error: type[ProtocolError]) -> None:
    before = error("midwest", "mask", "a reason")
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        after = pickle.loads(pickle.dumps(before, protocol))  # noqa: S301 - our own bytes
        assert type(after) is error
        assert (after.party, after.step, after.reason) == ("midwest", "mask", "a reason")
        assert str(after) == str(before) == "midwest: mask: a reason"


def spellings(secret: bytes) -> Iterator[str]:
    """The ways in which bytes get into a text."""
    yield secret.hex()
    yield secret.hex().upper()
    yield base64.b64encode(secret).decode().rstrip("=")
    yield base64.urlsafe_b64encode(secret).decode().rstrip("=")
    yield repr(secret)[2:-1]
    yield str(list(secret))[1:-1]
    yield str(int.from_bytes(secret, "little"))
    yield str(int.from_bytes(secret, "big"))


def test_the_spellings_find_a_secret_in_a_text() -> None:
    secret = bytes(range(7, 39))
    for text in (secret.hex(), base64.b64encode(secret).decode(), repr({"seed": secret}), f"{list(secret)}"):
        assert any(spelling in text for spelling in spellings(secret))


def secrets(vault: Vault, contexts: list[str]) -> dict[str, bytes]:
    found = {"identity": vault.identity.secret}
    for context in contexts:
        for name, text in secrets_of(vault, context):
            found[name] = base64.urlsafe_b64decode(text)
    return found


def complaints(simulator: Simulator, dealings: object, values: dict[str, Values]) -> Iterator[str]:
    """Provoke every refusal that there is at the site a; give the errors with their tracebacks."""
    context, digest = simulator.context, dealings.roster.round  # type: ignore[attr-defined]
    inbox = dealings.inbox("a")  # type: ignore[attr-defined]
    garbled = replace(inbox[1], body=inbox[2].body)
    bodies: list[tuple[str, str, object]] = [
        ("share", context.digest, AskShare(dealings.roster.envelopes[:4])),  # type: ignore[attr-defined]
        ("share", digest, AskShare(())),
        ("mask", digest, AskMask(inbox[:2])),
        ("mask", digest, AskMask((garbled, *inbox[2:]))),
        ("confirm", digest, AskConfirm(("a",))),
        ("confirm", digest, AskConfirm(("a", "b", "c", "x"))),
        ("reveal", digest, AskReveal(())),
        ("reveal", digest, AskReveal((garbled,))),
        ("confirm", "0" * 64, AskConfirm(("a",))),
    ]
    for step, where, body in bodies:
        for poison in (values["a"], {**values["a"], "update": np.full(5, np.nan)}, {}):
            try:
                simulator.ask("a", step, where, body, poison)
            except ProtocolError as error:
                yield "".join(traceback.format_exception(error)) + repr(error) + repr(error.args)
            request = envelope(simulator.coordinator, f"ask/{step}", where, "b", body)
            with pytest.raises(ProtocolError) as caught:
                getattr(durable, "confirm" if step == "mask" else step)(
                    simulator.vaults["a"], simulator.consortium, request
                )
            yield str(caught.value)


def test_no_error_and_no_answer_holds_a_secret_but_what_the_protocol_reveals(tmp_path: Path) -> None:
    simulator, values = make(tmp_path)
    said: list[str] = []
    signed = adverts(simulator)
    dealings = deal(simulator, open_roster(simulator.context, signed.values()))
    said += complaints(simulator, dealings, values)
    answers: list[Envelope] = [*signed.values(), *(m for inbox in dealings.envelopes.values() for m in inbox.values())]
    answers += [mask(simulator, dealings, site, values[site]) for site in "abcde"]
    said += complaints(simulator, dealings, values)
    confirmations = [confirm(simulator, dealings, "abcd", site) for site in "abcd"]
    said += complaints(simulator, dealings, values)
    answers += confirmations
    said += [message.to_json() for message in answers]
    vectors = [simulator.masked(site, simulator.context.digest).tobytes() for site in "abcde"]

    found = {
        (site, name): one
        for site in "abcde"
        for name, one in secrets(simulator.vaults[site], [simulator.context.digest]).items()
    }
    assert len(found) == 5 * (1 + 3 + 2 * 5)
    for (site, name), secret in found.items():
        assert len(secret) in (32, 33)
        for spelling in spellings(secret):
            assert not any(spelling in text for text in said), (site, name)
        assert not any(secret in vector for vector in vectors), (site, name)

    revealed = {site: body_of(reveal(simulator, dealings, confirmations, site)) for site in "abcd"}
    for (site, name), secret in found.items():
        if site == "e":
            continue
        kind, _, dealer = name.partition(" ")
        expected = kind == ("key_shares" if dealer == "e" else "self_shares")
        shown = secret.hex() in {*revealed[site].self_shares.values(), *revealed[site].key_shares.values()}
        assert shown == expected, (site, name)


def test_a_key_is_not_printed_with_its_identity(tmp_path: Path) -> None:
    simulator, _ = make(tmp_path)
    identity = simulator.vaults["a"].identity
    for text in (repr(identity), str(identity), f"{[identity]}"):
        assert not any(spelling in text for spelling in spellings(identity.secret))


def test_an_error_carries_no_chain_that_a_traceback_would_print(tmp_path: Path) -> None:
    """Prefect stores tracebacks: what pydantic or cryptography said, with its input, must not hang on behind."""
    simulator, values = make(tmp_path)
    dealings = deal(simulator, open_roster(simulator.context, adverts(simulator).values()))
    texts = list(complaints(simulator, dealings, values))
    assert len(texts) > 20
    for text in texts:
        assert "During handling" not in text
        assert "direct cause" not in text
        assert "input_value" not in text


def test_a_vault_and_its_vectors_are_for_their_owner_alone(tmp_path: Path) -> None:
    simulator, values = make(tmp_path)
    dealings = deal(simulator, open_roster(simulator.context, adverts(simulator).values()))
    mask(simulator, dealings, "a", values["a"])
    files = [path for path in simulator.vaults["a"].folder.rglob("*") if path.is_file()]
    assert {path.name for path in files} > {"vault.sqlite", "vault.sqlite-wal", simulator.context.digest}
    for path in files:
        assert path.stat().st_mode & 0o077 == 0, path


@pytest.mark.parametrize("how", ["finish", "a new attempt", "a new round"])
def test_the_secrets_of_a_round_that_is_over_are_in_no_file(tmp_path: Path, how: str) -> None:
    """Not in the tables, not in free pages, not in the write-ahead log."""
    simulator, values = make(tmp_path)
    dealings = deal(simulator, open_roster(simulator.context, adverts(simulator).values()))
    mask(simulator, dealings, "a", values["a"])
    vault = simulator.vaults["a"]
    texts = [text.encode() for _, text in secrets_of(vault, simulator.context.digest)]

    def on_disk() -> int:
        stored = [path.read_bytes() for path in vault.folder.rglob("*") if path.is_file()]
        return sum(any(text in one for one in stored) for text in texts)

    assert on_disk() == len(texts)
    if how == "finish":
        durable.finish(vault, "trial")
    else:
        adverts(simulator, simulator.at(1, 2) if how == "a new attempt" else simulator.at(2, 1), ["a"])
    assert on_disk() == 0
    assert not vault.masked_path(simulator.context.digest).exists()
    assert vault.entry(simulator.context.digest, "mask") is not None  # the digests stay


def test_a_refused_attempt_takes_nothing_from_the_one_that_is_open(tmp_path: Path) -> None:
    simulator, values = make(tmp_path)
    dealings = deal(simulator, open_roster(simulator.context, adverts(simulator).values()))
    first = mask(simulator, dealings, "a", values["a"])
    for unsafe in (replace(simulator.at(1, 2), threshold=3), replace(simulator.at(2, 1), plan="ab" * 32)):
        with pytest.raises(ProtocolError):
            adverts(simulator, unsafe, ["a"])
        assert mask(simulator, dealings, "a", values["a"]) == first
        assert simulator.masked("a", simulator.context.digest).size
