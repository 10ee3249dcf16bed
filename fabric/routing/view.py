"""A topology as one protocol sees it from one node: which links count, and for how much.

Owns: link weights, constraints, and the searches a node's rows need, each done once.
May import: routing.{definitions,graph,spf,topology}, wire (limits). Stays on the host.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from functools import cached_property

from fabric.routing.definitions import Definition
from fabric.routing.graph import FAR, Arc, Tree
from fabric.routing.spf import UNLIMITED, First, shortest_paths
from fabric.routing.topology import Link, Node, Topology

COST_BITS = 48
"""Low bits of a combined weight, which hold the cost as tie-break: 2^24 hops of MAX_COST."""
LOSS_UNITS = 10**9
"""Integer steps per unit of -ln(1 - loss). Sums of floats depend on their order, and hosts that sum
the same path in opposite directions must agree on what is equal."""
REFERENCE_BPS = 10**12
"""Bit/s that count 1 with metric ``bandwidth`` (RFC 9843: the reference bandwidth)."""


def bandwidth_of(link: Link) -> int:
    """Bits per second for comparison: no limit counts as UNLIMITED."""
    return link.bandwidth_bps or UNLIMITED


def loss_weight(link: Link) -> int:
    """-ln(1 - loss): adding these multiplies the probabilities of getting through."""
    return round(-math.log1p(-link.loss) * LOSS_UNITS) if link.loss else 0


_WEIGHTS: dict[str, Callable[[Link], int]] = {
    "cost": lambda link: link.cost,
    # Sums of the first part, then of costs, in one integer: the cost breaks ties.
    "latency": lambda link: (link.latency_us << COST_BITS) + link.cost,
    "loss": lambda link: (loss_weight(link) << COST_BITS) + link.cost,
    "hops": lambda link: (1 << COST_BITS) + link.cost,
    "bandwidth": lambda link: (
        (max(1, REFERENCE_BPS // bandwidth_of(link)) << COST_BITS) + link.cost
    ),
}


def link_exclusion(definition: Definition, link: Link) -> str:
    """The constraint that keeps a link out, in words; empty when none does.

    The order is that of RFC 9350 section 13, with RFC 9843's limits behind.
    """
    d, has = definition, set(link.affinities)
    if shut := has & set(d.exclude_any):
        return f"exclude_any: the link has affinity {', '.join(sorted(shut))}"
    if d.include_any and not has & set(d.include_any):
        return f"include_any: the link has none of {', '.join(d.include_any)}"
    if lacking := set(d.include_all) - has:
        return f"include_all: the link lacks {', '.join(sorted(lacking))}"
    for name, broken, unit, actual, limit in (
        ("minimum_bandwidth", bandwidth_of(link) < d.minimum_bandwidth_bps, " bit/s",
         link.bandwidth_bps, d.minimum_bandwidth_bps),
        ("maximum_latency", 0 < d.maximum_latency_us < link.latency_us, " µs",
         link.latency_us, d.maximum_latency_us),
        ("maximum_loss", 0 < d.maximum_loss < link.loss, "", link.loss, d.maximum_loss),
    ):  # fmt: skip
        if broken:
            return f"{name}: {limit:g}{unit}, the link has {actual:g}{unit}"
    return ""


def node_exclusion(definition: Definition, node: Node) -> str:
    """The constraint that keeps a host from carrying for others; empty when none does."""
    if node.id in definition.exclude_hosts:
        return "exclude_hosts: names this host"
    if shut := set(node.tags) & set(definition.exclude_tags):
        return f"exclude_tags: the host has tag {', '.join(sorted(shut))}"
    if node.region and node.region in definition.exclude_regions:
        return f"exclude_regions: the host is in {node.region}"
    return ""


class View:
    """See the module docstring. Nodes are given by their index in the topology's graph."""

    def __init__(
        self,
        topology: Topology,
        root: int,
        metric: str,
        shut: frozenset[int] = frozenset(),
        idle: frozenset[int] = frozenset(),
    ) -> None:
        """``shut``: numbers of links that do not count; ``idle``: nodes that carry nothing for
        others."""
        self.topology = topology
        self.graph = topology.graph
        self.root = root
        self.metric = metric
        self.shut = shut
        self.idle = idle
        self.weights = [_WEIGHTS[metric](link) for link in topology.links]
        weights = self.weights
        self.arcs: list[list[Arc]] = [
            [(far, weights[number]) for far, number in each if number not in shut]
            for each in self.graph.ends
        ]
        self._idle_arcs = {at: self.arcs[at] for at in idle}
        for at in idle:
            self.arcs[at] = []
        self._trees: dict[int, Tree] = {}
        self._without: dict[int | frozenset[int], Tree] = {}

    def meaning(self, weight: int) -> int:
        """A sum of weights in the metric's own unit."""
        return weight if self.metric == "cost" else weight >> COST_BITS

    @cached_property
    def first(self) -> list[First]:
        """The root's links that count."""
        return [
            (far, self.weights[number], position)
            for position, (far, number) in enumerate(self.graph.ends[self.root])
            if number not in self.shut
        ]

    def first_of(self, root: int) -> list[First]:
        """The links of any node that count, for a search from there; positions are all 0."""
        arcs = self._idle_arcs.get(root)
        return [(far, w, 0) for far, w in (self.arcs[root] if arcs is None else arcs)]

    @cached_property
    def tree(self) -> Tree:
        """Best paths from the root."""
        return shortest_paths(self.arcs, self.root, self.first)

    def tree_of(self, root: int) -> Tree:
        """Best paths from another node (its first hops mean nothing)."""
        found = self._trees.get(root)
        if found is None:
            found = self._trees[root] = shortest_paths(self.arcs, root, self.first_of(root))
        return found

    def without_node(self, node: int) -> Tree:
        """Best paths from the root when ``node`` is gone."""
        found = self._without.get(node)
        if found is None:
            found = shortest_paths(self.arcs, self.root, self.first, node)
            self._without[node] = found
        return found

    def without_links(self, positions: Collection[int]) -> Tree:
        """Best paths from the root when these of its links are gone."""
        key = frozenset(positions)
        found = self._without.get(key)
        if found is None:
            left = [each for each in self.first if each[2] not in key]
            found = self._without[key] = shortest_paths(self.arcs, self.root, left)
        return found

    @cached_property
    def best(self) -> dict[tuple[int, int], tuple[int, int]]:
        """(host, neighbour) → (weight, number) of the best link that counts between them."""
        found: dict[tuple[int, int], tuple[int, int]] = {}
        for here, ends in enumerate(self.graph.ends):
            for far, number in ends:
                link = (self.weights[number], number)
                if number not in self.shut and link < found.get((here, far), (FAR, 0)):
                    found[here, far] = link
        return found

    def path_weight(self, path: Sequence[int]) -> int:
        """The sum of weights along a path from the root."""
        best, total, here = self.best, 0, self.root
        for there in path:
            total += best[here, there][0]
            here = there
        return total

    def position_to(self, neighbour: int, avoid: Collection[int] = ()) -> int:
        """The best of the root's links to a neighbour."""
        return min((w, at) for far, w, at in self.first if far == neighbour and at not in avoid)[1]

    def at_least(self, bandwidth_bps: int) -> View:
        """The same with wide enough links only."""
        narrow = {
            number
            for number, link in enumerate(self.topology.links)
            if bandwidth_of(link) < bandwidth_bps
        }
        return View(self.topology, self.root, self.metric, self.shut | narrow, self.idle)


class Atlas:
    """The views of one node, shared by protocols that see the same."""

    def __init__(self, topology: Topology, node: int) -> None:
        """Raises NameUnknown when the topology lacks the node."""
        self.topology = topology
        self.node = topology.node(node).id
        self._views: dict[tuple[object, ...], View] = {}

    def view(self, definition: Definition, metric: str = "") -> View:
        """The view for ``definition``, by its own metric or by another one."""
        topology = self.topology
        metric = metric or definition.metric
        shut = frozenset(
            number
            for number, link in enumerate(topology.links if definition.chooses_links else ())
            if link_exclusion(definition, link)
        )
        idle = frozenset(
            topology.graph.index[node.id]
            for node in (topology.nodes if definition.chooses_nodes else ())
            if node_exclusion(definition, node)
        )
        key = (metric, shut, idle)
        found = self._views.get(key)
        if found is None:
            root = topology.graph.index[self.node]
            found = self._views[key] = View(topology, root, metric, shut, idle)
        return found
