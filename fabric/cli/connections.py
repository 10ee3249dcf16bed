"""Commands about connections: connections, trace, explain, routes, events.

Owns: these commands. May import: errors, lab, cli.
"""

from __future__ import annotations

from typing import Annotated, Any

import typer

from fabric.cli.context import (
    HostArgument,
    LabOption,
    complete_host,
    complete_protocol,
    pick_host,
    pick_lab,
)
from fabric.cli.output import (
    Format,
    OutputOption,
    clock_text,
    emit_json,
    emit_line,
    emit_table,
    flow_text,
    note,
    say,
)

LAST_TRACES = 20
ConnectionArgument = Annotated[
    str, typer.Argument(help="Connection id; its first digits do when they are unambiguous.")
]


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command(epilog="Example: fabric connections -o json | jq -r '.[0].id'")(connections)
    app.command(epilog="Example: fabric trace --last 3")(trace)
    app.command(epilog="Example: fabric explain 00000001a3")(explain)
    app.command(epilog="Example: fabric routes h2 --protocol wide")(routes)
    app.command(epilog="Example: fabric events --follow -o json")(events)


def connections(
    lab: LabOption = None,
    live: Annotated[bool, typer.Option("--live", help="Without those that have ended.")] = False,
    output: OutputOption = Format.TABLE,
) -> None:
    """List connections, newest first, with their guests on every host."""
    found = _client(lab).connections(live=live)
    if output is Format.JSON:
        emit_json(found)
        return
    rows = (
        (
            each["id"],
            clock_text(each["created_at"]),
            each["state"],
            flow_text(each["flow"]),
            _program(each.get("application")),
            each["protocol_name"],
            each["need"],
            " ".join(f"{v['host']}/{v['guest'] or '-'}" for v in _by_time(each["hosts"])),
        )
        for each in found
    )
    columns = ("ID", "SINCE", "STATE", "FLOW", "PROGRAM", "PROTOCOL", "NEED", "GUESTS")
    emit_table(columns, rows, empty="no connections so far")


