"""Commands about labs: up, down, inspect, validate, schema, gc.

Owns: these commands. May import: errors, lab, cli.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from fabric.cli import context
from fabric.cli.context import LabOption
from fabric.cli.output import Format, OutputOption, emit_json, emit_table, note, progress, say
from fabric.errors import FabricError, UserError
from fabric.routing.rules import TIERS

FileArgument = Annotated[Path, typer.Argument(help="Topology file (YAML).")]


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command(epilog="Example: fabric up examples/diamond.yaml")(up)
    app.command(epilog="Example: fabric down --all")(down)
    app.command(epilog="Example: fabric inspect -o json")(inspect)
    app.command(epilog="Example: fabric validate examples/diamond.yaml")(validate)
    app.command(epilog="Example: fabric schema > topology.schema.json")(schema)
    app.command(epilog="Example: fabric gc --dry-run")(gc)


def up(
    file: FileArgument,
    tier: Annotated[
        str | None,
        typer.Option(
            help=f"How guests appear: {', '.join(TIERS)}.", autocompletion=context.complete_tier
        ),
    ] = None,
    idle_timeout: Annotated[
        float | None, typer.Option(min=0.1, help="Seconds until an unused guest is destroyed.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be made.")
    ] = False,
    wait: Annotated[
        bool, typer.Option(help="Wait until hosts have guests ready (tiers but cold).")
    ] = True,
    output: OutputOption = Format.TABLE,
) -> None:
    """Bring a lab up; what is up already stays as it is."""
    if tier is not None and tier not in TIERS:
        raise UserError(f"there is no tier {tier}", cure=f"tiers are: {', '.join(TIERS)}")
    from fabric.lab import builder, readiness
    from fabric.lab.spec import LabSpec, Options
    from fabric.lab.topology_file import load_topology

    options = Options(
        run_dir=context.run_dir(),
        state_dir=context.state_dir(),
        libvirt_uri=context.libvirt_uri(),
        tier=tier,
        idle_timeout=idle_timeout,
    )
    spec = LabSpec.from_model(load_topology(file), options)
    if dry_run:
        report = builder.plan(spec, context.machine())
    else:
        with progress(f"lab {spec.name}") as step:
            report = builder.up(spec, context.machine(), step)
            pending = readiness.wait_for_guests(spec, step) if wait else {}
        for host, what in pending.items():
            note(f"{host}: {what}; connections wait longer until then")
    if output is Format.JSON:
        changed, mended = list(report.changed), list(report.mended)
        emit_json({"lab": report.lab, "dry_run": dry_run, "changed": changed, "mended": mended})
    elif not report.changed:
        say(f"lab {report.lab} is up already: nothing changed")
    elif dry_run:
        for label in report.changed:
            say(f"would {'mend' if label in report.mended else 'make'} {label}")
    else:
        for label in report.mended:
            say(f"mended {label}")
        made = len(report.changed) - len(report.mended)
        say(f"lab {report.lab} is up: {_parts(made)} made")


def down(
    file: Annotated[Path | None, typer.Argument(help="Its topology file, or --lab.")] = None,
    lab: LabOption = None,
    everything: Annotated[bool, typer.Option("--all", help="All labs.")] = False,
) -> None:
    """Take a lab down; nothing of it is left. Fine when it is down already."""
    from fabric.lab import builder, state

    recorded = state.recorded_labs(context.run_dir())
    if everything:
        wanted = recorded
    elif file is not None:
        wanted = [_name_in(file)]
    elif lab:
        wanted = [lab]
    else:
        wanted = [context.pick_lab(None).spec.name] if recorded else []
    if not wanted:
        say("no lab is up")
    for name in wanted:
        with progress(f"lab {name}") as step:
            report = builder.down(name, context.run_dir(), context.machine(), step)
        removed = f": {_parts(len(report.changed))} removed"
        say(f"lab {name} is down{removed if report.changed else ' already: nothing changed'}")


def _parts(count: int) -> str:
    return "1 part" if count == 1 else f"{count} parts"


def _name_in(file: Path) -> str:
    """The lab a file describes: by the record of what was brought up from it, else by its text."""
    from fabric.lab import state

    for name in state.recorded_labs(context.run_dir()):
        try:
            recorded = state.load(context.run_dir(), name)
        except FabricError:
            continue
        if recorded is not None and recorded.spec.path == str(file.resolve()):
            return name
    from fabric.lab.topology_file import load_topology

    return load_topology(file).name


def inspect(lab: LabOption = None, output: OutputOption = Format.TABLE) -> None:
    """Show a lab's hosts, orchestrators, guests and links."""
    from fabric.lab.inspection import inspect_lab

    found = inspect_lab(context.pick_lab(lab))
    if output is Format.JSON:
        emit_json(found)
        return
    say(f"lab {found['lab']} ({found['state']}), from {found['file']}")
    rows: Any = (
        (
            host["host"],
            host["node"],
            " ".join(host["addresses"]),
            host["namespace"],
            host["orchestrator"]["state"],
            host["orchestrator"]["pid"],
            host["connections"],
            len(host["guests"]),
            " ".join(f"{n} {tier}" for tier, n in host["kept_ready"].items() if n),
            sum(host["refused_packets"].values()),
        )
        for host in found["hosts"]
    )
    emit_table(
        (
            "HOST",
            "NODE",
            "ADDRESSES",
            "NAMESPACE",
            "ORCHESTRATOR",
            "PID",
            "CONNECTIONS",
            "GUESTS",
            "KEPT READY",
            "REFUSED",
        ),
        rows,
        empty="no hosts",
    )
    rows = (
        (
            link["a"],
            link["b"],
            f"{link['latency_us'] / 1000:g} ms",
            f"{link['bandwidth_bps'] / 1e6:g} Mb/s" if link["bandwidth_bps"] else "unlimited",
            f"{link['loss'] * 100:g} %",
            link["mtu"],
            link["state"] + (" (changed)" if link["changed"] else ""),
        )
        for link in found["links"]
    )
    emit_table(("A", "B", "LATENCY", "BANDWIDTH", "LOSS", "MTU", "STATE"), rows, empty="no links")
    rows = (
        (
            guest["name"],
            host["host"],
            guest["connection"],
            guest["state"],
            guest["address"],
            guest["tap"],
            guest["spawn_ms"],
        )
        for host in found["hosts"]
        for guest in host["guests"]
    )
    columns = ("GUEST", "HOST", "CONNECTION", "STATE", "ADDRESS", "TAP", "SPAWN MS")
    emit_table(columns, rows, empty="no guests")


