"""A task's code does not get out of its process: escapes, with Landlock and seccomp and with bubblewrap around them."""

import errno
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from prefect.states import Completed

from flows.local_work import InProcess
from flows.participation import attend
from flows.plan import Plan
from flows.policy import load_task
from flows.sandbox import frames, seccomp, view
from flows.sandbox import parent as parent_module
from flows.sandbox.host import Layer, layers, missing
from flows.sandbox.parent import LOG_BYTES, Rules
from flows.sandbox.process import environment
from flows.sandbox.sandboxed import SandboxedWorkshops
from flows.sandbox.syscalls import ALWAYS, CHECKED, numbers
from flows.tables import first_model
from flows.workshop import WorkFailed, WorkOrder
from ml_tasks.training import initial_vector
from tests.attacks.escapes import ATTEMPTS, HELD
from tests.flows.consortium import plan_for

SECRET = "prefect-key-4711"
MEMORY_MIB = 512
ENDLESS = {
    "burn": "not done in time",
    "burn_beyond_signals": "not done in time",
    "flood_the_pipe": "more than the 0 bytes|no frame|closed",
    "promise_two_gigabytes": "more than the 0 bytes",
    "fill_the_temporary_folder": "filled its temporary folder|closed",
}
"""Those after which the child is gone, and what the site is told."""
FORBIDDEN = set(
    (
        "socket socketpair connect bind sendto sendmsg ptrace process_vm_readv process_vm_writev "
        "io_uring_setup unshare setns mount pivot_root chroot keyctl add_key request_key bpf "
        "perf_event_open userfaultfd fork vfork clone3 execve execveat pidfd_open pidfd_getfd "
        "pidfd_send_signal tkill rt_sigqueueinfo setsid setpgid chmod fchmod fchmodat chown fchown "
        "utimensat setxattr truncate creat mknod symlink link memfd_create shmget mq_open "
        "open_by_handle_at openat2 sched_setaffinity sched_setscheduler setpriority personality kcmp "
        "process_madvise reboot swapon init_module "
    ).split()
)
ALONE = {"take_all_memory", "take_all_memory_by_sharing", "make_threads_without_end", "print_without_end"}
"""Those that take much: each gets a child of its own."""
AT_ONCE = 25
VAULT = "the identity key"
LACKS = {False: errno.EACCES, True: errno.ENOENT}
"""What a file is that may not be read, without and with bubblewrap."""
FULL = "fill_the_temporary_folder"  # bubblewrap's is a file system of that size


@pytest.fixture(scope="module", params=["landlock", "bubblewrap"])
def workshops(request, tmp_path_factory, debian_package) -> Iterator[SandboxedWorkshops]:
    """One warm parent for all escapes, started where a secret and a descriptor could be inherited."""
    if request.param == "bubblewrap":
        debian_package("bubblewrap", command="bwrap")
    here = {layer.name for layer in layers() if layer.holds}
    if not {"landlock", "seccomp", request.param} <= here:
        pytest.skip(f"this host has only {', '.join(here)}")
    root = tmp_path_factory.mktemp("site")
    (root / "data").mkdir()
    (root / "vault").mkdir()
    (root / "vault" / "vault.sqlite").write_text(VAULT)
    (root / "vault" / "vault.sqlite").chmod(0o600)
    inherited = os.open(root / "vault" / "vault.sqlite", os.O_RDONLY)
    os.set_inheritable(inherited, True)
    os.environ["PREFECT_API_KEY"] = SECRET
    rules = Rules(
        tasks=["tests.attacks.escapes:Escape", "tests.flows.tasks:Tiny"],
        data={"tiny": root / "data"},
        setting="required",
        memory_mib=MEMORY_MIB,
        log=root / "processes.log",
        bubblewrap=request.param == "bubblewrap",
    )
    made = SandboxedWorkshops(rules)
    try:
        made.warm()
        yield made
    finally:
        del os.environ["PREFECT_API_KEY"]
        os.close(inherited)
        made.close()


