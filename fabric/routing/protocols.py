"""From a topology to one node's forwarding table.

Owns: which calculation makes which rows, and the table of all of them. May import: errors, routing.
Stays on the host; guests get finished tables, or the part of them that they need.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from fabric.routing.atlas import Atlas
from fabric.routing.commons import Commons
from fabric.routing.definitions import PROTOCOLS, Definition, by_name
from fabric.routing.disjoint import DisjointRows, DisperseRows
from fabric.routing.hopwise import DeflectRows, ShortestRows
from fabric.routing.pathwise import BoundedRows, FloodRows, SourceRows
from fabric.routing.rows import Calculation, Row, Rows
from fabric.routing.table import ForwardingTable
from fabric.routing.topology import Topology
from fabric.routing.view import View
from fabric.routing.widest import WidestRows
from fabric.wire.packet import DISPERSED, FLOODED, REPLICATED, SINGLE

__all__ = ["PROTOCOLS", "by_name", "compute_table", "rows_of"]


Hops = list[list[Any]]
"""A host's links as its tables list them: neighbour, its address, interface, MTU."""

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
_OF_THE_VIEW = ("spf", "widest", "deflect", "flood", "disjoint")
"""Calculations that want nothing else of a definition: protocols with one view share their rows."""
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
    commons: Commons | None = None,
) -> ForwardingTable:
    """The table of ``node``; ``version`` is carried into hop records. Rows are computed when
    somebody looks.

    ``protocols``: None means all that the topology defines. ``previous``: the table so far, whose
    paths sticky protocols keep, and whose searches and rows are brought up to date rather than made
    anew; the result is the same without it but for the sticky ones. ``commons``: of this topology,
    where tables of many hosts are computed in one process; the result is the same. Destinations
    out of reach have no entry, and neither has the node itself. Raises NameUnknown when the
    topology lacks the node.
    """
    if protocols is None:
        protocols = topology.definitions
    ends = topology.neighbours(node)
    hops: Hops = [[end.node, end.address, end.interface, end.mtu] for end in ends]
    places, kept, known = list(range(len(hops))), hops, None
    # What others have found already is worth more than what was before.
    if commons is None and previous is not None and previous.node == node:
        before = previous.source
        source = before if isinstance(before, _Source) else None
        so_far = source.hops if source is not None else previous.links
        found = _places(hops, so_far)
        if found is not None:
            places, kept, known = found, so_far, source
    atlas = Atlas(topology, node, places, known.atlas if known is not None else None, commons)
    routes: dict[str, Mapping[str, Row]] = {}
    shared: dict[tuple[str, int], Rows] = {}
    for number, definition in sorted(protocols.items()):
        sticky = previous is not None and definition.calculation == "bounded"
        used = previous.known_paths(number) if previous is not None and sticky else {}
        earlier = known.rows(number, definition) if known is not None else None
        kind, calculation = definition.calculation, rows_of(atlas, definition, used)
        key = (kind, id(calculation.view) if kind in _OF_THE_VIEW else -number)
        if key not in shared:
            shared[key] = Rows(topology.graph, calculation, earlier)
        routes[str(number)] = shared[key]
    document: dict[str, Any] = {
        "node": node,
        "version": version,
        "hops": [hop if at in places else [] for at, hop in enumerate(kept)],
        "protocols": {str(number): _told(d) for number, d in sorted(protocols.items())},
        "routes": routes,
    }
    atlas.forget()
    table = ForwardingTable.from_json(document)
    table.source = _Source(atlas, kept, dict(protocols), routes)
    return table


@dataclass(frozen=True)
class _Source:
    """What a table was computed from, kept for the next one. It never leaves the host."""

    atlas: Atlas
    hops: Hops
    """Those that are gone, too: they have their place again when they come back."""
    protocols: dict[int, Definition]
    routes: dict[str, Mapping[str, Row]]

    def rows(self, number: int, definition: Definition) -> Rows | None:
        """The rows of a protocol, if it is defined as it was."""
        found = self.routes.get(str(number))
        return found if isinstance(found, Rows) and self.protocols[number] == definition else None


def _places(hops: Hops, kept: Hops) -> list[int] | None:
    """Where a host's links are among those it had, so that rows which speak of them by position
    still mean the same; None when there are new ones, or the order is another one."""
    known = {tuple(hop): at for at, hop in enumerate(kept)}
    places = [known.get(tuple(hop), -1) for hop in hops]
    return None if -1 in places or places != sorted(places) else places


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
