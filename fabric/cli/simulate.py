"""``fabric simulate`` and ``fabric import``: networks that are not there, or not yet.

Owns: these commands. May import: errors, routing, lab, sim, cli.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fabric.cli.context import complete_protocol
from fabric.cli.output import Format, OutputOption, emit_json, emit_table, note, say
from fabric.errors import UserError

if TYPE_CHECKING:
    from fabric.routing.definitions import Definition
    from fabric.routing.topology import Topology

SYNTHETIC = "synthetic:"
MIB = 1 << 20

MostHosts = Annotated[
    int, typer.Option("--max-hosts", min=0, help="Only so many, around the busiest; 0: all.")
]


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command(epilog="Example: fabric simulate Geant2012.graphml --fail random:1@1s")(simulate)
    app.command("import", epilog="Example: fabric import Abilene.graphml > abilene.yaml")(
        import_graphml
    )


def simulate(
    network: Annotated[
        str, typer.Argument(help="Topology file, GraphML file, or synthetic:HOSTS.")
    ],
    protocol: Annotated[
        list[str] | None,
        typer.Option(help="Again for several; `all`.", autocompletion=complete_protocol),
    ] = None,
    fail: Annotated[
        list[str] | None,
        typer.Option(help="A-B@2s, HOST@1s, random:3@1s; back again: A-B@2s..5s."),
    ] = None,
    pairs: Annotated[int, typer.Option(min=1, help="Streams for each protocol.")] = 50,
    interval: Annotated[str, typer.Option(help="Between two packets of a stream.")] = "10ms",
    bfd: Annotated[str, typer.Option(help="Detection: interval x multiplier.")] = "50ms x 3",
    store_delay: Annotated[str, typer.Option(help="Until others hear of a change.")] = "20ms",
    compute_delay: Annotated[str, typer.Option(help="Until their new table holds.")] = "10ms",
    spawn_delay: Annotated[str, typer.Option(help="Until a new relay has its guest.")] = "0ms",
    repair: Annotated[bool, typer.Option(help="Use alternates until then.")] = True,
    settle: Annotated[str, typer.Option(help="Go on after the last change.")] = "1s",
    seed: Annotated[int, typer.Option(help="Of everything drawn at random.")] = 1,
    max_hosts: MostHosts = 0,
    plot: Annotated[Path | None, typer.Option(help="Draw what arrived when: an SVG.")] = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """Run the real engines and tables of a whole network in virtual time, and see what fails how.

    Every repair of a GraphML file is told on standard error. See docs/simulation.md.
    """
    from random import Random

    from fabric.sim.experiment import simulate as run
    from fabric.sim.failures import parse_failures, parse_time
    from fabric.sim.settings import Settings

    begin = time.perf_counter()
    topology = _network(network, max_hosts, seed)
    every, times = bfd.partition("x")[::2]
    if not times.strip().isdecimal() or not int(times):
        raise UserError(f"--bfd {bfd}: not an interval and a multiplier", cure='--bfd "50ms x 3"')
    settings = Settings(
        _protocols(protocol or ["shortest"], topology),
        pairs,
        _positive("--interval", interval),
        _positive("--bfd", every),
        int(times),
        parse_time(store_delay),
        parse_time(compute_delay),
        parse_time(spawn_delay),
        repair,
        parse_time(settle),
        seed=seed,
    )
    failures = parse_failures(fail or (), topology, Random(seed))
    if plot is not None and not failures:
        raise UserError("--plot shows what failures do: give some by --fail")
    with _bar() as progress:
        result = run(topology, settings, failures, progress)
    result["machine"] = _cost(begin)
    if plot is not None:
        from fabric.cli.plot import draw_arrivals

        draw_arrivals(result, plot)
    if output is Format.JSON:
        emit_json(result)
    else:
        _show(result)


def import_graphml(
    file: Annotated[Path, typer.Argument(help="GraphML file, of the Topology Zoo for example.")],
    max_hosts: MostHosts = 0,
    output: OutputOption = Format.TABLE,
) -> None:
    """Print a GraphML network as a topology file for `fabric up`; repairs go to standard error."""
    from fabric.lab.graphml import read_graphml
    from fabric.lab.topology_text import topology_text

    imported = read_graphml(file, max_hosts)
    for repair in imported.repairs:
        note(f"{file}: {repair}")
    text = topology_text(imported)
    if output is Format.JSON:
        emit_json({"name": imported.name, "repairs": list(imported.repairs), "topology": text})
    else:
        sys.stdout.write(text)


def _network(name: str, max_hosts: int, seed: int) -> Topology:
    if name.startswith(SYNTHETIC):
        from random import Random

        from fabric.sim.synthetic import synthetic

        count = name.removeprefix(SYNTHETIC)
        if not count.isdecimal():
            raise UserError(f"{name}: how many hosts?", cure="e.g. synthetic:1000")
        return synthetic(int(count), Random(seed))
    file = Path(name)
    if file.suffix.lower() in (".graphml", ".xml"):
        from fabric.lab.graphml import read_graphml

        imported = read_graphml(file, max_hosts)
        for repair in imported.repairs:
            note(f"{file}: {repair}")
        return imported.topology
    from fabric.lab.topology_file import load_topology

    return load_topology(file).topology()


def _protocols(names: list[str], topology: Topology) -> tuple[Definition, ...]:
    from fabric.routing.definitions import by_name

    if names == ["all"]:
        return tuple(topology.definitions.values())
    found = {each.id: each for each in (by_name(name, topology.definitions) for name in names)}
    return tuple(found.values())


def _positive(option: str, text: str) -> int:
    from fabric.sim.failures import parse_time

    found = parse_time(text)
    if found <= 0:
        raise UserError(f"{option} {text}: longer than nothing")
    return found


@contextlib.contextmanager
def _bar() -> Iterator[Callable[[str, float], None]]:
    """A bar on standard error; nothing where that is no terminal."""
    if not sys.stderr.isatty():
        yield lambda _what, _part: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as live:
        task = live.add_task("", total=1.0)
        yield lambda what, part: live.update(task, description=what, completed=part)


def _cost(begin: float) -> dict[str, Any]:
    """What it took of this machine: the only part of a result that differs from run to run."""
    import resource

    used = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "seconds": round(time.perf_counter() - begin, 2),
        "cpu_seconds": round(used.ru_utime + used.ru_stime, 2),
        "peak_memory_mib": round(used.ru_maxrss * 1024 / MIB, 1),
    }


# -- for people ------------------------------------------------------------------------------------


def _show(result: dict[str, Any]) -> None:
    rows = (
        (
            each["protocol"],
            f"{each['before']['delivered']}/{each['before']['reachable']}",
            _stat(each["before"]["stretch"], "mean"),
            _stat(each["before"]["stretch"], "max"),
            _stat(each["before"]["hops"], "mean"),
            _stat(each["before"]["latency_ms"], "mean"),
            *((each["table"] or {}).get(what, "") for what in ("rows", "bytes")),
        )
        for each in result["protocols"]
    )
    say(f"{result['hosts']} hosts, {result['links']} links")
    columns = ("PROTOCOL", "REACHED", "STRETCH", "MAX", "HOPS", "MS", "ROWS", "TABLE BYTES")
    emit_table(columns, rows, empty="no protocols")
    if result["events"]:
        _show_failures(result)
    work, cost = result["work"], result["machine"]
    say(
        f"{work['guests']} guests on {work['hosts_with_tables']} hosts, {work['tables']} tables "
        f"from {work['searches']} searches, {work['datagrams']} datagrams, "
        f"{work['events']} events: {cost['seconds']:g} s, {cost['peak_memory_mib']:g} MiB"
    )


def _show_failures(result: dict[str, Any]) -> None:
    rows = (
        (each["what"], each["at_ms"], each["noticed_after_ms"], each["converged_after_ms"],
         each["new_tables"])
        for each in result["events"]
    )  # fmt: skip
    emit_table(("EVENT", "AT MS", "NOTICED MS", "CONVERGED MS", "NEW TABLES"), rows, empty="")
    rows = (
        (
            each["protocol"],
            each["during"]["streams_hit"],
            each["during"]["streams_out_of_reach"] + each["during"]["streams_not_restored"],
            f"{each['during']['lost']}/{each['during']['sent']}",
            *(_stat(each["during"]["blackout_ms"], which) for which in ("p50", "p90", "max")),
            each["microloops"],
            f"{each['after']['delivered']}/{each['after']['reachable']}",
            _stat(each["after"]["stretch"], "mean"),
        )
        for each in result["protocols"]
    )
    say("blackout in ms, of the streams hit:")
    columns = (
        "PROTOCOL",
        "HIT",
        "CUT OFF",
        "LOST",
        "P50",
        "P90",
        "MAX",
        "LOOPS",
        "AFTER",
        "STRETCH",
    )
    emit_table(columns, rows, empty="")
    messages = result["messages"]
    say(f"{messages['published']} advertisements, {messages['delivered']} copies heard")


def _stat(summary: dict[str, float] | None, which: str) -> str:
    return "" if summary is None else f"{summary[which]:g}"