@pytest.fixture(scope="module")
def targets(workshops, tmp_path_factory) -> Iterator[dict]:
    """What there is to reach outside: a listener, unix sockets, this process, its vault."""
    root = workshops.rules.data["tiny"].parent
    with socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket(socket.AF_UNIX) as named:
        named.bind(str(tmp_path_factory.mktemp("s") / "s"))
        named.listen()
        with socket.socket(socket.AF_UNIX) as abstract:
            abstract.bind(f"\0fedseal-{os.getpid()}")
            abstract.listen()
            yield {
                "vault": str(root / "vault" / "vault.sqlite"),
                "home": str(Path.home()),
                "beside": str(Path(__file__).resolve().parents[2] / "pyproject.toml"),
                "site": os.getpid(),
                "port": tcp.getsockname()[1],
                "unix": named.getsockname(),
                "abstract": f"fedseal-{os.getpid()}",
                "secret": SECRET,
            }


def escape(workshops: SandboxedWorkshops, targets: dict, *attempts: str, limit_s: float = 60) -> dict[str, str] | str:
    """Try escapes in a new child; gives what it says of each, or what the site says of the child."""
    folder = workshops.rules.data["tiny"]
    (folder / "attempt.json").write_text(json.dumps(targets | {"attempts": attempts}))
    sandboxed = workshops(escape_plan(), "ann", folder)
    try:
        (said,) = sandboxed.check(limit_s).wrong
        return json.loads(said)
    except WorkFailed as failed:
        return str(failed)
    finally:
        sandboxed.stop()


def escape_plan() -> Plan:
    return plan_for().model_copy(update={"task": "tests.attacks.escapes:Escape"})


@pytest.fixture(scope="module")
def tried(workshops, targets) -> dict[str, str]:
    """What came of each escape; many share a child, since none that is held leaves a trace there."""
    found, names = {}, sorted(ATTEMPTS.keys() - ENDLESS.keys() - ALONE)
    for start in range(0, len(names), AT_ONCE):
        said = escape(workshops, targets, *names[start : start + AT_ONCE])
        assert isinstance(said, dict), said
        found |= said
    return found


@pytest.mark.parametrize("attempt", sorted(ATTEMPTS.keys() - ENDLESS.keys() - ALONE))
def test_no_escape_succeeds(tried, attempt) -> None:
    assert tried[attempt].startswith(HELD)


def test_after_all_escapes_vault_and_data_are_as_they_were(workshops, targets, tried) -> None:
    vault = Path(targets["vault"])
    assert (vault.read_text(), vault.stat().st_mode & 0o777) == (VAULT, 0o600)
    assert [path.name for path in workshops.rules.data["tiny"].iterdir()] == ["attempt.json"]


@pytest.mark.parametrize("attempt", sorted(ALONE))
def test_a_task_gets_no_more_memory_or_threads_than_the_policy_allows(workshops, targets, attempt) -> None:
    said = escape(workshops, targets, attempt)
    assert "memory that the policy allows" in said or said[attempt].startswith(HELD)


@pytest.mark.slow
@pytest.mark.parametrize("attempt", sorted(ENDLESS))
def test_a_task_that_takes_too_much_is_killed_and_the_next_order_gets_a_new_process(
    workshops, targets, attempt
) -> None:
    said = escape(workshops, targets, attempt, limit_s=1.5 if attempt.startswith("burn") else 60)
    held_by_size = attempt == FULL and workshops.rules.bubblewrap and said == {FULL: f"{HELD} 28"}
    assert held_by_size or any(words in said for words in ENDLESS[attempt].split("|")), said
    assert escape(workshops, targets, "read_passwd") == {"read_passwd": f"{HELD} {LACKS[workshops.rules.bubblewrap]}"}


def test_what_a_task_prints_goes_to_the_site_s_log_alone_and_is_bounded(workshops, targets) -> None:
    escape(workshops, targets, "print_without_end")
    log = workshops.rules.log
    deadline = time.monotonic() + 5
    while b"PATIENT" not in log.read_bytes() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert log.stat().st_mode & 0o777 == 0o600
    assert log.stat().st_size < 3 * LOG_BYTES


