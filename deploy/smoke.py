"""``fedseal coordinator smoke``: a short training on made-up numbers, with which any consortium is tried out.

Its plan has differential privacy, though there is nobody to protect: so a smoke test with a site more or less than the
last one waits for no data steward (SPEC 12.10).
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from deploy.coordinator import HERE, Folder, app
from deploy.site import SMOKE_DATA, SMOKE_TASK, fail, one_line
from deploy.submit import submit
from flows.settings import CoordinatorFolder
from protocols.files import write_whole

PLAN = """\
# A smoke test of a consortium: made-up numbers, two rounds. Each site allows it with two words in its site.toml:
# smoke = {{ budget = "none" }} under [data], and "{task}" in tasks of [policy].
name = "smoke"
task = "{task}"
data = "{data}"
sites = {sites}
rounds = 2

[local]
steps = 1

[protection]
max_examples = 64

[privacy]
unit = "record"
epsilon = 50.0
sampling_rate = 0.5
expected_batch = {batch}
statistics = "bounds"
"""
EXPECTED_OF_A_SITE = 32.0
"""Records of a site in a step: half of those that it has."""


def smoke_plan(sites: Sequence[str]) -> str:
    """The plan of a smoke test over sites of any names, as TOML."""
    return PLAN.format(
        task=SMOKE_TASK, data=SMOKE_DATA, sites=json.dumps(sorted(sites)), batch=EXPECTED_OF_A_SITE * len(sites)
    )


@app.command()
def smoke(
    folder: Folder = HERE,
    output: Annotated[
        Path | None, typer.Option(help="Write its plan to this file and run nothing: for an author to sign, say.")
    ] = None,
) -> None:
    """Run a short training on made-up numbers over all sites of the consortium. Exit code 1 unless it ends well."""
    import tomllib

    with one_line():
        text = smoke_plan(list(CoordinatorFolder.read(folder).consortium.sites))
        if output is not None:
            write_whole(output, text.encode())
            return
    from flows.plan import PlanError, make_plan

    try:
        plan = make_plan(tomllib.loads(text), source="smoke")
    except PlanError as error:
        raise fail(error) from None
    submit(folder, {"plan": plan.model_dump(mode="json")}, follow=True)
