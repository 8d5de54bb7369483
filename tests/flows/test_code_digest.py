"""The digest of a task's code: of all that Python would import, found without running any of it (SPEC 6.11)."""

import os
import py_compile
import shutil
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib import invalidate_caches
from pathlib import Path

import pytest

from flows.code_digest import check_code, check_same_code, code_digest, import_from_source, with_code, without_code
from flows.local_work import LocalWork
from flows.plan import Plan, PlanError
from flows.policy import load_task
from protocols.contexts import sha256
from protocols.errors import Refused
from tests.flows.consortium import plan_for

TASK = "hospital_code.models.deep:Deep"
SOURCE = "from tests.flows.tasks import Tiny\nclass Deep(Tiny):\n    title = 'as written'\n"


@pytest.fixture
def package(tmp_path: Path) -> Iterator[Path]:
    """A package of a hospital's own on ``sys.path``, whose import would be noticed."""
    root = tmp_path / "installed" / "hospital_code"
    (root / "models").mkdir(parents=True)
    (root / "__init__.py").write_text("raise SystemExit('imported')\n")
    (root / "models" / "__init__.py").touch()
    (root / "models" / "deep.py").write_text(SOURCE)
    (root / "weights.bin").write_bytes(b"\0\1")
    yield from installed(root.parent, "hospital_code")


def installed(folder: Path, name: str) -> Iterator[Path]:
    before = sys.meta_path[:]
    sys.path.insert(0, str(folder))
    invalidate_caches()
    yield folder / name
    sys.path.remove(str(folder))
    sys.meta_path[:] = before
    for module in [one for one in sys.modules if one.partition(".")[0] == name]:
        del sys.modules[module]


def runnable(package: Path) -> None:
    """Let the package be imported."""
    (package / "__init__.py").write_text("")


def plan_with(code: str) -> Plan:
    return plan_for().model_copy(update={"task": TASK, "code": code})


def test_nothing_is_imported(package: Path) -> None:
    assert len(code_digest(TASK)) == 64
    assert "hospital_code" not in sys.modules


def test_every_file_counts_by_name_and_content_and_where_it_lies_does_not(package: Path, tmp_path: Path) -> None:
    first = code_digest(TASK)
    assert code_digest("hospital_code:Other") == first
    changes = {
        "a changed neighbour": lambda: (package / "__init__.py").write_text(""),
        "another file": lambda: (package / "more.py").write_text(""),
        "a file of data": lambda: (package / "weights.bin").write_bytes(b"\0\2"),
        "a compiled module": lambda: (package / "evil.pyc").write_bytes(b"x"),
        "a compiled module where Python's own are": lambda: hidden(package / "__pycache__" / "evil.pyc"),
        "a name": lambda: (package / "more.py").rename(package / "less.py"),
        "a folder": lambda: (package / "models").rename(package / "model"),
    }
    seen = {first}
    for what, change in changes.items():
        change()
        seen.add(code_digest(TASK))
        assert len(seen) == 2 + list(changes).index(what), what
    shutil.copytree(package, tmp_path / "elsewhere" / "hospital_code")
    before = code_digest(TASK)
    sys.path.insert(0, str(tmp_path / "elsewhere"))
    invalidate_caches()
    assert code_digest(TASK) == before
    sys.path.remove(str(tmp_path / "elsewhere"))


def hidden(path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"x")


def test_it_is_the_hash_of_the_framed_sorted_names_and_contents(package: Path) -> None:
    shutil.rmtree(package / "models")
    init, weights = (sha256_of(package / name) for name in ("__init__.py", "weights.bin"))
    assert code_digest(TASK) == sha256(
        "fedseal/1", "code", "hospital_code/__init__.py", init, "hospital_code/weights.bin", weights
    )


def sha256_of(path: Path) -> str:
    import hashlib

    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_what_python_keeps_for_itself_does_not_count(package: Path) -> None:
    first = code_digest(TASK)
    for folder in (package, package / "models"):
        for name in ("deep.cpython-311.pyc", "deep.cpython-311.opt-2.pyc", "deep.cpython-311.pyc.140", "a.b-9.0.2.pyc"):
            hidden(folder / "__pycache__" / name)
    assert code_digest(TASK) == first


