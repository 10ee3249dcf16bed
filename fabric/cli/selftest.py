"""``fabric selftest``: do copies of a guest share what they must not?

Owns: the command and its exit code. May import: errors, lab, cli.
"""

from __future__ import annotations

from typing import Annotated

import typer

from fabric.cli import context
from fabric.cli.output import Format, OutputOption, emit_json, emit_table, note
from fabric.errors import UserError

FAILED = 1
COLUMNS = ("WHAT", "FIRST COPY", "SECOND COPY", "DIFFERS")


def register(app: typer.Typer) -> None:
    """Add this module's command."""
    app.command(epilog="Example: fabric selftest -o json | jq 'all(.[]; .differs)'")(selftest)


def selftest(
    tier: Annotated[str, typer.Option(help="template or prepared.")] = "template",
    name: Annotated[str, typer.Option(help="Of the lab it makes.")] = "selftest",
    output: OutputOption = Format.TABLE,
) -> None:
    """Wake two copies of one guest and show that they share no MAC, address, key or randomness.

    Reads inside the guests, over SSH. The small lab it makes is taken down whatever happens. Exit
    code 1 when anything is the same.
    """
    from fabric.lab import selftest as test
    from fabric.lab.preflight import require_root
    from fabric.lab.spec import Options

    if tier not in test.TIERS:
        raise UserError(f"--tier {tier}: no copies", cure=f"one of {', '.join(test.TIERS)}")
    require_root()
    options = Options(
        run_dir=context.run_dir(), state_dir=context.state_dir(), libvirt_uri=context.libvirt_uri()
    )
    found = test.run(options, name, tier, note)
    if output is Format.JSON:
        emit_json([each.to_json() for each in found])
    else:
        rows = [(x.what, x.first, x.second, "yes" if x.differs else "NO") for x in found]
        emit_table(COLUMNS, rows, empty="nothing was compared")
    if not all(each.differs for each in found):
        raise typer.Exit(FAILED)
