"""``fabric check``: does the running lab keep what its topology file promises?

Owns: this command. May import: errors, lab, cli.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fabric.cli import context
from fabric.cli.context import LabOption
from fabric.cli.output import Format, OutputOption, emit_json, emit_table, note, progress, say
from fabric.errors import Conflict, NameUnknown

if TYPE_CHECKING:
    from fabric.lab.checking.ground import Ground
    from fabric.lab.model import LabModel
    from fabric.lab.spec import LabSpec
    from fabric.lab.validation import Check

STOPPED = 143
"""Exit code after SIGTERM, as shells have it."""


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command(epilog="Example: fabric check examples/diamond.yaml --only reach-h1-h4")(check)


def check(
    file: Annotated[
        Path | None, typer.Argument(help="Topology file; default: what the lab is up from.")
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option("--only", help="Only the check of this name; again.")
    ] = None,
    lab: LabOption = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """Try what a lab's topology file says under `validate`, on the running lab.

    Real programs send through the fabric, links are really cut, and restored. Exit codes: 0 all
    passed, 1 one failed, 2 there is none, 3 some failed that are marked as warnings.
    """
    from fabric.lab.checking import runner

    spec, checks = _wanted(file, lab, only)
    if not checks:
        note(f"lab {spec.name} has no checks: its file has no `validate`")
        if output is Format.JSON:
            emit_json([])
        raise typer.Exit(runner.NONE_THERE)
    signal.signal(signal.SIGTERM, _stop)
    outcomes = []
    with _ground(spec) as ground, progress(f"lab {spec.name}") as step:
        for outcome in runner.run(checks, ground, step):
            outcomes.append(outcome)
    if output is Format.JSON:
        emit_json([outcome.to_json() for outcome in outcomes])
    else:
        columns = ("CHECK", "RESULT", "PATH", "EVIDENCE")
        emit_table(columns, (_row(outcome) for outcome in outcomes), empty="no checks")
        counts = [(v, sum(o.verdict == v for o in outcomes)) for v in ("pass", "fail", "warn")]
        say(", ".join(f"{count} {verdict}" for verdict, count in counts if count))
    raise typer.Exit(runner.exit_code(outcomes))


def _wanted(
    file: Path | None, lab: str | None, only: list[str] | None
) -> tuple[LabSpec, tuple[Check, ...]]:
    """The lab that runs, and what to try on it.

    Raises NameUnknown (no such lab or check), ConfigError, Conflict when the file is of another
    lab than the one that runs.
    """
    from fabric.lab.topology_file import load_topology

    if file is None:
        spec = context.pick_lab(lab).spec
        model = load_topology(Path(spec.path))
    else:
        model = load_topology(file)
        spec = context.pick_lab(model.name).spec
    _require_same(spec, model)
    names = [each.name for each in model.checks]
    for name in only or ():
        if name not in names:
            raise NameUnknown(
                f"{model.path} has no check {name}", cure=f"its checks are: {', '.join(names)}"
            )
    return spec, tuple(each for each in model.checks if not only or each.name in only)


def _require_same(spec: LabSpec, model: LabModel) -> None:
    if model.topology().to_json() != spec.topology().to_json():
        raise Conflict(
            f"lab {spec.name} is up with other hosts, links or protocols than {model.path} has",
            cure=f"fabric down --lab {spec.name} && fabric up {model.path}",
        )


@contextlib.contextmanager
def _ground(spec: LabSpec) -> Iterator[Ground]:
    from fabric.lab.checking.field import Field
    from fabric.lab.preflight import require_root

    require_root()
    with context.machine().world() as world:
        yield Field(spec, context.run_dir(), world)


def _row(outcome: Any) -> tuple[Any, ...]:
    paths = outcome.evidence.get("paths", [])
    shown = " | ".join(" > ".join(path) for path in paths)
    return (outcome.check.name, outcome.verdict, shown, outcome.detail)


def _stop(*_: object) -> None:
    # As an exception, so that what was cut is restored.
    raise SystemExit(STOPPED)
