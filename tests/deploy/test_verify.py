"""``fedseal verify``: a real training's receipt verifies offline; whatever is changed in it is found and named."""

import json
import subprocess
import sys
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from flows.collect import Unfinished
from protocols.consortium import write_consortium
from protocols.keys import Consortium, Identity
from protocols.receipt import NotJson, ReceiptError, parse_receipt
from protocols.vault import Vault
from tests.deploy.command import fedseal
from tests.deploy.receipts import (
    Trained,
    changed,
    check,
    holder,
    is_within,
    leave,
    leaves,
    nodes,
    resigned,
    train,
    written,
)
from tests.flows.consortium import at, plan_for, trial
from tests.flows.tasks import SITES

PRIVATE = {"unit": "record", "epsilon": 3.0, "sampling_rate": 0.5, "expected_batch": 20.0, "statistics": "bounds"}
PLAIN = {"protocol": "plain", "allow_insecure": True}
# An epoch below the resolution of any metric: nothing improves on round 1.
SLOW = {"steps": 1, "batch_size": 99, "learning_rate": 1e-4}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Statistics, two rounds and an evaluation; dan drops out of round 1, and three of four confirm round 2."""
    faults = {("dan", "mask"): at([1], "lost"), ("ann", "confirm"): at([2], "lost")}
    return train(tmp_path_factory.mktemp("trained"), plan_for(), faults)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    faults = {("dan", "submit"): at([0], "lost")}
    return train(tmp_path_factory.mktemp("plain"), plan_for("Bare", rounds=1, protection=PLAIN), faults, "tiny-plain")


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Stopped after two of six rounds; the model of round 1 is kept."""
    stopping = {"patience": 1, "keep": "best", "metric": "accuracy"}
    plan = plan_for("Bare", rounds=6, local=SLOW, stopping=stopping, protection={"max_examples": 20})
    return train(tmp_path_factory.mktemp("stopped"), plan, name="tiny-stopped")


