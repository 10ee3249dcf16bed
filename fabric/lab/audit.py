"""Traces as documents, replayed against recorded tables; explanations as documents.

Owns: reading what ``fabric trace -o json`` printed, and the verdict over each hop. May import:
errors, wire, routing, lab. Where tables come from is the caller's business.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from fabric.errors import ConfigError, FabricError, NameUnknown
from fabric.routing.replay import Decision, replay
from fabric.routing.table import ForwardingTable, Path
from fabric.routing.topology import Topology
from fabric.routing.why import Why
from fabric.wire.packet import (
    DEFAULT_HOP_LIMIT,
    FLAG_MTU,
    FLAG_NAMES,
    FLAG_REPLY,
    PAYLOAD_IPV4,
    Header,
    HopRecord,
)

AGREES, DIFFERS, UNKNOWN = "agrees", "differs", "unknown"


@dataclass(frozen=True)
class Book:
    """One version of one host's table, with the topology it was computed from."""

    topology: Topology
    table: ForwardingTable

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Book:
        """From what ``/v1/tables/VERSION`` gives. Raises ConfigError."""
        try:
            topology, table = document["topology"], document["table"]
        except (KeyError, TypeError) as exc:
            raise ConfigError(f"a recorded table lacks {exc}") from exc
        return cls(Topology.from_json(topology), ForwardingTable.from_json(table))


FindBook = Callable[[str, int], Book]
"""(host, version) → its book. Raises a FabricError that says why there is none."""


def read_traces(document: Any) -> tuple[list[dict[str, Any]], dict[tuple[str, int], Book]]:
    """Traces, and the tables that came along with them (``fabric trace --with-tables``).

    Raises ConfigError when it is neither.
    """
    tables: Iterable[Any] = ()
    if isinstance(document, dict) and "traces" in document:
        document, tables = document["traces"], document.get("tables", ())
    traces = [document] if isinstance(document, dict) else document
    if not isinstance(traces, list) or not all(
        isinstance(trace, dict) and isinstance(trace.get("hops"), list) for trace in traces
    ):
        raise ConfigError("no traces", cure="give what `fabric trace -o json` printed")
    try:
        books = {(each["host"], int(each["version"])): Book.from_json(each) for each in tables}
    except (KeyError, TypeError, ValueError) as exc:
        raise ConfigError(f"tables beside the traces: {type(exc).__name__} {exc}") from exc
    return traces, books


def versions_in(traces: Iterable[dict[str, Any]]) -> dict[tuple[str, int], None]:
    """(host, version) of every hop, in their order."""
    return {
        (str(hop["host"]), int(hop["table_version"])): None
        for trace in traces
        for hop in trace["hops"]
    }


def replay_trace(trace: dict[str, Any], find: FindBook) -> dict[str, Any]:
    """Make every decision of a trace again: the trace's identity, and a verdict for each hop."""
    hops, verdicts = trace["hops"], []
    for at, hop in enumerate(hops):
        following = hops[at + 1]["host"] if at + 1 < len(hops) else None
        told = {"host": hop.get("host"), "table_version": hop.get("table_version")}
        try:
            found = _verdict(trace, hop, following, find)
        except FabricError as exc:
            found = {"verdict": UNKNOWN, "differences": [], "note": exc.message}
        except (LookupError, TypeError, ValueError) as exc:
            note = f"the record cannot be read: {type(exc).__name__} {exc}"
            found = {"verdict": UNKNOWN, "differences": [], "note": note}
        verdicts.append(told | found)
    every = {each["verdict"] for each in verdicts} or {UNKNOWN}
    whole = next(word for word in (DIFFERS, UNKNOWN, AGREES) if word in every)
    identity = ("connection", "sequence", "reply", "source", "destination", "protocol_name")
    return {**{key: trace.get(key) for key in identity}, "verdict": whole, "hops": verdicts}


def _verdict(
    trace: dict[str, Any], hop: dict[str, Any], following: str | None, find: FindBook
) -> dict[str, Any]:
    book = find(str(hop["host"]), int(hop["table_version"]))
    topology = book.topology
    header = _header(trace, topology)
    if header.flags & FLAG_MTU:
        following = None  # a host in between may have left no record
    next_node = topology.by_name(following).id if following is not None else None
    decision = Decision(header, _record(hop, topology), next_node)
    goal, protocol = header.destination, header.protocol
    if decision.record.node != goal and book.table.metric(goal, protocol) is None:
        name = topology.protocol_names.get(protocol, str(protocol))
        raise NameUnknown(f"the recorded table has no row to {trace['destination']} by {name}")
    outcome = replay(decision, topology, book.table)
    word = AGREES if outcome.agrees else DIFFERS
    return {"verdict": word, "differences": list(outcome.differences), "note": outcome.note}


def _header(trace: dict[str, Any], topology: Topology) -> Header:
    bits = {name: bit for bit, name in FLAG_NAMES.items()}
    flags = sum(bits[name] for name in trace.get("flags", ()))
    return Header(
        flags=flags | (FLAG_REPLY if trace.get("reply") else 0),
        protocol=int(trace["protocol"]),
        hop_limit=DEFAULT_HOP_LIMIT,
        payload_length=0,
        hop_count=len(trace["hops"]),
        payload_type=PAYLOAD_IPV4,
        connection=int(trace["connection"], 16),
        source=topology.by_name(trace["source"]).id,
        destination=topology.by_name(trace["destination"]).id,
        sequence=int(trace["sequence"]),
        path_number=int(trace.get("path_number", 0)),
        treatment=int(trace.get("treatment", 0)),
    )


def _record(hop: dict[str, Any], topology: Topology) -> HopRecord:
    return HopRecord(
        node=topology.by_name(hop["host"]).id,
        guest=int(str(hop["guest"]).removeprefix("g")),
        ingress_interface=int(hop["ingress_interface"]),
        egress_interface=int(hop["egress_interface"]),
        received_at_us=int(hop["received_at_us"]),
        residence_us=int(hop["residence_us"]),
        queue_depth=int(hop["queue"]),
        table_version=int(hop["table_version"]),
        spawn_ms=int(hop["spawn_ms"]),
    )


def why_document(found: Why, topology: Topology, version: int | None) -> dict[str, Any]:
    """An explanation as plain data."""
    name = topology.name_of
    around = found.alternate
    return {
        "host": name(found.node),
        "destination": name(found.destination),
        "protocol": found.protocol.name,
        "table_version": version,
        "unit": found.unit,
        "metric": found.metric,
        "candidates": [
            {
                "host": each.name,
                "address": each.address,
                "interface": each.interface,
                "metric": each.metric,
                "used": not each.excluded,
                "excluded": each.excluded,
            }
            for each in found.candidates
        ],
        "paths": [_path(path, topology) for path in found.paths],
        "alternate": None
        if around is None
        else {"path": _path(around, topology), "protects": around.protects},
        "no_entry": found.excluded,
    }


def _path(path: Path, topology: Topology) -> list[str]:
    return [topology.name_of(node) for node in path.nodes or (path.hop.node,)]
