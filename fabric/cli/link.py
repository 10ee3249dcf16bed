"""Commands about a running lab's links: link set, link show.

Owns: the sub-commands of ``link``. May import: errors, lab, cli.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fabric.cli import context
from fabric.cli.context import LabOption, complete_link
from fabric.cli.output import Format, OutputOption, emit_json, emit_table, say
from fabric.errors import UserError

if TYPE_CHECKING:
    from fabric.lab.control import Changed
    from fabric.lab.standing import Standing

app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Change and look at links of a running lab."
)
LinkArgument = Annotated[
    str, typer.Argument(metavar="A-B", help="A link.", autocompletion=complete_link)
]
NONE = ("none", "0")
"""What takes an impairment off."""


def register(root: typer.Typer) -> None:
    """Add this module's commands."""
    root.add_typer(app, name="link")


@app.callback()
def link() -> None:
    """Change and look at links of a running lab."""


@app.command("set", epilog="Example: fabric link set h1-h2 --delay 20ms --loss 1%")
def set_link(
    name: LinkArgument,
    delay: Annotated[str | None, typer.Option(help="One way, e.g. 20ms; none.")] = None,
    jitter: Annotated[str | None, typer.Option(help="To either side, e.g. 2ms; none.")] = None,
    rate: Annotated[str | None, typer.Option(help="E.g. 50mbit; none: no limit.")] = None,
    loss: Annotated[str | None, typer.Option(help="E.g. 1%; none.")] = None,
    down: Annotated[
        bool | None, typer.Option("--down/--up", help="Take both ends' carrier, give it back.")
    ] = None,
    silent: Annotated[
        bool, typer.Option("--silent", help="With --down: keep the carrier, drop everything.")
    ] = False,
    reset: Annotated[
        bool, typer.Option("--reset", help="Back to the file before the other options.")
    ] = False,
    lab: LabOption = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """Change a link while connections run; holds until the next `fabric up` or --reset.

    A change of delay, jitter or rate loses no packet.
    """
    if silent and not down:
        raise UserError("--silent says how a link is down", cure="add --down")
    given = _given(delay, jitter, rate, loss)
    if down is not None:
        given["state"] = ("silent" if silent else "down") if down else "up"
    if not given and not reset:
        raise UserError("nothing to change", cure="see `fabric link set --help`")
    from fabric.lab.control import Control, find_link

    recorded = context.pick_lab(lab)
    in_file = find_link(recorded.spec, name).standing

    def change(now: Standing) -> Standing:
        return replace(in_file if reset else now, **given)

    with context.machine().world() as world:
        changed = Control(context.run_dir(), recorded.spec.name, world).change(name, change)
    _tell(changed, output)


@app.command("show", epilog="Example: fabric link show h1-h2 -o json")
def show(
    name: Annotated[
        str, typer.Argument(metavar="[A-B]", help="Only this.", autocompletion=complete_link)
    ] = "",
    lab: LabOption = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """Show links: what the file wants, what is in force, carrier and counters of both ends."""
    from fabric.lab.control import find_link
    from fabric.lab.inspection import inspect_links
    from fabric.lab.preflight import require_root

    require_root()
    recorded = context.pick_lab(lab)
    wanted = {find_link(recorded.spec, name).label} if name else set()
    with context.machine().world() as world:
        found = [x for x in inspect_links(recorded, world) if not wanted or x["link"] in wanted]
    if output is Format.JSON:
        emit_json(found)
        return
    columns = (
        *("LINK", "DELAY", "JITTER", "RATE", "LOSS", "STATE"),
        *("END", "CARRIER", "HEARD", "RTT", "SENT", "LOST"),
    )
    emit_table(columns, (row for each in found for row in _rows(each)), empty="no links")


def _given(
    delay: str | None, jitter: str | None, rate: str | None, loss: str | None
) -> dict[str, Any]:
    from fabric.lab.fields import parse_bandwidth, parse_latency, parse_loss

    options = (
        ("--delay", "latency_us", delay, parse_latency),
        ("--jitter", "jitter_us", jitter, parse_latency),
        ("--rate", "bandwidth_bps", rate, parse_bandwidth),
        ("--loss", "loss", loss, parse_loss),
    )
    given: dict[str, Any] = {}
    for option, attribute, text, parse in options:
        try:
            if text is not None:
                given[attribute] = 0 if text in NONE else parse(text)
        except ValueError as exc:
            raise UserError(f"{option}: {exc}") from exc
    return given


def _tell(changed: Changed, output: Format) -> None:
    label = changed.link.label
    if output is Format.JSON:
        before, now = changed.before.to_json(), changed.now.to_json()
        emit_json({"link": label, "before": before, "now": now})
        return
    what = changed.now.changes_from(changed.before)
    say(f"link {label}: {', '.join(what) or 'nothing changed'}")


def _rows(each: dict[str, Any]) -> list[tuple[Any, ...]]:
    """Two lines per link: its standing beside the first end; ``file: …`` where it differs."""
    from fabric.lab.standing import Standing, said

    now, wanted = Standing.from_json(each["now"]), Standing.from_json(each["wanted"])
    names = ("latency_us", "jitter_us", "bandwidth_bps", "loss", "state")
    shown = [_beside(said(now, name), said(wanted, name)) for name in names]
    if each["cut"]:
        shown[-1] += " (cut by a check)"
    rows = []
    for end, left in zip(each["ends"], ([each["link"], *shown], [""] * 6), strict=True):
        carrier = "yes" if end["carrier"] else "no"
        counted = (end.get("sent_packets"), end.get("lost_packets"))
        rows.append((*left, end["host"], carrier, *_heard(end.get("measured")), *counted))
    return rows


def _heard(measured: dict[str, Any] | None) -> tuple[str, str]:
    """What the watch at this end says of the neighbour, and the round trip."""
    if measured is None:
        return "-", "-"
    rtt = measured["rtt_us"]
    return measured["state"], "-" if rtt is None else f"{rtt / 1000:.2f} ms"


def _beside(now: str, wanted: str) -> str:
    return now if now == wanted else f"{now} (file: {wanted})"
