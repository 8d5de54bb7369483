"""``fedseal author``: sign the plans that a coordinator may start, with the fields that are left open (SPEC 6.13)."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from deploy.founding import check_name
from deploy.site import fail, one_line
from protocols.files import write_whole
from protocols.keys import Identity
from protocols.vault import Vault

app = typer.Typer(no_args_is_help=True, help="Sign plans, where the consortium file names who may write them.")

Folder = Annotated[Path, typer.Option("--folder", help="The author's folder, with the key.")]
HERE = Path("author")


@app.command()
def init(
    name: Annotated[str, typer.Argument(help="The author's name: a-z, 0-9 and -.")], folder: Folder = HERE
) -> None:
    """Make an author's key; print its entry for consortium.toml."""
    with one_line():
        check_name(name)
        vault = Vault(folder)
        if not vault.has_identity:
            vault.keep_identity(Identity.generate(name))
        print(f'{vault.identity.name} = "{vault.identity.public}"')
        vault.close()
    print("Every party enters this line under [authors] in its consortium.toml.", file=sys.stderr)


@app.command()
def sign(
    plan: Annotated[Path, typer.Argument(help="A plan in TOML.")],
    open_: Annotated[
        list[str] | None, typer.Option("--open", help="A number that others may fill in: field=least..most.")
    ] = None,
    folder: Folder = HERE,
    output: Annotated[Path | None, typer.Option(help="The signed template; by default beside the plan.")] = None,
) -> None:
    """Sign a plan. Put the file that this writes into the coordinator's folder templates/."""
    from flows.authors import ranges, sign_template
    from flows.plan import PlanError
    from protocols.files import NotToml, read_toml

    if not (folder / "vault.sqlite").exists():
        raise fail(f"{folder}: there is no author's key: make one with fedseal author init NAME")
    path = output or plan.with_suffix(".json")
    with one_line():
        vault = Vault(folder)
        try:
            template = sign_template(vault.identity, read_toml(plan), ranges(open_ or ()))
        except (PlanError, NotToml) as error:
            raise fail(f"{plan}: {error}") from None
        finally:
            vault.close()
        write_whole(path, template.to_json().encode())
    print(f"{path}: put it into the coordinator's folder templates/", file=sys.stderr)