@pytest.fixture(scope="module")
def private(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """With privacy, and an update that is rotated; the first round takes two attempts."""
    faults = {(site, "share"): at([1], "lost") for site in ("ann", "bob")}
    ring = {"bits": 32, "scale": 2.0**12, "rotated": True}
    plan = plan_for(local={"steps": 1}, privacy=PRIVATE, protection={"update": ring}, max_attempts=2)
    return train(tmp_path_factory.mktemp("private"), plan, faults, "tiny-private")


def content_of(trained: Trained) -> dict[str, Any]:
    return json.loads(trained.path.read_text())


def blamed(content: Any, trained: Trained) -> str:
    """The field that the check names."""
    with pytest.raises(ReceiptError) as caught:
        check(content, trained.consortium)
    assert str(caught.value).isprintable()
    return caught.value.field


def test_a_real_training_s_receipt_verifies_and_tells_who_took_part_in_what(trained: Trained) -> None:
    code, out, err = fedseal(*trained.words(model=trained.model))
    assert (code, err) == (0, "")
    for line in (
        "statistics[0.1]: summed ann, bob, cat, dan; confirmed by ann, bob, cat, dan",
        "training[1.1]: summed ann, bob, cat; confirmed by ann, bob, cat; dropped dan",
        "training[2.1]: summed ann, bob, cat, dan; confirmed by bob, cat, dan",
        "evaluation[3.1]: summed ann, bob, cat, dan; confirmed by ann, bob, cat, dan",
        "is the one that the final evaluation was made on",
        "This proves",
        "This does not prove: that the coordinator added right",
    ):
        assert line in out
    assert "name its file with --model" in fedseal(*trained.words())[1]


def test_the_receipt_of_a_plain_training_says_that_nothing_was_protected(plain: Trained) -> None:
    code, out, _ = fedseal(*plain.words(model=plain.model))
    assert code == 0
    assert "protected nothing" in out
    assert "training[1.1]: summed ann, bob, cat; confirmed by ann, bob, cat; dropped dan" in out


def test_the_receipt_of_a_training_that_stopped_early_and_kept_its_best_model_verifies(stopped: Trained) -> None:
    code, out, _ = fedseal(*stopped.words(model=stopped.model))
    assert code == 0
    assert "evaluation[7.1]" in out
    assert len(stopped.receipt.rounds) == 3
    assert stopped.receipt.rounds[2].context.model == stopped.receipt.rounds[0].context.model


@pytest.mark.slow
def test_a_training_whose_held_round_another_process_has_finished_leaves_a_receipt(tmp_path: Path) -> None:
    plan = plan_for("Bare", rounds=2, deadlines={"step_s": 120, "train_s": 120, "finish_s": 0.1})
    faults = {(site, "reveal"): at(range(1, 9), "late") for site in ("ann", "bob")}
    with trial(tmp_path, plan, faults) as run, pytest.raises(Unfinished):
        run.train()
    with trial(tmp_path, plan) as run:
        run.train()
        resumed = leave(run, tmp_path)
    assert fedseal(*resumed.words(model=resumed.model))[0] == 0


def test_the_receipt_of_a_private_training_tells_its_epsilon(private: Trained) -> None:
    code, out, err = fedseal(*private.words(model=private.model))
    assert (code, err) == (0, "")
    epsilons = [entry.epsilon for entry in private.receipt.rounds]
    assert epsilons == sorted(epsilons) and len(set(epsilons)) == 3
    assert "epsilon 3 at delta 1e-05" in out and f"has cost {epsilons[-1]:.4g} of it" in out
    assert out.index("epsilon 3 at") < out.index(f"has cost {epsilons[-1]:.4g}")


@pytest.mark.slow
def test_the_receipt_of_a_training_with_an_adaptive_clip_is_about_the_clip_too(tmp_path: Path) -> None:
    rules = {"sampling_rate": 1.0, "least_weight": 0.1, "expected_batch": 0.0, "adaptive": True}
    plan = plan_for("Bare", rounds=1, privacy=PRIVATE | {"unit": "site"} | rules, protection={"update": {"bits": 64}})
    trained = train(tmp_path, plan, name="tiny-sites")
    code, out, _ = fedseal(*trained.words(model=trained.model))
    assert (code, "adding or removing one site" in out) == (0, True)
    tensors = load_file(trained.model)
    tensors["privacy.clip"] *= 2
    save_file(tensors, tmp_path / "other.safetensors")
    code, _, err = fedseal(*trained.words(model=tmp_path / "other.safetensors"))
    assert (code, "rounds[1].model" in err) == (1, True)


@pytest.mark.parametrize(
    ("path", "field"),
    [(("epsilon",), "rounds[1].epsilon"), (("context", "noise", "update"), "rounds[1].context")],
)
def test_a_coordinator_cannot_lie_about_epsilon_and_noise(private: Trained, path: tuple[str, ...], field: str) -> None:
    """The noise is in the context that the adverts are signed under."""
    content = content_of(private)
    place = holder(content, ("rounds", 1, *path))
    place[path[-1]] /= 2
    assert blamed(resigned(content, private.identity), private).startswith(field)


def test_it_needs_no_network_and_loads_neither_prefect_nor_torch_nor_scipy(trained: Trained) -> None:
    program = """
import socket, sys
def blocked(*_, **__): raise OSError("there is no network")
socket.socket.connect = socket.getaddrinfo = socket.create_connection = blocked
sys.modules["prefect"] = sys.modules["torch"] = sys.modules["scipy"] = None
from deploy.cli import app
app(sys.argv[1:])
"""
    command = [sys.executable, "-c", program, *map(str, trained.words(model=trained.model))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("Verified: ")


@pytest.mark.parametrize("which", [pytest.param("trained", marks=pytest.mark.slow), "plain"])
def test_whatever_leaf_is_changed_the_error_names_it_or_a_parent(which: str, request: pytest.FixtureRequest) -> None:
    """Tensors of the same total are bound by the signature alone, which is named then; with the model they show."""
    trained = request.getfixturevalue(which)
    original = content_of(trained)
    paths = list(leaves(original))
    assert len(paths) > 100
    for path in paths:
        content = deepcopy(original)
        place = holder(content, path)
        place[path[-1]] = changed(place[path[-1]])
        field = blamed(content, trained)
        assert is_within((*path, 0), field) or (path[0], field) == ("tensors", "signature"), (written(path), field)


@pytest.mark.parametrize("which", [pytest.param("trained", marks=pytest.mark.slow), "plain"])
def test_whatever_field_or_item_is_left_out_the_error_names_it_or_what_it_is_missing_from(
    which: str, request: pytest.FixtureRequest
) -> None:
    """A sum that is left out shows where the next one stands in its place."""
    trained = request.getfixturevalue(which)
    original = content_of(trained)
    for path in nodes(original):
        content = deepcopy(original)
        del holder(content, path)[path[-1]]
        field = blamed(content, trained)
        elsewhere = {"rounds": "rounds", "tensors": "signature"} if len(path) == 2 or path[0] == "tensors" else {}
        assert is_within(path, field) or field.startswith(elsewhere.get(str(path[0]), "?")), (written(path), field)


@pytest.mark.slow
def test_whatever_field_is_added_is_named(trained: Trained) -> None:
    original = content_of(trained)
    for path in nodes(original):
        if isinstance(place := holder(original, path), dict):
            content = deepcopy(original)
            holder(content, path)["added"] = next(iter(place.values()))
            field = blamed(content, trained)
            assert is_within((*path[:-1], "added"), field), (written(path), field)


def drop(rounds: list[Any], at: int) -> None:
    del rounds[at]


def repeat(rounds: list[Any], at: int) -> None:
    rounds.insert(at, deepcopy(rounds[at]))


def swap(rounds: list[Any], at: int) -> None:
    rounds[at], rounds[at - 1] = rounds[at - 1], rounds[at]


@pytest.mark.parametrize("place", range(4))
@pytest.mark.parametrize("change", [drop, repeat, swap])
def test_entries_that_are_dropped_repeated_or_reordered_are_found(
    trained: Trained, change: Callable[[list[Any], int], None], place: int
) -> None:
    content = content_of(trained)
    change(content["rounds"], place)
    assert blamed(content, trained).startswith("rounds")


@pytest.mark.parametrize("place", range(4))
@pytest.mark.parametrize("change", [drop, repeat, swap])
def test_also_where_the_coordinator_itself_has_signed_them_so(
    trained: Trained, change: Callable[[list[Any], int], None], place: int
) -> None:
    """Also the statistics, which no plan demands: the sites have bound them in their next adverts."""
    content = content_of(trained)
    change(content["rounds"], place)
    assert blamed(resigned(content, trained.identity), trained).startswith("rounds")


@pytest.mark.parametrize("which", [pytest.param("trained", marks=pytest.mark.slow), "plain", "stopped"])
def test_a_coordinator_that_signs_a_lie_can_lie_about_nothing_but_the_sums_and_how_tensors_are_called(
    which: str, request: pytest.FixtureRequest
) -> None:
    """What the sites have not signed is the coordinator's word: SPEC 11.1. A model that no site was given is too."""
    trained = request.getfixturevalue(which)
    original = content_of(trained)
    believed = set()
    for path in leaves(original):
        content = deepcopy(original)
        place = holder(content, path)
        place[path[-1]] = changed(place[path[-1]])
        try:
            check(resigned(content, trained.identity), trained.consortium)
            believed.add(written(path))
        except ReceiptError:
            continue
    sums = {f"rounds[{place}].sum" for place in range(len(original["rounds"]))}
    names = {f"tensors[{place}].name" for place in range(len(original["tensors"]))}
    chain = {f"rounds[{at}].{one}" for at in range(len(original["rounds"])) for one in ("previous", "digest")}
    made_anew = chain | {"signature"}  # by ``resigned``, whatever stood there
    never_shown = {"rounds[1].model"} if which == "stopped" else set()
    assert believed == sums | names | made_anew | never_shown


def test_a_survivor_set_that_nobody_confirmed_is_named(trained: Trained) -> None:
    content = content_of(trained)
    content["rounds"][2]["survivors"] = ["ann", "bob", "cat"]
    assert blamed(resigned(content, trained.identity), trained) == "rounds[2].survivors"


def test_confirmations_below_the_threshold_or_repeated_are_not_enough(trained: Trained) -> None:
    content = content_of(trained)
    confirmations = content["rounds"][2]["confirmations"]
    confirmations[0] = confirmations[1]
    assert blamed(resigned(content, trained.identity), trained) == "rounds[2].confirmations"
    del confirmations[0]
    assert blamed(resigned(content, trained.identity), trained) == "rounds[2].confirmations"


def test_an_entry_of_another_training_is_no_part_of_this_one(trained: Trained, stopped: Trained) -> None:
    content = content_of(trained)
    content["rounds"][1] = content_of(stopped)["rounds"][1]
    assert blamed(content, trained) == "rounds[1].context.training"
    assert blamed(stopped.receipt, trained) == "coordinator"
    content = content_of(trained) | {"training": "tiny-other"}
    assert blamed(resigned(content, trained.identity), trained) == "training"
    code, _, err = fedseal(*stopped.words(model=trained.model))
    assert (code, err.startswith("fedseal: receipt: rounds: ")) == (1, True)


def test_another_consortium_is_named_by_the_party_that_differs(trained: Trained) -> None:
    right = trained.consortium
    stranger = Identity.generate("stranger").public
    for consortium, field in (
        (Consortium(stranger, right.sites), "coordinator"),
        (Consortium(right.coordinator, {**right.sites, "cat": stranger}), "sites.cat"),
        (Consortium(right.coordinator, {site: right.sites[site] for site in SITES[:3]}), "sites.dan"),
    ):
        with pytest.raises(ReceiptError) as caught:
            check(trained.receipt, consortium)
        assert caught.value.field == field
    check(trained.receipt, Consortium(right.coordinator, {**right.sites, "eve": stranger}))


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda tensors: tensors["weight"].__setitem__((0, 0), 0.5), "rounds[3].model"),
        (lambda tensors: tensors["standardisation.mean"].__setitem__(0, 9.0), "rounds[3].model"),
        (lambda tensors: tensors.pop("weight"), "tensors[0].name"),
        (lambda tensors: tensors.update(weight=np.zeros((2, 1), np.float32)), "tensors[0].shape"),
        (lambda tensors: tensors.update(weight=np.zeros((1, 2), np.int32)), "tensors[0].shape"),
        (lambda tensors: tensors.update(more=np.zeros(1, np.float32)), "tensors"),
        (lambda tensors: tensors.pop("standardisation.mean"), "rounds"),
    ],
)
def test_another_model_is_named_by_what_differs(
    trained: Trained, tmp_path: Path, change: Callable[[dict[str, Any]], object], field: str
) -> None:
    tensors = load_file(trained.model)
    change(tensors)
    save_file(tensors, tmp_path / "model.safetensors")
    code, out, err = fedseal(*trained.words(model=tmp_path / "model.safetensors"))
    assert (code, out) == (1, "")
    assert err.startswith(f"fedseal: receipt: {field}: ")
    assert err.count("\n") == 1


