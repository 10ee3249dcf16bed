"""``fabric bench``: measurements on real guests.

Owns: the sub-commands of ``bench``. May import: errors, lab, cli.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fabric.cli import context
from fabric.cli.output import Format, OutputOption, emit_json, emit_table, note, say
from fabric.errors import UserError

if TYPE_CHECKING:
    from fabric.lab.builder import Progress
    from fabric.lab.spec import Options  # with all it imports: not paid by `fabric --help`

app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Measure the fabric on real guests."
)
TierOption = Annotated[
    list[str] | None,
    typer.Option(
        help="Where guests come from; again or by commas.", autocompletion=context.complete_tier
    ),
]
NameOption = Annotated[str, typer.Option(help="Of the labs it makes.")]
MarkdownOption = Annotated[
    Path | None, typer.Option(help="Also write the tables to this file, as Markdown.")
]
PlotOption = Annotated[
    Path | None, typer.Option(help="Also draw every value, ordered, into this file: an SVG.")
]
Results = list[dict[str, Any]]
NOTHING = "nothing was measured"
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
    markdown: MarkdownOption = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """Packets/s and Mb/s through the fabric, beside kernel forwarding and a bare loop.

    Kernel forwarding runs through the very same guests, the loop in one of them. Takes some five
    minutes for each number of hops; the lab it makes is taken down whatever happens.
    """
    from fabric.lab.bench import forward as benchmark
    from fabric.lab.bench import report

    plan = benchmark.Plan(_numbers("--hops", hops), _numbers("--size", size), seconds, profile)

    _measure(partial(benchmark.run, plan), report.page, _tables, markdown, output)


@app.command(epilog="Example: fabric bench spawn --tier prepared --burst 1 --hops 0,2 -o json")
def spawn(
    tier: TierOption = None,
    burst: Annotated[
        list[str] | None, typer.Option(help="Connections opened at once; again or by commas.")
    ] = None,
    hops: Annotated[
        list[str] | None,
        typer.Option(help="Links to the destination; 0: guests on one host only."),
    ] = None,
    count: Annotated[int, typer.Option(min=1, help="Spawns per figure, at least.")] = 30,
    name: NameOption = "bench",
    markdown: MarkdownOption = None,
    plot: PlotOption = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """From a connection's first packet to its first fabric packet, beside QEMU started by hand.

    The guests started by hand are the same, spoken to in the same protocol, without libvirt and
    orchestrator, in turns with the fabric's. Bursts are measured at the smallest number of hops.
    The labs it makes are taken down whatever happens.
    """
    from fabric.lab.bench import spawn as benchmark
    from fabric.lab.bench import spawn_tables as tables
    from fabric.routing.rules import TIERS

    plan = benchmark.Plan(
        _words(tier) or TIERS,
        _numbers("--burst", ",".join(burst)) if burst else benchmark.BURSTS,
        _numbers("--hops", ",".join(hops)) if hops else benchmark.HOPS,
        count,
        name,
    )

    def show(results: Results) -> None:
        emit_table(tables.COLUMNS, tables.rows(results), empty=NOTHING)
        if paths := tables.path_rows(results):
            emit_table(tables.PATH_COLUMNS, paths, empty="")
        emit_table(tables.PHASE_COLUMNS, tables.phase_rows(results), empty="no phases")

    draw = _drawing("From a connection's first packet to its first fabric packet", tables, plot)
    _measure(partial(benchmark.run, plan), tables.page, show, markdown, output, draw)


@app.command(epilog="Example: fabric bench memory --tier prepared --guests 1,10,50")
def memory(
    tier: TierOption = None,
    guests: Annotated[
        str, typer.Option(help="Numbers of guests on one host, by commas.")
    ] = "1,10,50",
    name: NameOption = "bench",
    markdown: MarkdownOption = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """Memory of the guests' emulators: what each has for itself, and what they share."""
    from fabric.lab.bench import memory as benchmark
    from fabric.lab.bench import spawn_tables as tables

    plan = benchmark.Plan(_words(tier) or ("prepared",), _numbers("--guests", guests), name)
    show = _table(tables.MEMORY_COLUMNS, tables.memory_rows)
    _measure(partial(benchmark.run, plan), tables.memory_page, show, markdown, output)


