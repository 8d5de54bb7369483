"""The exchange is trusted by nobody: size and digest are checked on every read."""

import hashlib
import os
import resource
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows.exchange import Exchange, ExchangeAway
from flows.model import GlobalModel
from ml_tasks.tabular import Standardisation
from protocols.errors import BadMessage


@pytest.fixture
def exchange(tmp_path: Path) -> Exchange:
    """An exchange in a folder."""
    return Exchange((tmp_path / "exchange").as_uri())


def test_an_object_comes_back_by_its_digest_and_storing_it_twice_changes_nothing(exchange: Exchange) -> None:
    digest = exchange.put("ann", b"vector")
    assert digest == hashlib.sha256(b"vector").hexdigest()
    assert exchange.put("ann", memoryview(b"vector")) == digest
    assert exchange.get("ann", digest, size=6) == b"vector"


def test_a_missing_changed_or_oversized_object_names_its_owner(exchange: Exchange, tmp_path: Path) -> None:
    digest = exchange.put("ann", b"vector")
    with pytest.raises(BadMessage, match=r"^ann: exchange: .*missing"):
        exchange.get("ann", "0" * 64, size=6)
    with pytest.raises(BadMessage, match=r"^bob: exchange: .*missing"):
        exchange.get("bob", digest, size=6)
    with pytest.raises(BadMessage, match=r"^ann: exchange: .*larger"):
        exchange.get("ann", digest, size=5)
    (tmp_path / "exchange" / "ann" / digest).write_bytes(b"Vector")
    with pytest.raises(BadMessage, match=r"^ann: exchange: .*digest"):
        exchange.get("ann", digest, size=6)


def test_deleting_an_object_leaves_the_others(exchange: Exchange) -> None:
    mine, other = exchange.put("ann", b"1"), exchange.put("ann", b"2")
    exchange.delete("ann", mine)
    exchange.delete("ann", mine)
    with pytest.raises(BadMessage):
        exchange.get("ann", mine, size=1)
    assert exchange.get("ann", other, size=1) == b"2"


def test_an_exchange_that_is_away_for_a_moment_is_waited_for(
    exchange: Exchange, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    digest = exchange.put("ann", b"vector")
    folder, away = tmp_path / "exchange", tmp_path / "away"
    for use in (
        lambda: exchange.get("ann", digest, size=6),
        lambda: exchange.put("ann", b"other"),
        lambda: exchange.delete("ann", digest),
    ):
        folder.rename(away)
        folder.touch()
        back = threading.Timer(1.0, lambda: (folder.unlink(), away.rename(folder)))
        back.start()
        use()
        back.join()
    assert sorted(path.name for path in (folder / "ann").iterdir()) == [hashlib.sha256(b"other").hexdigest()]
    lines = [record.getMessage() for record in caplog.records if record.name == "fedseal.exchange"]
    assert set(lines[:2]) == {
        "the exchange cannot be used (Not a directory); trying again in 0.5 s",
        "the exchange cannot be used (Not a directory); trying again in 1 s",
    }


def test_an_exchange_that_stays_away_is_told_in_one_line_without_its_place(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    exchange = Exchange((tmp_path / "file" / "exchange").as_uri(), patience_s=0)
    for use in (
        lambda: exchange.get("ann", "0" * 64, size=6),
        lambda: exchange.put("ann", b"other"),
        lambda: exchange.delete("ann", "0" * 64),
    ):
        with pytest.raises(ExchangeAway, match=r"^the exchange cannot be used \(Not a directory\)$"):
            use()


def test_an_object_that_cannot_be_written_whole_leaves_nothing(tmp_path: Path) -> None:
    exchange = Exchange((tmp_path / "exchange").as_uri(), patience_s=0)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(ExchangeAway, match="File too large"):
            exchange.put("ann", bytes(5000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_model_survives_the_way_there_and_back_and_its_bytes_are_always_the_same() -> None:
    vector = np.arange(5, dtype=np.float32)
    scaling = Standardisation(np.ones(2, np.float32), np.full(2, 3, np.float32))
    for model in (GlobalModel(vector), GlobalModel(vector, scaling)):
        content = model.to_bytes()
        assert content == model.to_bytes()
        back = GlobalModel.from_bytes(content, parameters=5, features=2)
        assert np.array_equal(back.vector, vector)
        assert (back.standardisation is None) == (model.standardisation is None)


@given(st.binary(max_size=300))
def test_bytes_that_are_no_model_are_a_bad_message(content: bytes) -> None:
    with pytest.raises(BadMessage, match="@coordinator: model"):
        GlobalModel.from_bytes(content, parameters=5, features=2)


def test_a_model_of_another_shape_or_type_is_a_bad_message() -> None:
    from safetensors.numpy import save

    good = np.zeros(5, np.float32)
    for arrays in ({"vector": good[:4]}, {"vector": good.astype(np.float64)}, {"vector": good, "mean": good[:2]}, {}):
        with pytest.raises(BadMessage, match="@coordinator: model"):
            GlobalModel.from_bytes(save(arrays), parameters=5, features=2)


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, lambda path: path.symlink_to("/dev/zero")])
def test_what_is_no_file_is_no_object_and_is_let_alone(tmp_path: Path, make: Callable[[Path], None]) -> None:
    """A folder would be tried again for half a minute, a pipe waited for without an end."""
    exchange, digest = Exchange(tmp_path.as_uri()), hashlib.sha256(b"").hexdigest()
    path = tmp_path / "ann" / digest
    path.parent.mkdir()
    make(path)
    began = time.monotonic()
    with pytest.raises(BadMessage, match="missing"):
        exchange.get("ann", digest, size=10)
    exchange.delete("ann", digest)
    assert os.path.lexists(path)
    assert time.monotonic() - began < 5


def test_a_link_that_waits_where_a_file_will_be_written_is_not_followed(tmp_path: Path) -> None:
    exchange, content = Exchange((tmp_path / "exchange").as_uri()), b"known beforehand"
    digest, mine = hashlib.sha256(content).hexdigest(), tmp_path / "mine"
    mine.write_bytes(b"mine")
    for name in (digest, f"{digest}.unfinished"):
        path = tmp_path / "exchange" / "ann" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(mine)
    assert exchange.put("ann", content) == digest
    assert mine.read_bytes() == b"mine"
    assert exchange.get("ann", digest, size=100) == content
