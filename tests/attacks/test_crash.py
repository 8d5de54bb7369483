"""A site killed with SIGKILL at any instant goes on, and never says two different things (SPEC 7).

The killed sites are real processes with connections of their own to the vault; nothing is mocked but the moment.
"""

import json
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest

from protocols.errors import ProtocolError, Refused
from protocols.messages import AskAdvertise, AskConfirm, AskMask, AskReveal, AskShare, Envelope, envelope
from protocols.vault import Vault
from tests.attacks.hostile import confirm, make, to_dealings
from tests.simulator import STEPS, Simulator, Values, durable

PROCESSES = multiprocessing.get_context("fork")
REPOSITORY = Path(__file__).resolve().parents[2]


def request_for(simulator: Simulator, step: str, values: dict[str, Values]) -> Envelope:
    """Bring all sites as far as needed, and give the request that takes ``a`` through ``step``."""
    context = simulator.context.digest
    if step == "advertise":
        body: object = AskAdvertise(simulator.context)
    elif step == "share":
        from tests.attacks.hostile import adverts

        body = AskShare(tuple(adverts(simulator).values()))
    else:
        dealings = to_dealings(simulator)
        context = dealings.roster.round
        from tests.attacks.hostile import mask

        for site in "abcde" if step != "mask" else "bcde":
            mask(simulator, dealings, site, values[site])
        if step == "mask":
            body = AskMask(dealings.inbox("a"))
        elif step == "confirm":
            body = AskConfirm(tuple("abcde"))
        else:
            body = AskReveal(tuple(confirm(simulator, dealings, "abcde", site) for site in "abcde"))
    return envelope(simulator.coordinator, f"ask/{step}", context, "a", body)


def answer(vault: Vault, simulator: Simulator, step: str, request: Envelope, values: Values) -> list[str]:
    if step == "mask":
        given = durable.mask(vault, simulator.consortium, request, values, os.urandom(32))
    else:
        given = getattr(durable, step)(vault, simulator.consortium, request)
    return [message.to_json() for message in given]


