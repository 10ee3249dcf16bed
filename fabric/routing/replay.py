"""Was a recorded decision the one the tables of its time ask for?

Owns: Decision, Verdict and the comparison. May import: wire, routing. Pure; stays on the host.

A trace says who carried a packet, by which of its links, under which version of its table. With the
topology and the table of that version, every decision can be made again.
"""

from __future__ import annotations

from dataclasses import dataclass

from fabric.routing.choice import choose
from fabric.routing.protocols import compute_table
from fabric.routing.table import ForwardingTable
from fabric.routing.topology import Topology
from fabric.wire.packet import FLAG_PATH, FLAG_REPAIRED, FLOODED, Header, HopRecord, Packet


@dataclass(frozen=True)
class Decision:
    """One host's part in a trace."""

    header: Header
    """As it arrived at its egress: a host may have repaired the packet after this decision."""
    record: HopRecord
    next_node: int | None
    """Who carried it next; None: nobody, or nobody who left a record."""


@dataclass(frozen=True)
class Verdict:
    """What came of replaying a decision."""

    differences: tuple[str, ...] = ()
    """What is not as it should be, expected and found; empty: everything agrees."""
    note: str = ""
    """Why a decision agrees although it is not the table's first choice."""

    @property
    def agrees(self) -> bool:
        """Whether record, table and topology are of one mind."""
        return not self.differences


def decisions(trace: Packet) -> list[Decision]:
    """The decisions of a trace, first host first."""
    followers = [record.node for record in trace.records[1:]]
    return [
        Decision(trace.header, record, following)
        for record, following in zip(trace.records, [*followers, None], strict=True)
    ]


def replay(decision: Decision, topology: Topology, table: ForwardingTable) -> Verdict:
    """Make the decision again. ``topology`` and ``table``: the host's, of the recorded version.

    Three things must agree: the record's version with the table's, the table's entry with the
    topology, and the link taken with the entry.
    """
    header, record = decision.header, decision.record
    found = []
    if record.table_version != table.version:
        found.append(f"table version: the record has {record.table_version}, not {table.version}")
    if record.node != table.node:
        found.append(f"node: the record is of {record.node}, the table of {table.node}")
        return Verdict(tuple(found))
    found += _entry_differences(decision, topology, table)
    if record.node == header.destination:
        if record.egress_interface:
            found.append(f"egress: interface {record.egress_interface}, not the application's (0)")
        return Verdict(tuple(found))
    expected, note = _links(decision, table)
    if record.egress_interface not in expected:
        ways = ", ".join(map(str, sorted(expected))) or "none"
        found.append(f"egress: interface {record.egress_interface}, the table allows {ways}")
    led_to = _node_behind(topology, record.node, record.egress_interface)
    if decision.next_node is not None and led_to != decision.next_node:
        name = topology.name_of
        there = "nobody" if led_to is None else name(led_to)
        found.append(f"next host: {name(decision.next_node)} carried it, the link leads to {there}")
    return Verdict(tuple(found), note)


def _entry_differences(decision: Decision, topology: Topology, table: ForwardingTable) -> list[str]:
    goal, protocol = decision.header.destination, decision.header.protocol
    if goal == table.node:
        return []
    definition = topology.definitions.get(protocol)
    if definition is None:
        return [f"protocol: the topology does not define {protocol}"]
    # Sticky protocols keep what the table had, as long as the topology allows it.
    again = compute_table(topology, table.node, table.version, {protocol: definition}, table)
    recorded, computed = (each.to_json((goal,)) for each in (table, again))
    rows = [each["routes"].get(str(protocol), {}).get(str(goal)) for each in (recorded, computed)]
    if rows[0] != rows[1]:
        return [f"entry: the table has {rows[0]}, the topology gives {rows[1]}"]
    return []


def _links(decision: Decision, table: ForwardingTable) -> tuple[set[int], str]:
    """Interfaces the decision may have used, and a note when the first choice is not known."""
    header, here = decision.header, table.node
    goal, protocol = header.destination, header.protocol
    repaired = bool(header.flags & FLAG_REPAIRED)
    allowed, note = set[int](), ""
    hops = table.lookup(goal, protocol)
    if repaired:
        # The flag does not say where: any host on the way may have been the one.
        around = table.alternate(goal, protocol)
        allowed |= {around.hop.interface} if around is not None else set()
        allowed |= {hop.interface for hop in hops}
        note = "repaired on the way: the alternate is allowed too"
    if header.flags & FLAG_PATH and header.treatment != FLOODED:
        if here == header.source and not repaired:
            paths = table.paths(goal, protocol)[header.path_number :][:1]
            return {path.hop.interface for path in paths}, ""
        # The path itself is not in the trace: any link to the next host may have been on it.
        following = decision.next_node
        if following is not None:
            allowed |= {hop.interface for hop in table.toward(following)}
        return allowed, note or "on an explicit path: it was chosen at the first host"
    if header.treatment == FLOODED and header.flags & FLAG_PATH:
        return {hop.interface for hop in hops}, "flooded: any of the entry's links"
    if hops and not repaired:
        allowed.add(choose(hops, header.connection, here).interface)
    return allowed, note


def _node_behind(topology: Topology, node: int, interface: int) -> int | None:
    ends = topology.neighbours(node)
    return next((end.node for end in ends if end.interface == interface), None)
