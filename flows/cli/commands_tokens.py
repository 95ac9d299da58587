"""The command that looks into token stores."""

from pathlib import Path

import click

from flows.cli.options import home_option, pvc_option
from flows.cli.runs import tokens as stores


@click.command()
@click.argument("store")
@click.option("--context", "number", type=int, help="Show this context as text, from 0.")
@click.option("--duplicates", is_flag=True, help="Name documents that are the same, or nearly.")
@click.option(
    "--near",
    type=click.FloatRange(0, 1),
    default=0.8,
    show_default=True,
    help="With --duplicates: least share of what two documents have in common; 1: the same alone.",
)
@click.option(
    "--as-skip",
    is_flag=True,
    help="With --duplicates: print the parameter skip that leaves out all but the first of each.",
)
@home_option
@pvc_option
def tokens(
    store: str,
    number: int | None,
    duplicates: bool,
    near: float,
    as_skip: bool,
    home: Path,
    pvc: str,
) -> None:
    """Show what is in a STORE of tokens, and where every token went.

    STORE is a folder, or a name below {home}/{pvc}/tokens.
    """
    if duplicates or as_skip:
        click.echo(stores.show_duplicates(home / pvc, store, near, as_skip=as_skip))
    else:
        click.echo(stores.show(home / pvc, store, number))


COMMANDS = [tokens]