def kill_here(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def in_a_killed_process(vault: Vault, work: Callable[[Vault, Connection], None]) -> list[str]:
    """Run ``work`` in a process over the same vault; give what it managed to say before it died."""
    ear, mouth = PROCESSES.Pipe(duplex=False)

    def run() -> None:
        work(Vault(vault.folder), mouth)
        kill_here()

    process = PROCESSES.Process(target=run, daemon=True)
    process.start()
    mouth.close()
    said = []
    try:
        while True:
            said.append(ear.recv())
    except EOFError:
        process.join()
    assert process.exitcode == -signal.SIGKILL
    return said


def kill_at_statement(number: int) -> Callable[[Vault], None]:
    """Die just before the vault's ``number``-th SQL statement: between any two things that a step does on disk."""

    def arm(vault: Vault) -> None:
        left = iter(range(number - 1))
        vault._db.set_trace_callback(lambda _: kill_here() if next(left, None) is None else None)

    return arm


def kill_in(method: str, *, after: bool) -> Callable[[Vault], None]:
    """Die as a method of the vault starts, or as it returns."""

    def arm(vault: Vault) -> None:
        honest = getattr(vault, method)

        def dying(*arguments: object, **named: object) -> None:
            if after:
                honest(*arguments, **named)
            kill_here()

        setattr(vault, method, dying)

    return arm


POINTS: dict[str, Callable[[Vault], None]] = {
    **{f"at statement {number}": kill_at_statement(number) for number in range(1, 10)},
    "before the vector": kill_in("keep_masked", after=False),
    "after the vector": kill_in("keep_masked", after=True),
    "after the state": kill_in("advance", after=True),
    "after the journal entry": kill_in("journal", after=True),
    "before the answer": lambda vault: None,  # the journal is committed; the process dies before it says so
}


@pytest.mark.slow
@pytest.mark.parametrize("step", STEPS)
def test_a_site_killed_at_any_point_of_a_step_answers_once(tmp_path: Path, step: str) -> None:
    """Kill it at every point in turn; then ask again, twice: one answer, and one vector, however it died."""
    simulator, values = make(tmp_path)
    request = request_for(simulator, step, values)
    vault = simulator.vaults["a"]
    committed: list[str] | None = None
    for name, arm in POINTS.items():

        def work(own: Vault, mouth: Connection, arm: Callable[[Vault], None] = arm) -> None:
            arm(own)
            answer(own, simulator, step, request, values["a"])

        assert in_a_killed_process(vault, work) == [], name
        entry = vault.entry(simulator.context.digest, step)
        if committed is not None:
            assert entry is not None and json.loads(entry.answer or "") == committed, name
        elif entry is not None:
            committed = json.loads(entry.answer or "")
    assert committed is not None
    first = answer(vault, simulator, step, request, values["a"])
    assert first == committed == answer(Vault(vault.folder), simulator, step, request, values["a"])
    if step == "mask":
        vector = simulator.masked("a", simulator.context.digest)
        assert sha256_of(vector) == json.loads(json.loads(first[0])["body"])["vector"]
        other = {**values["a"], "update": np.zeros(5)}
        with pytest.raises(Refused, match="answered before"):
            answer(vault, simulator, step, request, other)


def sha256_of(vector: np.ndarray) -> str:
    import hashlib

    return hashlib.sha256(vector.tobytes()).hexdigest()


@pytest.mark.slow
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("delay_ms", [0, 2, 5])
def test_a_site_killed_at_a_random_moment_answers_once(tmp_path: Path, step: str, delay_ms: float) -> None:
    """The kill comes from outside, wherever the step has got to; whatever was said stays said."""
    simulator, values = make(tmp_path)
    request = request_for(simulator, step, values)
    vault = simulator.vaults["a"]

    def work(own: Vault, mouth: Connection) -> None:
        signal.signal(signal.SIGALRM, kill_here)
        signal.setitimer(signal.ITIMER_REAL, delay_ms / 1000 + 1e-6)
        mouth.send(answer(own, simulator, step, request, values["a"]))
        while True:  # not signal.pause: an alarm that comes just before it would be slept through
            time.sleep(0.01)

    said = in_a_killed_process(vault, work)
    again = answer(vault, simulator, step, request, values["a"])
    assert said in ([], [again])


CHILD = """
import os, pickle, signal, sys
from pathlib import Path
from protocols import site
from protocols.vault import Vault
folder, task = Path(sys.argv[1]), pickle.loads(sys.stdin.buffer.read())
answer = site.mask(Vault(folder), task["consortium"], task["request"], task["values"], os.urandom(32))
os.kill(os.getpid(), signal.SIGKILL)
print(answer[0].to_json())
"""


def test_a_fresh_interpreter_killed_between_journal_and_answer(tmp_path: Path) -> None:
    simulator, values = make(tmp_path)
    request = request_for(simulator, "mask", values)
    vault = simulator.vaults["a"]
    task = {"consortium": simulator.consortium, "request": request, "values": values["a"]}
    run = [sys.executable, "-c", CHILD, str(vault.folder)]
    child = subprocess.run(run, input=pickle.dumps(task), capture_output=True, cwd=REPOSITORY, timeout=60)
    assert (child.returncode, child.stdout) == (-signal.SIGKILL, b""), child.stderr.decode()
    before = simulator.masked("a", simulator.context.digest)
    entry = vault.entry(simulator.context.digest, "mask")
    assert entry is not None
    assert answer(vault, simulator, "mask", request, values["a"]) == json.loads(entry.answer or "")
    assert np.array_equal(simulator.masked("a", simulator.context.digest), before)
    with pytest.raises(Refused, match="answered before"):
        answer(vault, simulator, "mask", request, {**values["a"], "update": np.zeros(5)})


def together(count: int, work: Callable[[int], object]) -> list[object]:
    """Run ``work(0) … work(count - 1)`` at the same moment in as many processes."""
    barrier, queue = PROCESSES.Barrier(count), PROCESSES.Queue()

    def run(number: int) -> None:
        barrier.wait()
        try:
            queue.put((number, work(number)))
        except ProtocolError as error:
            queue.put((number, error))

    processes = [PROCESSES.Process(target=run, args=(number,), daemon=True) for number in range(count)]
    for process in processes:
        process.start()
    results = dict(queue.get(timeout=60) for _ in processes)
    for process in processes:
        process.join()
    return [results[number] for number in range(count)]


@pytest.mark.parametrize("step", STEPS)
def test_processes_that_are_asked_the_same_at_once_give_one_answer(tmp_path: Path, step: str) -> None:
    simulator, values = make(tmp_path)
    request = request_for(simulator, step, values)
    folder = simulator.vaults["a"].folder
    answers = together(4, lambda _: answer(Vault(folder), simulator, step, request, values["a"]))
    assert all(isinstance(one, list) for one in answers)
    assert all(one == answers[0] for one in answers)


def test_processes_that_bring_different_vectors_at_once_mask_only_one(tmp_path: Path) -> None:
    simulator, values = make(tmp_path)
    request = request_for(simulator, "mask", values)
    folder = simulator.vaults["a"].folder
    inputs = [{**values["a"], "update": np.full(5, float(number))} for number in range(4)]
    answers = together(4, lambda number: answer(Vault(folder), simulator, "mask", request, inputs[number]))
    given = [one for one in answers if isinstance(one, list)]
    refused = [one for one in answers if isinstance(one, Refused)]
    assert (len(given), len(refused)) == (1, 3)
    digest = json.loads(json.loads(given[0][0])["body"])["vector"]
    assert digest == sha256_of(simulator.masked("a", simulator.context.digest))


def test_processes_that_are_asked_to_confirm_different_sets_at_once_confirm_one(tmp_path: Path) -> None:
    simulator, values = make(tmp_path)
    digest = request_for(simulator, "confirm", values).context
    folder = simulator.vaults["a"].folder
    sets = ["abcd", "abce", "abde", "abcde"]
    requests = [envelope(simulator.coordinator, "ask/confirm", digest, "a", AskConfirm(tuple(one))) for one in sets]
    answers = together(4, lambda number: answer(Vault(folder), simulator, "confirm", requests[number], values["a"]))
    assert sum(isinstance(one, list) for one in answers) == 1
    assert sum(isinstance(one, Refused) for one in answers) == 3


def test_threads_of_one_process_give_one_answer(tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    simulator, values = make(tmp_path)
    request = request_for(simulator, "mask", values)
    vault = simulator.vaults["a"]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: answer(vault, simulator, "mask", request, values["a"]), range(16)))
    assert all(one == answers[0] for one in answers)
