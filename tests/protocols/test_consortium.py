"""The consortium file: what is written is read; whatever is wrong is one line with file, field and what to do."""

import pickle
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.consortium import ConsortiumError, fingerprint, read_consortium, write_consortium
from protocols.keys import Consortium, Identity

KEYS = [Identity(f"site-{number}", bytes([number]) * 32).public for number in range(1, 12)]
COORDINATOR, ANN, BOB, CAT = KEYS[:4]
GOOD = f"""
[coordinator]
key = "{COORDINATOR}"

[sites]
ann = "{ANN}"
bob = "{BOB}"
cat = "{CAT}"
"""


def read(folder: Path, text: str | bytes) -> Consortium:
    path = folder / "consortium.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_consortium(path)


def test_a_good_file_is_read(tmp_path: Path) -> None:
    assert read(tmp_path, GOOD) == Consortium(COORDINATOR, {"ann": ANN, "bob": BOB, "cat": CAT})


@given(names=st.sets(st.from_regex(r"[a-z0-9-]{1,32}", fullmatch=True), min_size=3, max_size=5))
def test_what_is_written_is_read_whatever_the_sites_are_called(
    names: set[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    consortium = Consortium(KEYS[0], dict(zip(sorted(names), KEYS[1:], strict=False)))
    path = tmp_path_factory.mktemp("written") / "consortium.toml"
    write_consortium(path, consortium)
    assert read_consortium(path) == consortium


@pytest.mark.parametrize(
    ("text", "field", "said"),
    [
        ("", "coordinator", "write a table [coordinator]"),
        (GOOD.replace("[coordinator]", "[coordinater]"), "coordinater", "remove it"),
        (GOOD.replace("key =", "kee ="), "coordinator.kee", "remove it"),
        (GOOD.replace(f'key = "{COORDINATOR}"', ""), "coordinator.key", "64 lower-case hex digits"),
        (GOOD.replace(COORDINATOR, COORDINATOR.upper()), "coordinator.key", "64 lower-case hex digits"),
        (GOOD.replace(BOB, BOB[:-1]), "sites.bob", "64 lower-case hex digits"),
        (GOOD.replace(BOB, BOB + "\\n"), "sites.bob", "64 lower-case hex digits"),
        (GOOD.replace(f'"{BOB}"', "5"), "sites.bob", "64 lower-case hex digits"),
        (GOOD.replace(BOB, "01" + "00" * 31), "sites.bob", "not an Ed25519 public key"),
        (GOOD.replace(BOB, "ff" * 32), "sites.bob", "not an Ed25519 public key"),
        (GOOD.replace(BOB, ANN), "sites.bob", "is the key of sites.ann"),
        (GOOD.replace(BOB, COORDINATOR), "sites.bob", "is the key of coordinator.key"),
        (GOOD.replace(f'cat = "{CAT}"', ""), "sites", "2 sites, 3 are needed"),
        (GOOD.replace("bob =", "Bob ="), "sites.'Bob'", "rename it"),
        (GOOD.replace("bob =", '"b\\nob" ='), r"sites.'b\nob'", "rename it"),
        (GOOD.replace("bob =", "a-name-of-more-than-thirty-two-chars ="), "sites.'a-name", "rename it"),
        (GOOD.replace("bob =", "ann ="), "file", "names something twice"),
        (GOOD + "[sites]\n", "file", "names something twice"),
        (GOOD + 'version = "1"\n', "sites.version", "64 lower-case hex digits"),
        ('colour = "red"\n' + GOOD, "colour", "remove it"),
        (GOOD[:-9], "file", "is not TOML"),
        (b"\xff\xfe", "file", "is not TOML"),
        ("a = " + "[" * 5000, "file", "is not TOML"),
    ],
)
def test_whatever_is_wrong_is_one_line_that_names_the_field(
    tmp_path: Path, text: str | bytes, field: str, said: str
) -> None:
    with pytest.raises(ConsortiumError) as caught:
        read(tmp_path, text)
    assert caught.value.field.startswith(field)
    assert said in caught.value.reason
    assert str(caught.value).startswith(f"{tmp_path / 'consortium.toml'}: {field}")
    assert str(caught.value).isprintable()
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)  # noqa: S301


def test_a_file_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    for path in (tmp_path / "none.toml", tmp_path):
        with pytest.raises(ConsortiumError, match="cannot be read"):
            read_consortium(path)


def test_what_nobody_could_read_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ConsortiumError, match=r"sites\.bob"):
        write_consortium(tmp_path / "consortium.toml", Consortium(COORDINATOR, {"ann": ANN, "bob": ANN, "cat": CAT}))
    assert not list(tmp_path.iterdir())


def test_a_fingerprint_is_the_keys_own_first_digits() -> None:
    assert fingerprint("0123456789abcdef" * 4) == "0123 4567 89ab cdef 0123"