def test_integer_tensors_are_said_not_to_be_covered(trained: Trained, tmp_path: Path) -> None:
    save_file(load_file(trained.model) | {"counter": np.zeros(1, np.int64)}, tmp_path / "model.safetensors")
    code, out, _ = fedseal(*trained.words(model=tmp_path / "model.safetensors"))
    assert (code, "not in the receipt: 'counter'" in out) == (0, True)


def test_input_that_cannot_be_read_is_one_line_and_exit_code_2(trained: Trained, tmp_path: Path) -> None:
    cut, text = tmp_path / "cut.json", trained.path.read_text()
    cut.write_text(text[: len(text) // 2])
    twice = tmp_path / "twice.json"
    twice.write_text(text.replace('"version"', '"version": "fedseal/1", "version"', 1))
    for words, said in (
        (trained.words(receipt=cut), "cut short"),
        (trained.words(receipt=twice), "names a field twice"),
        (trained.words(receipt=tmp_path), "cannot be read"),
        (trained.words(receipt=trained.model), "no JSON"),
        (trained.words(model=trained.path), "not a safetensors file"),
        (trained.words(model=tmp_path / "none"), "cannot be read"),
        (["verify", trained.path, "--consortium", trained.path], "is not TOML"),
    ):
        code, out, err = fedseal(*words)
        assert (code, out) == (2, ""), err
        assert said in err
        assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda content: content.update(rounds=[]), "rounds"),
        (lambda content: content.update(rounds=content["rounds"][:1]), "rounds"),
        (lambda content: content.update(rounds=content["rounds"][-1:]), "rounds"),
        (lambda content: content.update(tensors=[]), "tensors"),
        (lambda content: content.update(tensors=[{"name": "weight", "shape": [2**40, 2]}]), "tensors"),
        (lambda content: _replan(content, max_examples=10**400), "plan"),
        (lambda content: _replan(content, max_examples=10**30), "plan"),
        (lambda content: _replan(content, threshold=2), "plan"),
        (lambda content: _replan(content, threshold=4), "plan"),
        (lambda content: content.update(plan="[" * 10_000), "plan"),
        (lambda content: content.update(plan=content["plan"] + " "), "plan"),
        (lambda content: content["rounds"][0]["context"]["segments"][0].update(length=1), "rounds[0].context"),
    ],
)
def test_content_that_makes_no_sense_is_named_and_never_a_traceback(
    trained: Trained, change: Callable[[dict[str, Any]], object], field: str
) -> None:
    content = content_of(trained)
    change(content)
    assert blamed(content, trained) == field


