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
from deploy.forms import unresolved
from deploy.site import once_there
from deploy.up import Home, found_home
from flows.plan import make_plan, read_plan
from flows.settings import COORDINATOR_FILE, CoordinatorFolder, PrefectServer, SettingsError, SiteFolder
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
    unknown_field: "policy.max_round: is not a field here: did you mean max_rounds?",
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
    said = refused("coordinator", "serve", "--folder", home.coordinator)
    assert "run: is not a field here: did you mean runs?" in said


def test_a_folder_is_not_founded_twice(home: Home) -> None:
    words = ("--prefect", URL, "--exchange", "file:///x")
    assert "is there already" in refused("site", "init", "north", *words, "--folder", home.site("north"))
    assert "is there already" in refused("coordinator", "init", *words, "--folder", home.coordinator)


GOOD = {"--prefect": URL, "--exchange": "file:///x"}
WRONG_WORDS: list[tuple[str, dict[str, str], str]] = [
    ("North", {}, "'North': is no name of a party"),
    ("n" * 33, {}, "is no name of a party"),
    ("north", {"--prefect": "prefect.example/api"}, "is no URL: write the Prefect API's"),
    ("north", {"--prefect": "http://prefect.example:port/api"}, "is no URL: write the Prefect API's"),
    ("north", {"--prefect": "http://prefect.example"}, "write http://prefect.example/api"),
    ("north", {"--exchange": "/shared"}, "is no URL: write file:///SHARED/FOLDER"),
    ("north", {"--exchange": "s4://bucket"}, "there is no s4:// in fsspec"),
    ("north", {"--exchange": "s3://"}, "names no place"),
    ("north", {"--exchange": "file://shared"}, "names no place"),
    ("north", {"--task": "ml_tasks/heart.py"}, "names no task: write module:Class"),
    ("north", {"--data": "heart"}, "names no folder: write --data heart=FOLDER"),
    ("north", {"--data": "heart="}, "names no folder: write --data heart=FOLDER"),
    ("north", {"--data": "heart=/no/such/folder"}, "there is no such folder"),
    ("north", {"--data": "Heart=/"}, "'Heart' is no name of a data set"),
]


@pytest.mark.parametrize(("name", "words", "line"), WRONG_WORDS)
def test_a_site_is_not_founded_with_a_wrong_word_and_then_with_the_right_one(
    name: str, words: dict[str, str], line: str, tmp_path: Path
) -> None:
    def init(name: str, words: dict[str, str]) -> list[str | Path]:
        return ["site", "init", name, *(word for pair in words.items() for word in pair), "--folder", tmp_path / "new"]

    assert line in refused(*init(name, GOOD | words))
    assert not (tmp_path / "new").exists()
    assert fedseal(*init("north", GOOD))[0] == 0


def test_a_data_set_is_named_once_and_its_folder_written_whole(tmp_path: Path) -> None:
    data = tmp_path / 'a "b"'
    data.mkdir()
    words = ["site", "init", "north", *(word for pair in GOOD.items() for word in pair), "--data", f"heart={data}"]
    assert "heart is named twice" in refused(*words, "--data", "heart=/", "--folder", tmp_path / "new")
    assert fedseal(*words, "--data", "breast-cancer", "--folder", tmp_path / "new")[0] == 0
    sets = SiteFolder.read(tmp_path / "new").data
    assert {name: one.path for name, one in sets.items()} == {"heart": data, "breast-cancer": None, "smoke": None}


def test_a_founding_that_was_cut_off_goes_on_with_the_same_key(tmp_path: Path) -> None:
    words = [word for pair in GOOD.items() for word in pair]
    _, line, _ = fedseal("site", "init", "north", *words, "--folder", tmp_path)
    (tmp_path / "site.toml").unlink()
    assert "holds the vault of north, not of east" in refused("site", "init", "east", *words, "--folder", tmp_path)
    assert fedseal("site", "init", "north", *words, "--folder", tmp_path)[1] == line


def test_a_coordinator_is_not_founded_with_a_wrong_word(tmp_path: Path) -> None:
    for words in ({"--prefect": "http://x"}, {"--exchange": "s4://x"}, {"--task": "heart"}):
        given = [word for pair in (GOOD | words).items() for word in pair]
        refused("coordinator", "init", *given, "--folder", tmp_path / "new")
        assert not (tmp_path / "new").exists()


def test_what_an_exchange_needs_is_said_when_the_site_is_founded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deploy.founding.find_spec", lambda name: None)
    words = ("--prefect", URL, "--exchange", "s3://bucket")
    code, _, err = fedseal("site", "init", "north", *words, "--folder", tmp_path)
    assert code == 0 and "warning: the exchange cannot be used yet: Install s3fs to access S3" in err
    assert "pip install 'fedseal[s3]'" in err


@pytest.mark.slow
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
    line = "does not answer (ConnectError): start it, or correct url in [prefect]: waiting"
    assert err == f"fedseal: the Prefect server at {URL} {line}\n"


@pytest.mark.parametrize("status", [401, 403, 404, 422])
def test_a_server_that_does_not_let_a_party_in_is_not_waited_for(
    status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    def do() -> None:
        raise http_error(status)

    with pytest.raises(typer.Exit) as left:
        once_there(PrefectServer(url=URL), do)
    assert left.value.exit_code == 2
    err = capsys.readouterr().err
    assert f"(HTTP {status})" in err and "in [prefect]" in err and err.count("\n") == 1


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


def test_an_exchange_whose_package_is_missing_is_told_with_what_installs_it(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*_: object, **__: object) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr("flows.exchange.fsspec.url_to_fs", missing)
    file = home.coordinator / COORDINATOR_FILE
    file.write_text(file.read_text().replace("file:///", "s3:///"))
    with pytest.raises(SettingsError) as refused:
        CoordinatorFolder.read(home.coordinator).open_exchange()
    assert str(refused.value).endswith("cannot be used: Install s3fs to access S3: pip install 'fedseal[s3]'")