def test_a_normal_task_gives_bit_for_bit_what_it_gives_in_this_process(workshops) -> None:
    plan = plan_for()
    sandboxed, within = workshops(plan, "ann", None), InProcess(plan, "ann", None)
    try:
        assert sandboxed.describe(60) == within.describe(60)
        for step in ("moments", "train", "evaluate"):
            order = order_of(plan, step)
            ours, theirs = sandboxed.work(order, 60), within.work(order, 60)
            assert ours.content == theirs.content
            assert ours.values.keys() == theirs.values.keys()
            for name, array in theirs.values.items():
                assert ours.values[name].dtype == array.dtype
                assert ours.values[name].shape == array.shape
                assert ours.values[name].tobytes() == array.tobytes()
        assert sandboxed.check(60) == within.check(60)
        assert not within.check(60).wrong
    finally:
        sandboxed.stop()


def order_of(plan: Plan, step: str) -> WorkOrder:
    task = load_task(plan.task)
    model = first_model(plan, task.features, initial_vector(task, plan.seed)).to_bytes()
    return WorkOrder(purpose="training", step=step, round=1, model=model, subset=bytes(32))


def test_work_that_is_stopped_from_outside_ends_at_once(workshops, targets) -> None:
    folder = workshops.rules.data["tiny"]
    (folder / "attempt.json").write_text(json.dumps(targets | {"attempts": ["burn"]}))
    sandboxed, said = workshops(escape_plan(), "ann", folder), []

    def work() -> None:
        try:
            sandboxed.check(300)
        except WorkFailed as failed:
            said.append(str(failed))

    waiting = threading.Thread(target=work)
    waiting.start()
    deadline = time.monotonic() + 60
    while sandboxed._child is None and time.monotonic() < deadline:
        time.sleep(0.02)
    began = time.monotonic()
    sandboxed.stop()
    waiting.join(10)
    assert said, "it still works"
    assert time.monotonic() - began < 5


def test_between_two_orders_nothing_of_a_task_runs(workshops, targets) -> None:
    """A thread that a task leaves behind is stopped with its process."""
    folder = workshops.rules.data["tiny"]
    (folder / "attempt.json").write_text(json.dumps(targets | {"attempts": []}))
    sandboxed = workshops(escape_plan(), "ann", folder)
    try:
        assert sandboxed.describe(60).sizes.parameters == 3
        child = sandboxed._child
        assert child is not None
        if not workshops.rules.bubblewrap:  # else it has another number outside
            time.sleep(0.3)
            state = Path(f"/proc/{child.number}/stat").read_text().rpartition(") ")[2][0]
            assert state == "T"
    finally:
        sandboxed.stop()


def test_a_participation_that_ends_stops_its_local_work() -> None:
    """Finding 12: it waited for what ran, also after the site had withdrawn."""
    ended, stopped, looks = iter([None, Completed()]), threading.Event(), iter([["train"], []])

    def wait() -> None:
        assert stopped.is_set()

    seat = SimpleNamespace(
        site=SimpleNamespace(stop_work=lambda training: stopped.set()),
        training="tiny",
        taken={"train": None},
        answered=set(),
        take=lambda: next(looks),
        states=lambda: {},
        tidy=lambda: None,
        end=lambda states: next(ended),
        over=lambda states: False,
        leave=lambda over: None,
        log=None,
    )
    assert attend(seat, handle=lambda key: SimpleNamespace(wait=wait)).is_completed()


def test_a_forged_answer_ends_the_child() -> None:
    """Whatever comes through the pipe that is no frame of the size asked for raises, and reads no more than that."""
    for content in (
        b"",
        b"\0" * 12,
        frames.HEAD.pack(2**31, 0),
        frames.HEAD.pack(2, 2**31) + b"{}",
        frames.HEAD.pack(2, 0) + b"[]",
        frames.HEAD.pack(2, 0) + b"{}",
        framed({"words": {}, "arrays": [["a", "|O", [1]]]}, b"\0" * 8),
        framed({"words": {}, "arrays": [["a", "<f8", [-1]]]}, b""),
        framed({"words": {}, "arrays": [["a", "<f8", [2**62, 4]]]}, b""),
        framed({"words": {}, "arrays": [["a", "<f8", [1]]]}, b"\0" * 16),
        framed({"words": [1], "arrays": []}, b""),
        framed({"words": {}, "arrays": [["a", "<f8", [0]]] * 65}, b""),
    ):
        reading, writing = os.pipe()
        os.write(writing, content)
        os.close(writing)
        with pytest.raises(frames.FrameError):
            frames.receive(reading, most=64, ends=time.monotonic() + 5)
        os.close(reading)


