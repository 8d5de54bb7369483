"""A fault in site.toml or coordinator.toml is one line: the file, the field, what is wrong, what to write."""

from pathlib import Path

import pytest

from deploy.coordinator import TEMPLATE as COORDINATOR
from deploy.site import TEMPLATE as SITE
from flows.settings import COORDINATOR_FILE, SITE_FILE, CoordinatorFolder, SettingsError, SiteFolder

WORDS = {"prefect": "http://x/api", "exchange": "file:///x", "tasks": '["a:B"]'}
GOOD_SITE = SITE.format(name="north", data="heart = {}\n", approval="automatic", **WORDS)
SITE_FAULTS = [
    (
        'name = "north"',
        'name = "North"',
        'name: has another form: write 1 to 32 of a-z, 0-9 and -, as in name = "north"',
    ),
    ('url = "http://x/api"', 'url = "x"', "prefect.url: has another form: write it with http:// or https://"),
    ("max_rounds = 1000", 'max_rounds = "9"', "policy.max_rounds: must be a whole number: write it without quotes"),
    (
        "max_rounds = 1000",
        "max_rounds = 0",
        "policy.max_rounds: must be greater than or equal to 1: write such a number",
    ),
    ("max_rounds = 1000", "max_round = 9", "policy.max_round: is not a field here: did you mean max_rounds?"),
    ('"automatic"', '"maybe"', "policy.approval: must be one of these: write 'automatic' or 'by-hand'"),
    ('tasks = ["a:B"]', 'tasks = "a:B"', "policy.tasks: must be a list: write it in brackets"),
    ('tasks = ["a:B"]', 'tasks = ["ab"]', "policy.tasks.0: has another form: write module:Class for each"),
    ("heart = {}", "heart = 3", 'data.heart: must be a folder or a table: write it as in heart = "/data/heart"'),
    (
        "heart = {}",
        "heart = { max_example = 3 }",
        "data.heart.max_example: is not a field here: did you mean max_examples?",
    ),
    ("[policy]", "[polic]", "policy: is missing: write a table [policy] (and 1 more)"),
    ('url = "file:///x"', "", "exchange.url: is missing: write it"),
    ('vault = "vault"', "vault = 3", "vault: must be a text: write it in quotes"),
]
GOOD_COORDINATOR = COORDINATOR.format(**WORDS)
COORDINATOR_FAULTS = [
    ("resume = true", 'resume = "yes"', "resume: must be true or false: write it without quotes"),
    ("max_trainings = 4", "max_training = 4", "max_training: is not a field here: did you mean max_trainings?"),
]


@pytest.mark.parametrize(("good", "wrong", "line"), SITE_FAULTS)
def test_a_fault_in_site_toml_is_one_line(good: str, wrong: str, line: str, tmp_path: Path) -> None:
    assert good in GOOD_SITE
    (tmp_path / SITE_FILE).write_text(GOOD_SITE.replace(good, wrong, 1))
    with pytest.raises(SettingsError) as refused:
        SiteFolder.read(tmp_path)
    assert str(refused.value).startswith(f"{tmp_path / SITE_FILE}: {line}")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(("good", "wrong", "line"), COORDINATOR_FAULTS)
def test_a_fault_in_coordinator_toml_is_one_line(good: str, wrong: str, line: str, tmp_path: Path) -> None:
    assert good in GOOD_COORDINATOR
    (tmp_path / COORDINATOR_FILE).write_text(GOOD_COORDINATOR.replace(good, wrong, 1))
    with pytest.raises(SettingsError) as refused:
        CoordinatorFolder.read(tmp_path)
    assert str(refused.value).startswith(f"{tmp_path / COORDINATOR_FILE}: {line}")
