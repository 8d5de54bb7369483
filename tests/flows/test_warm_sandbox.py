"""What was loaded ahead of a training is taken for it only while it is what a new one would be."""

import os
import signal
import socket
import time
from dataclasses import replace
from pathlib import Path

import pytest

from flows.sandbox.host import layers
from flows.sandbox.parent import Rules
from flows.sandbox.sandboxed import SandboxedWorkshops


@pytest.fixture
def rules(tmp_path: Path) -> Rules:
    """Of a site with one data set."""
    if not {"landlock", "seccomp"} <= {layer.name for layer in layers() if layer.holds}:
        pytest.skip("this host has no Landlock, where nothing is loaded ahead")
    (tmp_path / "data").mkdir()
    return Rules(tasks=["tests.flows.tasks:Tiny"], data={"tiny": tmp_path / "data"}, memory_mib=512)


def test_what_is_warm_is_taken_as_long_as_rules_and_folders_are_the_same(rules: Rules, tmp_path: Path) -> None:
    made = SandboxedWorkshops(rules)
    assert not made.fits(rules), "nothing is loaded yet"
    made.warm()
    try:
        assert made.fits(rules)
        (tmp_path / "data" / "more.csv").touch()
        assert made.fits(rules), "a file is read when the task reads it"
        assert not made.fits(replace(rules, memory_mib=1024))
        assert not made.fits(replace(rules, data={}))
        (tmp_path / "data").rename(tmp_path / "last-year")
        assert not made.fits(rules), "the data set is gone"
        (tmp_path / "data").mkdir()
        assert not made.fits(rules), "a mount would still show the data set of last year"
    finally:
        made.close()
    assert not made.fits(rules)


def test_what_has_ended_is_not_taken(rules: Rules) -> None:
    made = SandboxedWorkshops(rules)
    made.warm()
    parent = made.parent("", None)
    os.killpg(parent._process.pid, signal.SIGKILL)
    parent._process.wait()
    for _ in range(100):
        if parent.ended:
            break
        time.sleep(0.05)
    assert not made.fits(rules)
    made.close()


def test_what_is_left_to_a_forked_process_goes_on_for_that_process_alone(rules: Rules) -> None:
    made = SandboxedWorkshops(rules)
    made.warm()
    ours, theirs = socket.socketpair()
    process = os.fork()
    if process == 0:
        theirs.recv(1)
        theirs.sendall(b"fits" if made.fits(rules) else b"none")
        made.close()
        os._exit(0)
    starter = made.parent("", None)._process
    made.let_go()
    assert not made.fits(rules)
    with ours, theirs:
        ours.sendall(b".")
        assert ours.recv(4) == b"fits"
    assert os.waitpid(process, 0)[1] == 0
    assert starter.wait(30) == -signal.SIGKILL, "its new owner has ended it"