def framed(words: dict, content: bytes) -> bytes:
    text = json.dumps(words).encode()
    return frames.HEAD.pack(len(text), len(content)) + text + content


def test_arrays_pass_a_pipe_bit_for_bit() -> None:
    reading, writing = os.pipe()
    given = {"a": np.array([np.nan, -0.0, np.inf], np.float32), "b": np.arange(4.0).reshape(2, 2), "c": np.array(1.5)}
    frames.send(writing, frames.Frame({"done": 1}, given))
    got = frames.receive(reading, most=100)
    assert got.words == {"done": 1}
    assert {name: (array.tobytes(), array.shape) for name, array in got.arrays.items()} == {
        name: (array.tobytes(), array.shape) for name, array in given.items()
    }
    os.close(reading)
    os.close(writing)


def test_no_call_that_leads_out_is_on_the_list_of_either_machine() -> None:
    for machine in ("x86_64", "aarch64"):
        listed = {**numbers(ALWAYS, machine), **numbers(CHECKED, machine)}
        assert len(set(listed.values())) == len(listed)
        assert not FORBIDDEN & listed.keys()
        assert seccomp.program(machine, 1, gpu=False)[-1] == (seccomp.RETURN, 0, 0, seccomp.ERRNO | errno.EPERM)


def test_required_names_what_the_host_lacks() -> None:
    whole = tuple(Layer(name, True, "") for name in ("process", "landlock", "seccomp", "bubblewrap", "limits"))

    def without(*names: str) -> str:
        return missing(tuple(replace(layer, holds=layer.name not in names) for layer in whole))

    assert without() == without("bubblewrap") == without("landlock") == ""
    assert without("landlock", "bubblewrap") == "landlock or bubblewrap"
    assert without("seccomp") == "seccomp"


def test_a_site_that_requires_the_sandbox_does_not_work_without(monkeypatch) -> None:
    monkeypatch.setattr(parent_module, "layers", lambda: (Layer("process", True, ""), Layer("limits", True, "")))
    made = SandboxedWorkshops(Rules(tasks=["tests.flows.tasks:Tiny"], data={}, setting="required"))
    with pytest.raises(WorkFailed, match="lacks landlock or bubblewrap, seccomp"):
        made(plan_for(), "ann", None).describe(60)


def test_a_task_s_environment_is_a_short_list(tmp_path) -> None:
    given = {"PREFECT_API_KEY": SECRET, "AWS_SECRET_ACCESS_KEY": SECRET, "LD_PRELOAD": "x", "OMP_NUM_THREADS": "1"}
    kept = environment(given, scratch=tmp_path, imports="")
    assert SECRET not in kept.values()
    assert "LD_PRELOAD" not in kept
    assert kept["OMP_NUM_THREADS"] == "1"


def test_a_task_s_package_is_found_without_importing_it(tmp_path, monkeypatch) -> None:
    (tmp_path / "hospital").mkdir()
    (tmp_path / "hospital" / "__init__.py").write_text("raise SystemExit('imported')")
    (tmp_path / "alone.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    package, module = view.find_package("hospital.tasks:Heart"), view.find_package("alone:Heart")
    assert package is not None
    assert module is not None
    assert package.paths == (tmp_path / "hospital",)
    assert module.paths == (tmp_path / "alone.py",)
    assert view.find_package("nowhere.at.all:Heart") is None
    assert tmp_path not in view.view([package], []).readable


def test_all_processes_end_with_the_site_s(workshops) -> None:
    """When the site's process has gone its socket closes; so it does here. Keep this test last: it ends them."""
    plan = plan_for()
    workshops(plan, "ann", None).describe(60)
    parent = workshops.parent(plan.task, None)
    group = parent._process.pid
    assert len(in_group(group)) >= 2
    parent._control.close()
    deadline = time.monotonic() + 10
    while in_group(group) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert in_group(group) == []


def in_group(group: int) -> list[str]:
    """The processes of a process group that still run."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(") ")[2].split()
        except OSError:
            continue
        if int(fields[2]) == group and fields[0] != "Z":
            found.append(folder.name)
    return found
