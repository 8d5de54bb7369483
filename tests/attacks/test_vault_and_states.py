"""What a site keeps and shows: one sum a purpose and model, a vault that many may open, states that print nothing."""

import json
import multiprocessing
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from protocols import secagg_coordinator as coordinator
from protocols.contexts import sha256
from protocols.errors import ProtocolError, Refused
from protocols.history import NO_HISTORY
from protocols.vault import Vault
from tests.attacks.hostile import adverts, confirm_and_reveal, make, mask, to_dealings, to_masked
from tests.attacks.test_fail_closed import lying_dealer


def test_statistics_are_summed_once(tmp_path: Path) -> None:
    """Two sums of the same columns, one without e: their difference is e's statistics, exactly."""
    simulator, values = make(tmp_path)
    first = replace(simulator.context, purpose="statistics", round=0)
    confirm_and_reveal(simulator, to_masked(simulator, values, first), "abcde")
    again = replace(first, round=1, model=sha256("any other"))
    with pytest.raises(Refused):
        adverts(simulator, again, ["a"])


def test_one_model_is_evaluated_once(tmp_path: Path) -> None:
    """The best model of a training was a round's incoming one: its test examples are summed once, and never again."""
    simulator, values = make(tmp_path)
    confirm_and_reveal(simulator, to_masked(simulator, values), "abcde")
    evaluation = replace(simulator.context, purpose="evaluation", round=2)
    confirm_and_reveal(simulator, to_masked(simulator, values, evaluation), "abcde")
    with pytest.raises(Refused, match="no other sum is made from it"):
        adverts(simulator, replace(evaluation, round=3), ["a"])


def test_one_bad_share_of_a_dealer_does_not_end_a_round_that_has_enough_good_ones(tmp_path: Path) -> None:
    """The dealer e deals one wrong share, to a, and commits to it. b, c, d and e hold good ones: threshold 4."""
    simulator, values = make(tmp_path)
    honest = to_dealings(simulator)
    lying = lying_dealer(simulator, honest, "e", "self")
    dealings = replace(
        honest,
        envelopes={**honest.envelopes, "e": {**honest.envelopes["e"], "a": lying.envelopes["e"]["a"]}},
        shares={**honest.shares, "e": {**honest.shares["e"], "a": lying.shares["e"]["a"]}},
    )
    for site in "abcde":
        mask(simulator, dealings, site, values[site])
    reveals = confirm_and_reveal(simulator, dealings, "abcde")
    recovered = coordinator.recover_masks(dealings, tuple("abcde"), reveals.values())
    assert [fault.party for fault in recovered.faults] == ["e"]


def test_a_stored_state_that_does_not_parse_is_not_printed(tmp_path: Path) -> None:
    """As after an update of the software in the middle of a round."""
    simulator, _ = make(tmp_path)
    dealings = to_dealings(simulator)
    vault = simulator.vaults["a"]
    found = vault.find(simulator.context.digest)
    assert found is not None
    stored = json.loads(found.state or "")
    stored["state"]["field_of_a_newer_version"] = stored["state"].pop("seed")
    with vault.exclusive():
        vault.advance(
            simulator.context.digest, json.dumps(stored), round_context=dealings.roster.round, confirmed=False
        )
    with pytest.raises(ProtocolError):
        mask(simulator, dealings, "a", {})


def test_a_state_does_not_print_its_secrets(tmp_path: Path) -> None:
    from protocols import secagg_site

    simulator, _ = make(tmp_path)
    entropy = iter(bytes([number]) * 32 for number in range(65, 70))
    identity = simulator.vaults["a"].identity
    state, _ = secagg_site.advertise(
        identity, simulator.consortium, simulator.context, NO_HISTORY, lambda _: next(entropy)
    )
    assert state.mask_secret == b"A" * 32
    assert "A" * 32 not in repr(state)


def open_new(folder: Path, barrier: object, queue: object) -> None:
    barrier.wait()  # type: ignore[attr-defined]
    try:
        Vault(folder).close()
        queue.put("opened")  # type: ignore[attr-defined]
    except Exception as error:
        queue.put(str(error))  # type: ignore[attr-defined]


@pytest.mark.slow
def test_processes_that_open_a_new_vault_at_once_all_open_it(tmp_path: Path) -> None:
    fork = multiprocessing.get_context("fork")
    seen: Counter[str] = Counter()
    for number in range(10):
        barrier, queue = fork.Barrier(6), fork.Queue()
        processes = [
            fork.Process(target=open_new, args=(tmp_path / str(number), barrier, queue), daemon=True) for _ in range(6)
        ]
        for process in processes:
            process.start()
        seen.update(queue.get(timeout=60) for _ in processes)
        for process in processes:
            process.join()
    assert set(seen) == {"opened"}
