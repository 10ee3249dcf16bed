"""``fabric why`` and ``fabric replay``: what a table says and why; was a decision the right one.

Owns: these commands. May import: errors, routing, lab, cli.
"""

from __future__ import annotations

import json
import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fabric.cli.context import (
    HostArgument,
    LabOption,
    complete_host,
    complete_protocol,
    pick_host,
    pick_lab,
)
from fabric.cli.output import Format, OutputOption, emit_json, emit_table, note, say
from fabric.errors import ConfigError, NameUnknown

if TYPE_CHECKING:
    from fabric.cli.client import LabClient
    from fabric.lab.audit import Book, FindBook

EXIT_CODES = {"agrees": 0, "differs": 1, "unknown": 2}
LAST_TRACES = 20


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command(epilog="Example: fabric why h1 h4 --protocol wide")(why)
    app.command(epilog="Example: fabric trace --last 1 -o json | fabric replay -")(replay)


def why(
    host: HostArgument,
    destination: Annotated[str, typer.Argument(help="Another host.", autocompletion=complete_host)],
    protocol: Annotated[
        str, typer.Option(help="By which protocol.", autocompletion=complete_protocol)
    ] = "shortest",
    file: Annotated[
        Path | None, typer.Option(help="Of this topology file instead of a live lab.")
    ] = None,
    version: Annotated[
        str, typer.Option(help="An earlier table's version, as traces have it.")
    ] = "",
    lab: LabOption = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """Explain an entry of a host's table: every neighbour, its worth, what excluded it."""
    from fabric.lab.audit import why_document
    from fabric.routing.definitions import by_name
    from fabric.routing.why import why as explain

    number: int | None = None
    if file is not None:
        from fabric.lab.topology_file import load_topology

        topology = load_topology(file).topology()
    else:
        client = _client(lab)
        name = pick_host(pick_lab(lab).spec, host).host
        number = (
            _version(version) if version else client.hosts[name].get("/v1/tables")[-1]["version"]
        )
        topology = _live_book(client, name, number).topology
    wanted = by_name(protocol, topology.definitions)
    ends = topology.by_name(host).id, topology.by_name(destination).id
    found = why_document(explain(topology, *ends, wanted.id), topology, number)
    if output is Format.JSON:
        emit_json(found)
    else:
        _show_why(found)


def replay(
    trace: Annotated[
        str, typer.Argument(help="File of `fabric trace -o json`, - for input, or a connection.")
    ],
    last: Annotated[
        int, typer.Option("--last", min=1, help="How many packets of a connection.")
    ] = LAST_TRACES,
    lab: LabOption = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """Make the decisions of a trace again, by the tables of their versions, and compare.

    Exit code 0: all agree; 1: one differs; 2: one cannot be made again.
    """
    from fabric.lab.audit import read_traces, replay_trace

    document = _document(trace)
    if document is None:
        client = _client(lab)
        document = client.traces(client.connection(trace)["id"], last)
    traces, books = read_traces(document)
    if not traces:
        raise NameUnknown("there are no traces: no packet has arrived yet")
    find = _finder(books, lab)
    found = [replay_trace(each, find) for each in traces]
    if output is Format.JSON:
        emit_json(found)
    else:
        _show_replay(found)
    words = {each["verdict"] for each in found}
    code = next(EXIT_CODES[word] for word in ("differs", "unknown", "agrees") if word in words)
    if code:
        raise typer.Exit(code)


def tables_for(client: LabClient, traces: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The tables a replay of these traces needs, so that it needs nothing else."""
    from fabric.lab.audit import versions_in

    found = []
    for host, version in versions_in(traces):
        try:
            found.append(client.hosts[host].get(f"/v1/tables/{version}"))
        except (NameUnknown, KeyError):
            note(f"warning: host {host} has no table {version:08x} any more")
    return found


def _document(trace: str) -> Any:
    """What a file or the input holds; None when neither is meant."""
    if trace != "-" and not Path(trace).is_file():
        return None
    try:
        text = sys.stdin.read() if trace == "-" else Path(trace).read_text()
        return json.loads(text)
    except (OSError, ValueError) as exc:
        raise ConfigError(
            f"{trace}: {exc}", cure="give what `fabric trace -o json` printed"
        ) from exc


def _finder(books: dict[tuple[str, int], Book], lab: str | None) -> FindBook:
    """Tables that came with the traces first, then those the lab's hosts remember."""

    @cache
    def find(host: str, version: int) -> Book:
        carried = books.get((host, version))
        return carried or _live_book(_client(lab), host, version)

    return find


def _live_book(client: LabClient, host: str, version: int) -> Book:
    from fabric.lab.audit import Book

    if host not in client.hosts:
        raise NameUnknown(f"the lab has no host {host}")
    return Book.from_json(client.hosts[host].get(f"/v1/tables/{version}"))


def _version(text: str) -> int:
    """As people see it: eight hexadecimal digits."""
    try:
        return int(text, 16)
    except ValueError as exc:
        raise NameUnknown(f"{text!r} is no table version", cure="e.g. 3962d7af") from exc


def _client(lab: str | None) -> LabClient:
    from fabric.cli.client import LabClient

    return LabClient(pick_lab(lab).spec, note)


# -- for people ------------------------------------------------------------------------------------


def _show_why(found: dict[str, Any]) -> None:
    version = found["table_version"]
    of = "" if version is None else f", table {version:08x}"
    say(f"{found['host']} > {found['destination']} by {found['protocol']}{of}")
    if found["no_entry"]:
        say(f"no entry: {found['no_entry']}")
    else:
        say(f"worth {found['metric']} ({found['unit']})")
    rows = (
        (each["host"], each["address"], each["metric"], each["excluded"] or "used")
        for each in found["candidates"]
    )
    emit_table(("NEIGHBOUR", "ADDRESS", "METRIC", "WHY"), rows, empty="it has no neighbours")
    for path in found["paths"]:
        say(f"path: {' > '.join(path)}")
    around = found["alternate"]
    if around is not None:
        say(f"if that {around['protects']} dies: {' > '.join(around['path'])}")


def _show_replay(found: list[dict[str, Any]]) -> None:
    for each in found:
        arrow = "reply" if each["reply"] else "forward"
        say(
            f"{each['connection']} #{each['sequence']} {arrow} {each['source']} > "
            f"{each['destination']} by {each['protocol_name']}: {each['verdict']}"
        )
        for hop in each["hops"]:
            version = hop["table_version"]
            shown = f"{version:08x}" if isinstance(version, int) else str(version)
            about = f"  ({hop['note']})" if hop["note"] else ""
            say(f"    {hop['host']:<12} table {shown}  {hop['verdict']}{about}")
            for difference in hop["differences"]:
                say(f"        {difference}")