def _replan(content: dict[str, Any], **protection: int) -> None:
    plan = json.loads(content["plan"])
    plan["protection"] |= protection
    content["plan"] = json.dumps(plan, sort_keys=True, separators=(",", ":"))


@given(data=st.data())
def test_whatever_is_done_to_the_bytes_they_say_the_same_or_do_not_verify(
    trained: Trained, data: st.DataObject
) -> None:
    content = trained.path.read_bytes()
    start = data.draw(st.integers(0, len(content)), "start")
    end = data.draw(st.integers(start, min(len(content), start + 8)), "end")
    mutated = content[:start] + data.draw(st.binary(max_size=8), "put there") + content[end:]
    try:
        receipt = parse_receipt(mutated)
        check(receipt, trained.consortium)
    except (NotJson, ReceiptError) as error:
        assert str(error).isprintable()
    else:
        assert receipt == trained.receipt


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda below: st.lists(below, max_size=3) | st.dictionaries(st.text(), below, max_size=3),
    max_leaves=10,
)


@given(JSON)
def test_hostile_json_ends_in_one_line(value: Any) -> None:
    for content in (json.dumps(value), json.dumps({"version": "fedseal/1", "rounds": [value], "sites": value})):
        with pytest.raises((NotJson, ReceiptError)) as caught:
            parse_receipt(content.encode())
        assert str(caught.value).isprintable()


