"""``fabric bench``: measurements on real guests.

Owns: the sub-commands of ``bench``. May import: errors, lab, cli.
"""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Annotated, Any

import typer

from fabric.cli import context
from fabric.cli.output import Format, OutputOption, emit_json, emit_table, note, say
from fabric.errors import UserError

app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Measure the fabric on real guests."
)
STOPPED = 143
"""Exit code after SIGTERM, as shells have it."""


def register(root: typer.Typer) -> None:
    """Add this module's commands."""
    root.add_typer(app, name="bench")


@app.callback()
def bench() -> None:
    """Measure the fabric on real guests."""


@app.command(epilog="Example: fabric bench forward --hops 1,2 --size 512,1400 --profile -o json")
def forward(
    hops: Annotated[
        str, typer.Option(help="Numbers of links between first and last host, by commas.")
    ] = "1,2,3",
    size: Annotated[
        str, typer.Option(help="Sizes of inner packets in bytes, by commas.")
    ] = "64,512,1400,8000",
    seconds: Annotated[
        float, typer.Option(min=0.1, max=600, help="Of one trial; a stream takes four times that.")
    ] = 1.5,
    profile: Annotated[
        bool, typer.Option("--profile", help="Also tell where the agents' time goes.")
    ] = False,
    markdown: Annotated[
        Path | None, typer.Option(help="Also write the tables to this file, as Markdown.")
    ] = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """Packets/s and Mb/s through the fabric, beside kernel forwarding and a bare loop.

    Kernel forwarding runs through the very same guests, the loop in one of them. Takes some five
    minutes for each number of hops; the lab it makes is taken down whatever happens.
    """
    from fabric.lab.bench import forward as benchmark
    from fabric.lab.bench import report
    from fabric.lab.preflight import require_root
    from fabric.lab.spec import Options

    require_root()
    signal.signal(signal.SIGTERM, _stop)
    plan = benchmark.Plan(_numbers("--hops", hops), _numbers("--size", size), seconds, profile)
    options = Options(
        run_dir=context.run_dir(), state_dir=context.state_dir(), libvirt_uri=context.libvirt_uri()
    )
    facts = report.machine_facts(options.state_dir)
    machine = ", ".join(f"{name} {value}" for name, value in facts.items())
    note(machine)
    outcome = benchmark.run(plan, options, note)
    results = [figure.to_json() for figure in outcome.figures] + outcome.profiles
    if markdown is not None:
        markdown.write_text(report.page(results))
    if output is Format.JSON:
        emit_json([{**each, "machine": facts} for each in results])
        return
    say(machine)
    _tables(results)


def _tables(results: list[dict[str, Any]]) -> None:
    from fabric.lab.bench import report

    emit_table(report.COLUMNS, report.rows(results), empty="nothing was measured")
    profiles = [each for each in results if each["kind"] == "profile"]
    if not profiles:
        return
    emit_table(report.SPLIT_COLUMNS, report.split_rows(profiles), empty="no profile")
    for each in profiles:
        if each["mode"] == "calls":
            say(f"{each['role']}, {each['transport']}: shares of the agent's own time")
            rows = report.function_rows(each)
            emit_table(("FUNCTION", "CALLS", "%"), rows, empty="idle")


def _numbers(option: str, text: str) -> tuple[int, ...]:
    try:
        return tuple(int(word) for word in text.split(","))
    except ValueError as exc:
        raise UserError(f"{option} {text}: whole numbers, separated by commas") from exc


def _stop(*_: object) -> None:
    # As an exception, so that everything made is unmade.
    raise SystemExit(STOPPED)