@app.command(epilog="Example: fabric bench rate --rate 0.5,1,2 --seconds 60 -o json")
def rate(
    rate: Annotated[
        str, typer.Option(help="Connections offered per second, one figure each, by commas.")
    ] = "0.5,1,2",
    seconds: Annotated[
        float, typer.Option(min=1, max=120, help="That each rate is offered for.")
    ] = 60.0,
    tier: Annotated[str, typer.Option(help="Where guests come from.")] = "prepared",
    hops: Annotated[int, typer.Option(min=1, max=4, help="Links to the destination.")] = 1,
    pool: Annotated[int, typer.Option(min=0, max=64, help="Guests each host keeps ready.")] = 16,
    name: NameOption = "bench",
    markdown: MarkdownOption = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """Connections per second that are served, of those a client offers at a constant rate.

    Each connects, asks, is answered and is closed. The same client and server do the same over the
    same hosts and links without guests, in turns with the fabric. A rate counts as sustained when
    95 % of what was offered is served within the time. The lab is taken down whatever happens.
    """
    from fabric.lab.bench import rate as benchmark

    plan = benchmark.Plan(tier, _decimals("--rate", rate), seconds, hops, pool, name)
    show = _table(benchmark.COLUMNS, benchmark.rows)
    _measure(partial(benchmark.run, plan), benchmark.page, show, markdown, output)


@app.command(epilog="Example: fabric bench blackout --count 20 --system fabric,bird-ospf")
def blackout(
    system: Annotated[
        list[str] | None, typer.Option(help="Whose: fabric, bird-ospf, frr-ospf, bird-babel.")
    ] = None,
    cut: Annotated[
        list[str] | None, typer.Option(help="The sender's own link: adjacent; the next: remote.")
    ] = None,
    count: Annotated[int, typer.Option(min=1, help="Cuts per figure.")] = 20,
    name: NameOption = "bench",
    markdown: MarkdownOption = None,
    plot: PlotOption = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """What a stream of 200 packets/s loses when a link on its path dies without a sign.

    The fabric on real guests, then others' routing daemons on the same namespaces and links, with
    BFD as each has it by default. scripts/fetch.sh bench fetches daemons that are not installed.
    """
    from fabric.lab.bench import blackout as benchmark
    from fabric.lab.bench import blackout_tables as tables

    plan = benchmark.Plan(
        count, _words(system) or benchmark.systems(), _words(cut) or tuple(benchmark.CUTS), name
    )
    draw = _drawing("What a link that dies silently takes from a stream", tables, plot)
    show = _table(tables.COLUMNS, tables.rows)
    _measure(partial(benchmark.run, plan), tables.page, show, markdown, output, draw)


@app.command(epilog="Example: fabric bench goodput --bandwidth 4,100 --rounds 10 -o json")
def goodput(
    bandwidth: Annotated[
        str, typer.Option(help="Of every link, Mb/s, one figure each, by commas.")
    ] = "4,100",
    rounds: Annotated[int, typer.Option(min=1, help="Streams per protocol and figure.")] = 10,
    seconds: Annotated[float, typer.Option(min=1, max=60, help="Of one stream.")] = 3.0,
    name: NameOption = "bench",
    markdown: MarkdownOption = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """What one stream gets of three paths (disperse), in units of the best single one.

    Two TCP connections over the same links, in turns. The labs it makes are taken down whatever
    happens.
    """
    from fabric.lab.bench import goodput as benchmark

    plan = benchmark.Plan(_decimals("--bandwidth", bandwidth), rounds, seconds, name)
    show = _table(benchmark.COLUMNS, benchmark.rows)
    _measure(partial(benchmark.run, plan), benchmark.page, show, markdown, output)


def _measure(
    run: Callable[[Options, Progress, Results], None],
    page: Callable[[Results], str],
    show: Callable[[Results], None],
    markdown: Path | None,
    output: Format,
    draw: Callable[[Results], None] | None = None,
) -> None:
    """Run a benchmark and tell what it found and on what: as ``show`` has it, or as JSON, and in
    the files asked for, which may fail. One that ends early, by a fault or a signal, tells what it
    found until then."""
    options, facts, machine = _begin()
    results: Results = []
    try:
        run(options, note, results)
    finally:
        if results:
            if output is Format.JSON:
                emit_json([{**each, "machine": facts} for each in results])
            else:
                say(machine)
                show(results)
            if markdown is not None:
                markdown.write_text(page(results))
            if draw is not None:
                draw(results)


def _table(
    columns: Sequence[str], rows: Callable[[Results], Iterable[Sequence[object]]]
) -> Callable[[Results], None]:
    """What shows results as one table."""
    return lambda results: emit_table(columns, rows(results), empty=NOTHING)


def _drawing(title: str, tables: ModuleType, file: Path | None) -> Callable[[Results], None] | None:
    """What draws results into ``file``, if there is to be one."""
    if file is None:
        return None
    from fabric.cli.plot import draw_distributions

    return lambda results: draw_distributions(title, "ms", tables.series(results), file)


def _begin() -> tuple[Options, dict[str, Any], str]:
    """Options of the labs, what figures of this machine depend on, and that in words."""
    from fabric.lab.bench import report
    from fabric.lab.preflight import require_root
    from fabric.lab.spec import Options

    require_root()
    signal.signal(signal.SIGTERM, _stop)
    options = Options(
        run_dir=context.run_dir(), state_dir=context.state_dir(), libvirt_uri=context.libvirt_uri()
    )
    facts = report.machine_facts(options.state_dir)
    machine = ", ".join(f"{name} {value}" for name, value in facts.items())
    note(machine)
    return options, facts, machine


def _tables(results: Results) -> None:
    from fabric.lab.bench import report

    emit_table(report.COLUMNS, report.rows(results), empty=NOTHING)
    profiles = [each for each in results if each["kind"] == "profile"]
    if not profiles:
        return
    emit_table(report.SPLIT_COLUMNS, report.split_rows(profiles), empty="no profile")
    for each in profiles:
        if each["mode"] == "calls":
            say(f"{each['role']}, {each['transport']}: shares of the agent's own time")
            rows = report.function_rows(each)
            emit_table(("FUNCTION", "CALLS", "%"), rows, empty="idle")


def _words(given: list[str] | None) -> tuple[str, ...]:
    return tuple(word for each in given or () for word in each.split(","))


def _numbers(option: str, text: str) -> tuple[int, ...]:
    try:
        return tuple(int(word) for word in text.split(","))
    except ValueError as exc:
        raise UserError(f"{option} {text}: whole numbers, separated by commas") from exc


def _decimals(option: str, text: str) -> tuple[float, ...]:
    try:
        return tuple(float(word) for word in text.split(","))
    except ValueError as exc:
        raise UserError(f"{option} {text}: numbers, separated by commas") from exc


def _stop(*_: object) -> None:
    # As an exception, so that everything made is unmade.
    raise SystemExit(STOPPED)
