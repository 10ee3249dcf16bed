"""From a topology to one node's forwarding table.

Owns: which calculation makes which rows, and the table of all of them. May import: errors, routing.
Stays on the host; guests get finished tables, or the part of them that they need.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

from fabric.routing.definitions import PROTOCOLS, Definition, by_name
from fabric.routing.disjoint import DisjointRows, DisperseRows
from fabric.routing.hopwise import DeflectRows, ShortestRows
from fabric.routing.pathwise import BoundedRows, FloodRows, SourceRows
from fabric.routing.rows import Row, Rows
from fabric.routing.table import ForwardingTable
from fabric.routing.topology import Topology
from fabric.routing.view import Atlas, View
from fabric.routing.widest import WidestRows
from fabric.wire.packet import DISPERSED, FLOODED, REPLICATED, SINGLE

__all__ = ["PROTOCOLS", "by_name", "compute_table", "rows_of"]


class Calculation(Protocol):
    """What a protocol's rows come from. Destinations are given by node index."""

    def goals(self) -> Iterator[int]:
        """Those that may have a row."""

    def row(self, goal: int) -> Row | None:
        """The row of one; None: out of reach, or excluded by a constraint."""


Previous = Mapping[int, tuple[int, ...]]
"""Destination → the path in use so far."""

_CALCULATIONS: dict[str, Callable[[View, Definition, Previous], Calculation]] = {
    "spf": lambda view, _, __: ShortestRows(view),
    "widest": lambda view, _, __: WidestRows(view),
    "deflect": lambda view, _, __: DeflectRows(view),
    "disjoint": lambda view, _, __: DisjointRows(view),
    "disperse": lambda view, definition, _: DisperseRows(view, definition),
    "flood": lambda view, _, __: FloodRows(view),
    "source": lambda view, definition, _: SourceRows(view, definition),
    "bounded": BoundedRows,
}
TREATMENTS = {
    "disjoint": REPLICATED,
    "disperse": DISPERSED,
    "flood": FLOODED,
    "source": SINGLE,
    "bounded": SINGLE,
}
"""How packets travel whose first host says more than the protocol; absent: hop by hop."""


def rows_of(atlas: Atlas, definition: Definition, previous: Previous | None = None) -> Calculation:
    """The rows of one protocol at the atlas's node."""
    view = atlas.view(definition)
    return _CALCULATIONS[definition.calculation](view, definition, previous or {})


def compute_table(
    topology: Topology,
    node: int,
    version: int,
    protocols: Mapping[int, Definition] | None = None,
    previous: ForwardingTable | None = None,
) -> ForwardingTable:
    """The table of ``node``; ``version`` is carried into hop records. Rows are computed when
    somebody looks.

    ``protocols``: None means all that the topology defines. ``previous``: the table so far, whose
    paths sticky protocols keep. Destinations out of reach have no entry, and neither has the node
    itself. Raises NameUnknown when the topology lacks the node.
    """
    if protocols is None:
        protocols = topology.definitions
    atlas = Atlas(topology, node)
    routes: dict[str, Mapping[str, Row]] = {}
    for number, definition in sorted(protocols.items()):
        used = previous.known_paths(number) if previous is not None else {}
        calculation = rows_of(atlas, definition, used)
        routes[str(number)] = Rows(topology.graph, calculation.goals, calculation.row)
    document: dict[str, Any] = {
        "node": node,
        "version": version,
        "hops": [
            [end.node, end.address, end.interface, end.mtu] for end in topology.neighbours(node)
        ],
        "protocols": {str(number): _told(d) for number, d in sorted(protocols.items())},
        "routes": routes,
    }
    return ForwardingTable.from_json(document)


def _told(definition: Definition) -> dict[str, Any]:
    """What guests must know of a protocol beside its rows."""
    told: dict[str, Any] = {"name": definition.name}
    treatment = TREATMENTS.get(definition.calculation)
    if treatment is not None:
        told["treatment"] = treatment
    if treatment == DISPERSED:
        told |= {"hold_us": definition.hold_us, "least_paths": definition.least_paths}
    if treatment == FLOODED:
        told["slack"] = definition.slack
    return told