def test_a_receipt_holds_no_secret(trained: Trained) -> None:
    text = trained.path.read_text()
    vaults = [Vault(trained.folder / "sites" / site) for site in SITES]
    for identity in (trained.identity, *(vault.identity for vault in vaults)):
        assert identity.secret.hex() not in text
    for vault in vaults:
        vault.close()
    kinds = {message["kind"] for entry in json.loads(text)["rounds"] for message in _messages(entry)}
    assert kinds == {"advert", "confirmation"}  # nothing that is sealed, masked or revealed


def _messages(entry: dict[str, Any]) -> list[dict[str, Any]]:
    return [*entry["adverts"], *entry["confirmations"]]


def test_consortium_check_prints_fingerprints_and_refuses_a_bad_file_in_one_line(
    trained: Trained, tmp_path: Path
) -> None:
    good = trained.folder / "consortium.toml"
    code, out, err = fedseal("consortium", "check", good)
    assert (code, err) == (0, "")
    assert [line.split()[:2][-1] for line in out.splitlines()[1:]] == list(SITES)
    assert all(trained.consortium.sites[site][:4] in out for site in SITES)
    bad = tmp_path / "consortium.toml"
    write_consortium(bad, trained.consortium)
    bad.write_text(bad.read_text().replace("[sites]", "[sites]\n[sites]"))
    code, out, err = fedseal("consortium", "check", bad)
    assert (code, out) == (2, "")
    assert "names something twice" in err
    assert err.count("\n") == 1