def trace(
    connection: Annotated[str, typer.Argument(help="Only this connection (id or prefix).")] = "",
    last: Annotated[int, typer.Option("--last", min=1, help="How many packets.")] = LAST_TRACES,
    with_tables: Annotated[
        bool, typer.Option("--with-tables", help="JSON with all that `fabric replay` needs.")
    ] = False,
    lab: LabOption = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """Show who carried the packets that arrived, hop by hop, newest last."""
    client = _client(lab)
    label = client.connection(connection)["id"] if connection else ""
    found = client.traces(label, last)
    if with_tables:
        from fabric.cli.audit import tables_for

        emit_json({"traces": found, "tables": tables_for(client, found)})
        return
    if output is Format.JSON:
        emit_json(found)
        return
    if not found:
        note("no traces: no packet has arrived yet")
    for each in found:
        arrow = "reply" if each.get("reply") else "forward"
        flags = f" [{' '.join(each['flags'])}]" if each.get("flags") else ""
        say(
            f"{each['connection']} #{each['sequence']} {arrow} "
            f"{each['source']} > {each['destination']} "
            f"by {each.get('protocol_name', each['protocol'])}{flags}"
        )
        for hop in each["hops"]:
            say(
                f"    {hop['host']:<12} {hop['guest']:<6} {clock_text(hop['received_at'])}  "
                f"{hop['residence_us']:>7} us  queue {hop['queue']:<3} "
                f"table {hop['table_version']:08x}  guest took {hop['spawn_ms']} ms"
            )


def explain(
    connection: ConnectionArgument,
    lab: LabOption = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """Explain a connection at every host: facts, policy line, protocol, table entry, next hop."""
    client = _client(lab)
    summary = client.connection(connection)
    path = client.explain(summary["id"])
    if output is Format.JSON:
        flow = summary.get("flow")
        emit_json({"connection": summary["id"], "flow": flow, "path": path})
        return
    say(f"connection {summary['id']}  {flow_text(summary.get('flow'))}")
    for each in path:
        for line in _explain_host(each):
            say(line)


def routes(
    host: HostArgument,
    protocol: Annotated[
        str,
        typer.Option("--protocol", help="Only this one.", autocompletion=complete_protocol),
    ] = "",
    lab: LabOption = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """Show a host's forwarding table: (destination, protocol) to next hops."""
    spec = pick_lab(lab).spec
    if protocol:
        from fabric.routing.definitions import by_name

        by_name(protocol, spec.topology().definitions)  # NameUnknown lists those there are
    name = pick_host(spec, host).host
    found = _client(lab).hosts[name].get("/v1/routes", protocol=protocol)
    if output is Format.JSON:
        emit_json(found)
        return
    rows = (
        (
            each["destination_host"],
            each["protocol_name"],
            ", ".join(f"{hop['host']} ({hop['address']})" for hop in each["next_hops"]),
            ", ".join(str(hop["metric"]) for hop in each["next_hops"]),
        )
        for each in found
    )
    emit_table(("DESTINATION", "PROTOCOL", "NEXT HOPS", "METRIC"), rows, empty="no routes")


def events(
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with new ones.")] = False,
    host: Annotated[
        str, typer.Option("--host", help="Only this host's.", autocompletion=complete_host)
    ] = "",
    lab: LabOption = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """Show what happened on all hosts, by time; with -o json one event per line."""
    spec = pick_lab(lab).spec
    client = _client(lab)
    if host:
        name = pick_host(spec, host).host
        client.hosts = {name: client.hosts[name]}
    show = emit_line if output is Format.JSON else _show_event
    seen: dict[str, int] = {}
    for event in client.events():
        seen[event["host"]] = max(seen.get(event["host"], 0), event["seq"])
        show(event)
    if not follow:
        return
    try:
        for event in client.follow(seen):
            show(event)
    except KeyboardInterrupt:
        return  # the ordinary way to stop following


def _client(lab: str | None) -> Any:
    from fabric.cli.client import LabClient

    return LabClient(pick_lab(lab).spec, note)


def _by_time(views: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(views, key=lambda view: str(view["created_at"]))


def _program(application: dict[str, Any] | None) -> str:
    executable = (application or {}).get("executable") or ""
    return str(executable).rpartition("/")[2]


def _explain_host(each: dict[str, Any]) -> list[str]:
    selection, table, hop = each["selection"], each["table"], each["next_hop"]
    lines = [f"{each['host']} ({each['role']})"]
    if each.get("facts"):
        facts = {k: v for k, v in each["facts"].items() if v not in (None, "") and k != "flow"}
        shown = (f"{key}={value}" for key, value in facts.items())
        lines.append(f"  facts     {' '.join(shown)}")
    rule = f"rule {selection['rule']}: " if selection.get("rule") else ""
    lines.append(f"  policy    {rule}{selection.get('reason') or ''}")
    lines.append(
        f"  protocol  {selection.get('protocol_name', selection.get('protocol'))}"
        + (f" (need {selection['need']})" if selection.get("need") else "")
    )
    entry = ", ".join(f"{h['host']} ({h['address']})" for h in table.get("entry") or [])
    lines.append(
        f"  table     version {table.get('version', 0):08x}, to {table.get('destination')}: "
        f"{entry or 'delivered here'}"
    )
    lines.append(f"  next hop  {hop['host']} at {hop['address']}" if hop else "  next hop  none")
    return lines


def _show_event(event: dict[str, Any]) -> None:
    base = {"seq", "at", "at_us", "host", "name", "connection"}
    fields = " ".join(f"{k}={_short(v)}" for k, v in event.items() if k not in base)
    connection = event.get("connection") or "-"
    say(f"{clock_text(event['at'])} {event['host']:<12} {connection:<16} {event['name']} {fields}")


def _short(value: Any) -> str:
    if isinstance(value, dict) and {"source_port", "destination_port"} <= value.keys():
        return f"({flow_text(value)})"
    if isinstance(value, dict):
        inside = (f"{k}={_short(v)}" for k, v in value.items() if v not in (None, ""))
        return f"({' '.join(inside)})"
    return str(value)