def validate(file: FileArgument, output: OutputOption = Format.TABLE) -> None:
    """Check a topology file and its policy, all mistakes at once; touches nothing else."""
    from fabric.lab.topology_file import load_topology

    model = load_topology(file)
    if output is Format.JSON:
        emit_json(
            {
                "file": str(file),
                "lab": model.name,
                "hosts": len(model.hosts),
                "links": len(model.links),
                "checks": len(model.checks),
            }
        )
    else:
        say(f"{file}: lab {model.name}, {len(model.hosts)} hosts, {len(model.links)} links: valid")


def schema() -> None:
    """Print the JSON Schema of topology files, for editors."""
    from fabric.lab.schema import json_schema

    emit_json(json_schema())


def gc(
    lab: Annotated[str | None, typer.Option("--lab", help="Only what this lab left.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list them.")] = False,
    output: OutputOption = Format.TABLE,
) -> None:
    """Remove what labs that do not run any more have left behind."""
    from fabric.lab.gc import collect

    only = frozenset({lab} if lab else ())
    found = collect(context.run_dir(), context.machine(), dry_run=dry_run, only=only)
    if output is Format.JSON:
        emit_json([leftover.to_json() for leftover in found])
        return
    rows = ((leftover.kind, leftover.name, leftover.lab) for leftover in found)
    emit_table(("KIND", "NAME", "LAB"), rows, empty="nothing left behind")
    if found:
        say(f"{len(found)} leftovers {'found' if dry_run else 'removed'}")