def test_a_poisoned_cache_is_not_what_runs(package: Path) -> None:
    """Python would run it: it bears the time and the size of the source."""
    runnable(package)
    source = package / "models" / "deep.py"
    poison = package.parent / "poison.py"
    poison.write_text(SOURCE.replace("as written", "as planted"))
    for path in (source, poison):
        os.utime(path, (1_000_000_000, 1_000_000_000))
    assert source.stat().st_size == poison.stat().st_size
    cached = package / "models" / "__pycache__" / f"deep.{sys.implementation.cache_tag}.pyc"
    py_compile.compile(str(poison), str(cached), dfile=str(source))
    assert load_task(TASK).title == "as written"


def test_links_and_pipes_are_refused(package: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside.py"
    outside.write_text("")
    ways = (
        lambda path: path.symlink_to(outside),
        lambda path: path.symlink_to(tmp_path),
        lambda path: path.symlink_to(package / "weights.bin"),
        lambda path: os.mkfifo(path),
    )
    for way in ways:
        odd = package / "odd.py"
        way(odd)
        with pytest.raises(PlanError, match="is a link, or no file"):
            code_digest(TASK)
        odd.unlink()
    code_digest(TASK)


def test_a_single_module_and_a_package_without_init(tmp_path: Path) -> None:
    (tmp_path / "lone_code.py").write_text("x = 1\n")
    (tmp_path / "bare_code").mkdir()
    (tmp_path / "bare_code" / "task.py").write_text("x = 1\n")
    for _ in installed(tmp_path, "lone_code"):
        lone = code_digest("lone_code:Task")
        bare = code_digest("bare_code.task:Task")
        (tmp_path / "lone_code.py").write_text("x = 2\n")
        (tmp_path / "other.py").write_text("x = 2\n")
        assert code_digest("lone_code:Task") != lone and code_digest("bare_code.task:Task") == bare


@pytest.mark.parametrize("task", ["no_such_package.x:Y", "sys:Path", "__main__:X"])
def test_what_has_no_files_has_no_digest(task: str) -> None:
    with pytest.raises(PlanError, match="task package"):
        code_digest(task)


def test_a_plan_names_the_installed_code_or_says_with_both_digests_that_it_is_other(package: Path) -> None:
    here, other = code_digest(TASK), sha256("other")
    assert with_code(plan_with("")).code == here
    assert with_code(plan_with(here)) == plan_with(here)
    assert with_code(plan_with("")).digest != plan_with("").digest
    assert without_code(plan_with(here)) == plan_with("")
    with pytest.raises(PlanError) as caught:
        with_code(plan_with(other))
    assert here in str(caught.value) and other in str(caught.value)
    check_same_code(plan_with(""))


def test_a_site_compares_the_code_as_its_policy_says(package: Path) -> None:
    here, other = code_digest(TASK), sha256("other")
    check_code("pinned", plan_with(here), "ann")
    check_code("named", plan_with(""), "ann")
    check_code("any", plan_with(other), "ann")
    with pytest.raises(Refused, match="does not name the digest"):
        check_code("pinned", plan_with(""), "ann")
    for rule in ("pinned", "named"):
        with pytest.raises(Refused) as caught:
            check_code(rule, plan_with(other), "ann")
        assert here in caught.value.reason and other in caught.value.reason


def test_the_code_is_compared_again_right_before_it_is_imported(package: Path) -> None:
    plan = with_code(plan_with(""))
    (package / "models" / "deep.py").write_text(SOURCE + "# another day\n")
    with pytest.raises(PlanError, match="that is installed here"):
        LocalWork(plan, "ann", None)
    assert "hospital_code" not in sys.modules


def test_sites_that_are_threads_may_import_tasks_at_the_same_time() -> None:
    """Each puts its finder first; one that took another's away at that moment was seen to fail."""
    before = list(sys.meta_path)
    try:
        with ThreadPoolExecutor(8) as threads:
            done = [threads.submit(import_from_source, f"package{number % 3}") for number in range(3000)]
        assert [one.exception() for one in done if one.exception()] == []
        assert len(sys.meta_path) == len(before) + 3
    finally:
        sys.meta_path[:] = before
