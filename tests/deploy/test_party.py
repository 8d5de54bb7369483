"""A party's folder and commands: what is wrong is said in one line, with the right exit code and no traceback."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
import typer
from prefect.exceptions import PrefectHTTPStatusError

from deploy import EXAMPLE
from deploy.coordinator import unresolved
from deploy.site import once_there
from deploy.up import Home, found_home
from flows.plan import make_plan, read_plan
from flows.settings import PrefectServer, SettingsError, SiteFolder
from protocols.consortium import write_consortium
from protocols.keys import Consortium
from protocols.vault import Vault
from tests.deploy.command import fedseal

URL = "http://127.0.0.1:9/api"
SITES = ("north", "east", "south")


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """Three sites and a coordinator, founded."""
    return found_home(tmp_path / "home", SITES, URL)


def refused(*words: str | Path, code: int = 2) -> str:
    """Run what must be refused; gives the one line."""
    exit_code, out, err = fedseal(*words)
    assert (exit_code, out) == (code, ""), err
    assert err.startswith("fedseal: ") and err.count("\n") == 1, err
    return err


def edit(path: Path, old: str, new: str) -> None:
    """Replace text in a file."""
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def without_toml(site: Path) -> None:
    (site / "site.toml").unlink()


def unknown_field(site: Path) -> None:
    edit(site / "site.toml", "max_rounds = 1000", "max_round = 1000")


def wrong_type(site: Path) -> None:
    edit(site / "site.toml", "max_rounds = 1000", 'max_rounds = "many"')


def no_toml(site: Path) -> None:
    (site / "site.toml").write_text("[policy\n")


def no_url(site: Path) -> None:
    edit(site / "site.toml", URL, "file:///etc/passwd")


def no_vault(site: Path) -> None:
    (site / "vault" / "vault.sqlite").unlink()


def broken_vault(site: Path) -> None:
    (site / "vault" / "vault.sqlite").write_bytes(b"no database" * 1000)
    for name in ("vault.sqlite-wal", "vault.sqlite-shm"):
        (site / "vault" / name).unlink(missing_ok=True)


def empty_vault(site: Path) -> None:
    no_vault(site)
    Vault(site / "vault").close()


def no_consortium(site: Path) -> None:
    (site / "consortium.toml").unlink()


def not_in_the_consortium(site: Path) -> None:
    keys = {name: name[0] * 64 for name in ("west", "up", "down")}
    text = (site / "consortium.toml").read_text()
    for old, new in zip(SITES, keys, strict=True):
        text = text.replace(f"{old} =", f"{new} =")
    (site / "consortium.toml").write_text(text)


def another_key(site: Path) -> None:
    other = site.parent / "east"
    for name in ("vault.sqlite", "vault.sqlite-wal", "vault.sqlite-shm"):
        (site / "vault" / name).unlink(missing_ok=True)
    (other / "vault" / "vault.sqlite").rename(site / "vault" / "vault.sqlite")


def unknown_exchange(site: Path) -> None:
    edit(site / "site.toml", 'url = "file:', 'url = "nowhere:')


WRONG: dict[Callable[[Path], None], str] = {
    without_toml: "name the folder that init has made",
    unknown_field: "policy.max_round: Extra inputs are not permitted",
    wrong_type: "policy.max_rounds: ",
    no_toml: "is not TOML",
    no_url: "prefect.url: ",
    no_vault: "there is no vault",
    broken_vault: "the vault cannot be opened",
    empty_vault: "the vault has no identity",
    no_consortium: "consortium.toml",
    not_in_the_consortium: "does not hold north",
    another_key: "the vault is of east, site.toml of north",
    unknown_exchange: "mend [exchange]",
}


@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: wrong.__name__)
def test_a_site_does_not_serve_a_folder_that_is_wrong(home: Home, wrong: Callable[[Path], None]) -> None:
    wrong(home.site("north"))
    assert WRONG[wrong] in refused("site", "serve", "--folder", home.site("north"))


def test_a_site_whose_key_the_consortium_does_not_hold_does_not_serve(home: Home) -> None:
    known = SiteFolder.read(home.site("north")).consortium
    swapped = {**known.sites, "north": known.sites["east"], "east": known.sites["north"]}
    write_consortium(home.site("north") / "consortium.toml", Consortium(known.coordinator, swapped))
    line = refused("site", "serve", "--folder", home.site("north"))
    assert "does not hold north with this vault's key" in line


def test_a_coordinator_does_not_serve_a_folder_that_is_wrong(home: Home, tmp_path: Path) -> None:
    assert "name the folder that init has made" in refused("coordinator", "serve", "--folder", tmp_path / "nowhere")
    edit(home.coordinator / "coordinator.toml", "runs = ", "run = ")
    assert "run: Extra inputs" in refused("coordinator", "serve", "--folder", home.coordinator)


def test_a_folder_is_not_founded_twice_and_not_under_a_name_that_is_none(home: Home, tmp_path: Path) -> None:
    words = ("--prefect", URL, "--exchange", "file:///x")
    assert "is there already" in refused("site", "init", "north", *words, "--folder", home.site("north"))
    assert "name: " in refused("site", "init", "No Name", *words, "--folder", tmp_path / "new")


def test_a_plan_is_not_submitted_without_a_server(monkeypatch: pytest.MonkeyPatch) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PREFECT_API_URL"}
    words = [sys.executable, "-m", "deploy.cli", "submit"]
    for url, code, line in (
        (None, 2, "set PREFECT_API_URL"),
        (URL, 1, "does not answer"),
    ):
        given = environment | ({"PREFECT_API_URL": url} if url else {})
        done = subprocess.run(words, env=given, capture_output=True, text=True, timeout=120, check=False)
        assert (done.returncode, done.stdout) == (code, "")
        assert done.stderr.startswith("fedseal: ") and done.stderr.count("\n") == 1, done.stderr
        assert line in done.stderr
    assert "rounds" in refused("submit", "--set", "rounds=0")


def test_a_server_that_is_away_is_waited_for_and_that_is_said_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr("deploy.site.time.sleep", pauses.append)
    tries: list[Exception] = [httpx.ConnectError("no"), http_error(503), httpx.ReadTimeout("no"), http_error(500)]

    def do() -> None:
        if tries:
            raise tries.pop(0)

    once_there(PrefectServer(url=URL), do)
    assert pauses == [1, 2, 4, 8]
    err = capsys.readouterr().err
    assert err == f"fedseal: the Prefect server at {URL} does not answer (ConnectError): waiting\n"


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_server_that_does_not_let_a_party_in_is_not_waited_for(
    status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    def do() -> None:
        raise http_error(status)

    with pytest.raises(typer.Exit) as left:
        once_there(PrefectServer(url=URL), do)
    assert left.value.exit_code == 2
    err = capsys.readouterr().err
    assert f"refuses (HTTP {status}): mend url or auth in [prefect]" in err and err.count("\n") == 1


def http_error(status: int) -> PrefectHTTPStatusError:
    """What Prefect's client raises."""
    request = httpx.Request("GET", URL)
    return PrefectHTTPStatusError("no", request=request, response=httpx.Response(status, request=request))


def test_a_home_of_other_sites_is_not_taken_up(home: Home) -> None:
    with pytest.raises(SettingsError, match="another number of sites"):
        found_home(home.folder, ("north", "up", "down"), URL)


def test_the_form_keeps_what_follows_from_the_roster_open_and_what_was_chosen() -> None:
    example = read_plan(EXAMPLE)
    form = unresolved(example)
    assert (form["min_sites"], form["protection"]["threshold"]) == (0, 0)
    assert make_plan(form, source="form") == example
    chosen = read_plan(EXAMPLE, ["min_sites=3"])
    assert unresolved(chosen)["min_sites"] == 3
