"""Sites in network namespaces of their own: cut off in mid-round and restored, slow, and never listening.

The Prefect server listens on loopback, outside. Each site reaches it through a relay at the other end of its line, and
has no other way. The exchange is a folder. One consortium serves all tests, in order; one training, the first three.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

import pytest
from prefect.client.schemas.objects import StateType
from prefect.states import Cancelling

from deploy.up import Home
from flows.settings import SITE_FILE
from tests.network.namespaces import Forbidden, Namespace, namespaces
from tests.processes.harness import LONG, TINY, Consortium, consortium, eventually
from tests.processes.relay import Line, relay

pytestmark = pytest.mark.slow

SITES = ("north", "east", "south", "west")
DEADLINES = {"join_s": 120, "step_s": 12, "train_s": 15, "finish_s": 60}
SHORT_S, LONG_S = 4.0, 20.0
"""A cut that ends well within a step's deadline, and one that outlasts any."""
TIMEOUT_S = 8
"""Seconds after which a site's request has failed; a minute by default, which is longer than a test wants to wait."""
AWAY = "WARNING the Prefect server cannot be reached"


@dataclass(frozen=True)
class Network:
    """A consortium whose sites are in namespaces, each behind a line of its own."""

    consortium: Consortium
    spaces: dict[str, Namespace]
    lines: dict[str, Line]

    def records(self, run: UUID) -> list[dict]:
        """The finished sums of a training."""
        return self.consortium.progress(run)["records"] if self.consortium.sums(run) else []


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory, debian_package: Callable[..., Path]) -> Iterator[Network]:
    """Four sites in namespaces of their own, which serve."""
    ip = debian_package("iproute2", command="ip")
    with ExitStack() as stack:
        try:
            spaces = stack.enter_context(namespaces(ip, SITES))
        except Forbidden as forbidden:
            pytest.skip(f"no network namespaces here: {forbidden}")
        lines = {}

        def draw_lines(home: Home) -> None:
            for site, space in spaces.items():
                lines[site] = Line(int(home.url.rsplit(":", 1)[1].split("/")[0]))
                port = stack.enter_context(relay(lines[site], space.address))
                path = home.site(site) / SITE_FILE
                path.write_text(path.read_text().replace(home.url, f"http://{space.address}:{port}/api"))

        folder = tmp_path_factory.mktemp("network")
        running = stack.enter_context(consortium(folder, SITES, start=(), prepare=draw_lines))
        for site, space in spaces.items():
            running.home.processes[site] = serve_in(space, running.home.site(site))
        for site in SITES:
            eventually(lambda site=site: running.online(site), 120)
        yield Network(running, spaces, lines)


def serve_in(space: Namespace, folder: Path) -> subprocess.Popen[bytes]:
    """``fedseal site serve`` inside a namespace."""
    words = [*space.words, sys.executable, "-m", "deploy.cli", "site", "serve", "--no-check", "--folder", str(folder)]
    environment = {
        **os.environ,
        "PREFECT_HOME": str(folder / "prefect"),
        "PREFECT_API_REQUEST_TIMEOUT": str(TIMEOUT_S),
    }
    with (folder / "serve.log").open("ab") as log:
        return subprocess.Popen(words, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)


@pytest.fixture(scope="module")
def live(network: Network) -> UUID:
    """A training that goes on."""
    home = network.consortium
    run = home.submit(home.plan(task=LONG, rounds=200, min_sites=3, deadlines=DEADLINES))
    eventually(lambda: home.sums(run) >= 1, 120)
    return run


def test_a_site_calls_out_and_never_listens(network: Network, live: UUID) -> None:
    for site, space in network.spaces.items():
        assert space.run("ss", "-Hltun") == ""
        assert space.run("ip", "route").split("dev")[0].strip() == f"10.213.{space.place}.0/30"
        talking = space.run("ss", "-Htn", "state", "established")
        assert talking and all(space.address in line.split()[3] for line in talking.splitlines()), (site, talking)
    eventually(lambda: len(network.records(live)) >= 2, 60)
    assert all(one["survivors"] == sorted(SITES) for one in network.records(live))


def test_a_line_that_is_cut_for_less_than_a_deadline_is_noticed_by_nobody(network: Network, live: UUID) -> None:
    before = len(network.records(live))
    network.spaces["west"].cut()
    time.sleep(SHORT_S)
    network.spaces["west"].restore()
    eventually(lambda: len(network.records(live)) >= before + 2, 60)
    records = network.records(live)[before:]
    assert all(one["survivors"] == sorted(SITES) for one in records), records
    assert {one["attempt"] for one in records} == {1}


def test_a_site_that_is_cut_off_in_mid_round_is_named_and_is_in_a_later_sum(network: Network, live: UUID) -> None:
    home, run = network.consortium, live
    network.spaces["west"].cut()
    time.sleep(LONG_S)
    eventually(lambda: network.records(run)[-1]["survivors"] == ["east", "north", "south"], 60)
    assert "no answer within" in network.records(run)[-1]["dropped"]["west"]
    network.spaces["west"].restore()
    eventually(lambda: network.records(run)[-1]["survivors"] == sorted(SITES), 90)
    (participation,) = home.participations(run, "west")
    assert participation.state is not None and participation.state.type == StateType.RUNNING
    home.client.set_flow_run_state(run, Cancelling())
    assert home.ended(run, 60).state.type == StateType.CANCELLED
    assert AWAY in (home.home.site("west") / "site.log").read_text()
    for name, text in home.logs(last=1_000_000).items():
        assert "Traceback" not in text or name.startswith("server/"), (
            name,
            text,
        )  # Prefect's own, whose SQLite is busy
        assert AWAY not in text or name == "sites/west/site.log"


def test_a_site_behind_a_relay_that_delays_and_throttles_is_in_every_sum(network: Network) -> None:
    network.lines["south"].delay_s, network.lines["south"].bytes_per_s = 0.1, 100_000.0
    run = network.consortium.submit(network.consortium.plan(task=TINY, rounds=1, deadlines=DEADLINES))
    report = network.consortium.finished(run)
    assert [one["survivors"] for one in report["rounds"]] == [sorted(SITES)]
    network.lines["south"].delay_s, network.lines["south"].bytes_per_s = 0.0, float("inf")


def test_a_site_behind_netem_that_delays_and_loses_is_in_every_sum(network: Network) -> None:
    host = network.spaces["east"].host
    words = ["tc", "qdisc", "add", "dev", host, "root", "netem", "delay", "200ms", "50ms", "loss", "2%"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"no netem here: {' '.join(done.stderr.split())}")
    run = network.consortium.submit(network.consortium.plan(task=TINY, rounds=1, deadlines=DEADLINES))
    report = network.consortium.finished(run)
    assert [one["survivors"] for one in report["rounds"]] == [sorted(SITES)]
