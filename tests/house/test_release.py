"""What a clone promises: one version, pinned dependencies, no index of its own, commands that exist."""

import importlib.metadata
import re
import subprocess
import tomllib
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]


def distribution(requirement: str) -> str:
    """Give the normalised name of the distribution that a requirement or a pin names."""
    return re.sub(r"[-_.]+", "-", re.split(r"[^\w.-]", requirement, maxsplit=1)[0]).lower()


def pins() -> dict[str, str]:
    """Read constraints.txt: distribution -> version."""
    lines = (REPOSITORY / "constraints.txt").read_text().splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {distribution(name): version for name, version in pairs}


def test_the_installed_version_is_the_one_in_pyproject() -> None:
    assert importlib.metadata.version("fedseal") == PROJECT["version"]


def test_every_dependency_and_test_tool_is_pinned() -> None:
    needed = PROJECT["dependencies"] + PROJECT["optional-dependencies"]["test"] + PROJECT["optional-dependencies"]["s3"]
    assert {distribution(requirement) for requirement in needed} <= pins().keys()


def test_the_pinned_versions_are_the_installed_ones() -> None:
    needed = PROJECT["dependencies"] + PROJECT["optional-dependencies"]["test"]
    names = [distribution(requirement) for requirement in needed]
    installed = {name: importlib.metadata.version(name).partition("+")[0] for name in names}
    assert installed == {name: pins()[name] for name in names}


def test_the_outside_vectors_follow_the_version_of_cryptography() -> None:
    assert pins()["cryptography-vectors"] == pins()["cryptography"]


def test_no_file_names_a_package_registry() -> None:
    # Written in parts, so that this file does not hold one itself: options that name an index, and an index's address.
    options = ("index" + "-url", "INDEX" + "_URL", "find" + "-links", "://[^ ]*/" + "simple/")
    named = re.compile("|".join(options))
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    files = [path for name in listed.split("\0") if name and (path := REPOSITORY / name).is_file()]
    assert files
    offenders = [path for path in files if named.search(path.read_text(errors="replace"))]
    assert offenders == []


def test_the_commands_of_the_readme_exist_in_the_makefile() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(), flags=re.MULTILINE))
    promised = set(re.findall(r"(?:^|`|\$ )make ([a-z-]+)", (REPOSITORY / "README.md").read_text(), flags=re.MULTILINE))
    assert {"demo", "test"} <= promised <= targets
