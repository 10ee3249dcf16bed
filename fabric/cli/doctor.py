"""``fabric doctor``: is this machine fit, and how to mend it where it is not.

Owns: the command and its exit code. May import: errors, lab, cli.
"""

from __future__ import annotations

import typer

from fabric.cli import context
from fabric.cli.output import Format, OutputOption, emit_json, say

FAILED = 3
"""Exit code when any check fails: that of errors.EnvironmentFault."""


def register(app: typer.Typer) -> None:
    """Add this module's command."""
    app.command(epilog="Example: fabric doctor -o json | jq '.[] | select(.verdict != \"ok\")'")(
        doctor
    )


def doctor(output: OutputOption = Format.TABLE) -> None:
    """Check every precondition; each failure comes with its cure."""
    from fabric.lab.checks import FAIL, Surroundings, run_checks

    surroundings = Surroundings(
        context.run_dir(), context.state_dir(), context.libvirt_uri(), context.machine
    )
    results = []
    for result in run_checks(surroundings):
        results.append(result)
        if output is Format.TABLE:
            # One line as each is known: the acceleration check may take its time.
            say(f"{result.verdict:<5} {result.name:<14} {result.detail}")
            if result.cure:
                say(f"{'':<20} cure: {result.cure}")
    if output is Format.JSON:
        emit_json([result.to_json() for result in results])
    if any(result.verdict == FAIL for result in results):
        raise typer.Exit(FAILED)
