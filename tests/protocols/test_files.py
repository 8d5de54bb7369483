"""TOML files that anybody may have written: whatever is in one, there is one error, and soon."""

from pathlib import Path

import pytest

from protocols.files import MOST_DOTS, NotToml, read_toml


def test_a_toml_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "file.toml"
    path.write_text('a.b = 1\n[c]\nurl = "http://127.0.0.1/"\n')
    assert read_toml(path) == {"a": {"b": 1}, "c": {"url": "http://127.0.0.1/"}}


@pytest.mark.parametrize(
    "text",
    [
        "a = ",
        "a = 1\na = 2",
        f"a = {'9' * 5000}",
        f"a = {'[' * 5000}",
        f"a = {'{a=' * 5000}",
        "a = 2021-13-45",
        f"{'.'.join(['a'] * (MOST_DOTS + 2))} = 1",
        f"{'.'.join(['a'] * 30_000)} = 1",
        ".".join(['"\u2028"'] * 30_000) + " = 1",
    ],
)
def test_whatever_is_not_toml_gives_one_error(tmp_path: Path, text: str) -> None:
    """A number that is too long is a ValueError of Python's own, and depth a RecursionError."""
    path = tmp_path / "file.toml"
    path.write_text(text)
    with pytest.raises(NotToml) as error:
        read_toml(path)
    assert "\n" not in str(error.value)


def test_bytes_that_are_no_text_give_the_same_error(tmp_path: Path) -> None:
    path = tmp_path / "file.toml"
    path.write_bytes(b"\xff")
    with pytest.raises(NotToml):
        read_toml(path)
