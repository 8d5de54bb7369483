"""A site that has nothing to do asks little: counted by a real nginx between it and the Prefect server."""

import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from deploy.up import free_port
from flows.participation import ENDED
from flows.settings import SITE_FILE
from tests.processes.harness import consortium, eventually

COUNTED_S = 24.0
"""At least one heartbeat, and two of everything else that comes again and again."""

NGINX = """\
daemon off; pid {folder}/pid; error_log {folder}/errors;
events {{}}
http {{
  access_log {folder}/requests; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  map $http_upgrade $connection_upgrade {{ default upgrade; "" ""; }}
  server {{
    listen 127.0.0.1:{port};
    location / {{
      proxy_pass {server}; proxy_http_version 1.1; proxy_read_timeout 1h;
      proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection $connection_upgrade;
    }}
  }}
}}
"""


@contextmanager
def nginx(program: Path, folder: Path, server: str, port: int) -> Iterator[Path]:
    """Run nginx before a server; gives the log of its requests."""
    folder.mkdir()
    folder.chmod(0o755)
    (folder / "nginx.conf").write_text(NGINX.format(folder=folder, port=port, server=server))
    process = subprocess.Popen([program, "-c", folder / "nginx.conf"])
    try:
        yield folder / "requests"
    finally:
        process.terminate()
        process.wait()


@pytest.mark.slow
def test_an_idle_site_makes_at_most_one_request_a_second(tmp_path: Path, debian_package: Callable[..., Path]) -> None:
    """Its worker, its heartbeat and its participation, which waits for another site's long loading."""
    program = debian_package("nginx")
    with consortium(tmp_path / "home", 3, start=()) as running:
        port = free_port()
        path = running.home.site("north") / SITE_FILE
        path.write_text(path.read_text().replace(running.home.url, f"http://127.0.0.1:{port}/api"))
        with nginx(program, tmp_path / "nginx", running.home.url.removesuffix("/api"), port) as log:
            for site in running.home.sites:
                running.start(site)
            run = running.submit(running.plan(task="tests.processes.tasks:Sleepy", rounds=1))
            mine = eventually(lambda: running.participations(run, "north"), 120)[0]
            answered = {"join", "advertise", "share", "moments"}
            eventually(
                lambda: answered <= {one.name for one in running.tasks(mine.id) if one.state_type in ENDED}, 60
            )  # now mask is due, when the other site has done its work
            time.sleep(5)
            before = len(log.read_text().splitlines())
            time.sleep(COUNTED_S)
            asked = log.read_text().splitlines()[before:]
            running.finished(run, 300)
    assert 4 <= len(asked) <= COUNTED_S, asked
    assert any("input/filter" in line for line in asked)
