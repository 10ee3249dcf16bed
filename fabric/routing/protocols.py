"""The routing protocols: from a topology to one node's forwarding table.

Owns: the registry and what each protocol prefers. May import: errors, routing.{needs,spf,table,
topology}. Stays on the host; guests get finished tables.

Why no packet loops, although every host decides for itself. Let d be the destination.
- *Additive* protocols (shortest, low-latency, reliable) weigh a path by a sum of positive integers
  (the cost of a link is at least 1). Every host's next hop is strictly nearer to d by the same sum.
- *wide*: let W(v) be the largest bottleneck from v to d. Host v takes the cheapest path among links
  of at least W(v). Its next hop u has W(u) >= W(v), as the rest of that path shows. If W(u) = W(v),
  both search the same links and u is strictly nearer in cost; if it is greater, no later host ever
  falls back, since W never shrinks along the way. So (W growing, then cost shrinking) orders the
  hosts of every path. The packet also really gets the bottleneck v promised. The *cost* may end up
  higher than v reckoned, where u knows a wider and dearer way: bandwidth first, then cost, is not
  isotone, and hosts that each insist on their own best cannot have both.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from fabric.errors import NameUnknown
from fabric.routing.needs import LOW_LATENCY, PROTOCOL_NAMES, RELIABLE, SHORTEST, WIDE
from fabric.routing.spf import UNLIMITED, bandwidth_of, shortest_paths, widths
from fabric.routing.table import ForwardingTable
from fabric.routing.topology import Link, Topology

_COST_BITS = 48
"""Low bits of a combined weight, which hold the cost as tie-break: 2^24 hops of MAX_COST."""
LOSS_UNITS = 10**9
"""Integer steps per unit of -ln(1 - loss). Sums of floats depend on their order, and hosts that sum
the same path in opposite directions must agree on what is equal."""

Routes = dict[int, tuple[int, int]]
"""Destination → (metric, first hops as a bit set over the node's neighbours)."""


@dataclass(frozen=True)
class Protocol:
    """One way to choose paths. ``compute`` is a pure function of (topology, node)."""

    id: int
    name: str
    metric: str
    """What the metric of a route counts, for people."""
    compute: Callable[[Topology, int], Routes]


def _shortest(topology: Topology, node: int) -> Routes:
    return shortest_paths(topology, node, lambda link: link.cost)


def _additive(primary: Callable[[Link], int]) -> Callable[[Topology, int], Routes]:
    """Least sum of ``primary``, then least cost. Both sit in one integer, primary above cost."""

    def compute(topology: Topology, node: int) -> Routes:
        found = shortest_paths(
            topology, node, lambda link: (primary(link) << _COST_BITS) + link.cost
        )
        return {to: (total >> _COST_BITS, hops) for to, (total, hops) in found.items()}

    return compute


def loss_weight(link: Link) -> int:
    """-ln(1 - loss): adding these multiplies the probabilities of getting through."""
    return round(-math.log1p(-link.loss) * LOSS_UNITS)


def _wide(topology: Topology, node: int) -> Routes:
    """Largest bottleneck, then least cost: one shortest-path search per distinct bottleneck."""
    reach = widths(topology, node)
    routes: Routes = {}
    for width in sorted(set(reach.values()), reverse=True):
        found = shortest_paths(topology, node, partial(_cost_if_wide, width))
        metric = 0 if width == UNLIMITED else width
        routes |= {to: (metric, found[to][1]) for to, reached in reach.items() if reached == width}
    return routes


def _cost_if_wide(least: int, link: Link) -> int | None:
    return link.cost if bandwidth_of(link) >= least else None


PROTOCOLS: dict[int, Protocol] = {
    number: Protocol(number, PROTOCOL_NAMES[number], metric, compute)
    for number, metric, compute in (
        (SHORTEST, "sum of link costs", _shortest),
        (LOW_LATENCY, "sum of link latencies, µs", _additive(lambda link: link.latency_us)),
        (WIDE, "bottleneck bandwidth, bit/s (0: unlimited)", _wide),
        (RELIABLE, "-ln(probability of getting through), 1e-9", _additive(loss_weight)),
    )
}
"""By id. User-defined protocols (128 … 255) are further entries."""


def by_name(name: str, protocols: Mapping[int, Protocol] = PROTOCOLS) -> Protocol:
    """Raises NameUnknown, listing the known names."""
    for protocol in protocols.values():
        if protocol.name == name:
            return protocol
    known = ", ".join(protocol.name for protocol in protocols.values())
    raise NameUnknown(f"no protocol {name!r}", cure=f"protocols: {known}")


def compute_table(
    topology: Topology,
    node: int,
    version: int,
    protocols: Mapping[int, Protocol] = PROTOCOLS,
) -> ForwardingTable:
    """The table of ``node`` for all ``protocols``; ``version`` is carried into hop records.

    Equal-cost next hops are all listed, by node id, then interface. Destinations out of reach have
    no entry, and neither has the node itself. Raises NameUnknown when the topology lacks the node.
    """
    neighbours = topology.neighbours(node)
    listed: dict[int, list[int]] = {}
    routes: dict[str, dict[str, list[int]]] = {}
    for number in sorted(protocols):
        found = protocols[number].compute(topology, node)
        routes[str(number)] = rows = {}
        for destination in sorted(found):
            metric, hops = found[destination]
            if hops not in listed:
                listed[hops] = [i for i in range(len(neighbours)) if hops >> i & 1]
            rows[str(destination)] = [metric, *listed[hops]]
    document: dict[str, Any] = {
        "node": node,
        "version": version,
        "hops": [[end.node, end.address, end.interface, end.mtu] for end in neighbours],
        "routes": routes,
    }
    return ForwardingTable.from_json(document)
