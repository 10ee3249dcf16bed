"""The ``fabric`` command: one app, its commands in one file per noun.

Owns: the entry point and how errors are told. May import: everything. Commands import what they
need inside: ``fabric --help`` must answer in 200 ms.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from fabric.cli import (
    audit,
    bench,
    check,
    connections,
    doctor,
    lab,
    link,
    run,
    selftest,
    simulate,
    store,
)
from fabric.cli.output import note
from fabric.errors import ConfigError, FabricError

app = typer.Typer(
    name="fabric",
    help="A microVM per connection: routing chosen per application, recorded at every hop.",
    epilog="Example: fabric up examples/diamond.yaml && fabric run h1 -- ping -c 3 h4",
    no_args_is_help=True,
    # rich would cost as much as all the rest of the start.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
for noun in (lab, link, check, run, connections, audit, doctor, selftest, store, simulate, bench):
    noun.register(app)


def _version(wanted: bool) -> None:
    if wanted:
        from fabric import __version__

        print(__version__)
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """A microVM per connection: routing chosen per application, recorded at every hop."""


def tell(exc: FabricError) -> None:
    """An error for people: what and where, then how to mend it."""
    note(f"error: {exc.message}")
    if isinstance(exc, ConfigError):
        for problem in exc.problems:
            note(f"  {problem}")
    if exc.cure:
        note(f"cure: {exc.cure}")


def main() -> None:
    """Run the command line; exits with the error's code. FABRIC_DEBUG=1 shows tracebacks."""
    try:
        app()
    except FabricError as exc:
        if os.environ.get("FABRIC_DEBUG"):
            raise
        tell(exc)
        sys.exit(exc.exit_code)


if __name__ == "__main__":
    main()
