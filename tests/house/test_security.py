"""SECURITY.md: what it says is protected has a test for each line, and the tests are there."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SECTION = re.compile(r"^## What is protected.*?(?=^## )", re.MULTILINE | re.DOTALL)
LINE = re.compile(r"^- (?:.|\n(?!- |\n))*", re.MULTILINE)
TEST = re.compile(r"`((?:\w+/)+\w+\.py)(?:::(\w+))?`")


def test_each_line_names_tests_that_are_there() -> None:
    found = SECTION.search((ROOT / "SECURITY.md").read_text(encoding="utf-8"))
    assert found is not None
    lines = LINE.findall(found[0])
    assert len(lines) > 60
    for line in lines:
        named = TEST.findall(line)
        assert named, f"names no test: {line}"
        for file, test in named:
            text = (ROOT / "tests" / file).read_text(encoding="utf-8")
            assert not test or f"def {test}(" in text, f"{file} has no {test}"
