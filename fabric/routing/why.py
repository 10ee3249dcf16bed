"""Why a table entry says what it says: every neighbour, what the way through it is worth, and what
excluded it.

Owns: Why, Candidate and their making. May import: errors, routing. Pure; stays on the host.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fabric.routing.atlas import Atlas
from fabric.routing.bounds import Bounds, best_within, path_amounts
from fabric.routing.constraints import bandwidth_of, link_exclusion, node_exclusion
from fabric.routing.definitions import METRICS, Definition
from fabric.routing.disjoint import without_common_host
from fabric.routing.graph import FAR
from fabric.routing.hopwise import LOAD_STEPS
from fabric.routing.protocols import compute_table
from fabric.routing.spf import UNLIMITED
from fabric.routing.table import ForwardingTable, Path
from fabric.routing.topology import Neighbour, Topology
from fabric.routing.view import View
from fabric.routing.widest import WidestRows
from fabric.wire.packet import MAX_PATH


@dataclass(frozen=True)
class Candidate:
    """One link of the host as a way to the destination."""

    node: int
    name: str
    address: str
    interface: int
    metric: int | None
    """What the best way through it is worth; None: there is none, or it may not be used."""
    excluded: str
    """Why the entry does not use it, naming the constraint; empty for those it uses."""


@dataclass(frozen=True)
class Why:
    """One entry of a host's table, explained."""

    node: int
    destination: int
    protocol: Definition
    unit: str
    """What the metric counts."""
    metric: int | None
    candidates: tuple[Candidate, ...]
    paths: tuple[Path, ...]
    """Explicit ones, where the protocol has them."""
    alternate: Path | None
    excluded: str
    """Why there is no entry at all; empty when there is one."""


def why(topology: Topology, node: int, destination: int, protocol: int) -> Why:
    """Explain the entry (destination, protocol) of a host.

    Raises NameUnknown for nodes and protocols that do not exist.
    """
    topology.node(destination)
    definition = topology.protocol(protocol)
    table = compute_table(topology, node, 0, {protocol: definition})
    view = Atlas(topology, node).view(definition)
    goal = topology.graph.index[destination]
    reason = _Reasons(topology, definition, view, goal, table)
    candidates = tuple(
        reason.candidate(position, end) for position, end in enumerate(topology.neighbours(node))
    )
    entry = table.lookup(destination, protocol)
    paths = table.paths(destination, protocol) if not definition.plain else ()
    return Why(
        node,
        destination,
        definition,
        METRICS[definition.metric] if definition.calculation != "widest" else _WIDEST_UNIT,
        table.metric(destination, protocol),
        candidates,
        paths,
        table.alternate(destination, protocol),
        "" if entry else reason.no_entry(),
    )


_WIDEST_UNIT = "bottleneck bandwidth, bit/s (0: unlimited)"


class _Reasons:
    """Finds the words for one entry."""

    def __init__(
        self,
        topology: Topology,
        definition: Definition,
        view: View,
        goal: int,
        table: ForwardingTable,
    ) -> None:
        self.topology = topology
        self.definition = definition
        self.view = view
        self.goal = goal
        self._used = {hop.interface for hop in table.lookup(view.graph.ids[goal], definition.id)}
        self._load = {view.graph.index[node.id]: node.load for node in topology.nodes}
        used = [end for end in topology.neighbours(table.node) if end.interface in self._used]
        steps = [self._step(view.graph.index[end.node]) for end in used]
        self._least_step = min(steps, default=0)
        self._widest = WidestRows(view) if definition.calculation == "widest" else None

    def candidate(self, position: int, end: Neighbour) -> Candidate:
        """One of the host's links."""
        at = self.view.graph.index[end.node]
        metric, excluded = None, link_exclusion(self.definition, end.link)
        if not excluded and at != self.goal:
            excluded = node_exclusion(self.definition, self.topology.node(end.node))
        if not excluded:
            metric, excluded = self._through(position, at)
        if end.interface in self._used:
            excluded = ""
        name = self.topology.name_of(end.node)
        return Candidate(end.node, name, end.address, end.interface, metric, excluded)

    def _through(self, position: int, at: int) -> tuple[int | None, str]:
        """(metric of the way through a neighbour, why it is not taken)."""
        if self._widest is not None:
            return self._by_width(self._widest, position, at)
        view = self.view
        weight = next(w for _, w, here in view.first if here == position)
        left = view.distances_from(at)[self.goal]
        if left >= FAR:
            return None, "unreachable: the destination cannot be reached from there"
        metric, best = view.meaning(weight + left), view.tree.distance[self.goal]
        longer = f"longer: {metric}, the best is {view.meaning(best)}"
        if left >= view.distances_from(at)[view.root] + best:
            longer = "comes back: its own best way leads through this host"
            if self.definition.calculation != "deflect":
                return metric, longer
        words: dict[str, Callable[[], str]] = {
            "deflect": lambda: self._deflection(at, left, best, longer),
            "bounded": lambda: self._bound(position, longer),
            "disjoint": lambda: "not on the pair that shares least and costs least together",
            "disperse": lambda: "not on the disjoint paths that cost least together",
        }
        return metric, words.get(self.definition.calculation, lambda: longer)()

    def _deflection(self, at: int, left: int, best: int, longer: str) -> str:
        if left >= best:
            meaning = self.view.meaning
            return f"not nearer: {meaning(left)} from there, {meaning(best)} from here"
        if self._step(at) > self._least_step:
            return f"busier: its load is {self._load[at]:.0%}"
        return longer

    def _step(self, at: int) -> int:
        return int(self._load[at] * LOAD_STEPS) if at != self.goal else 0

    def _bound(self, position: int, longer: str) -> str:
        bounds = Bounds(self.definition)
        others = {here for _, _, here in self.view.first if here != position}
        if bounds.none or best_within(self.view, self.goal, bounds, -1, others):
            return longer
        path = self.view.without_links(others).path(self.goal)
        broken = bounds.exceeded(path_amounts(self.view, path, others)) if path else ""
        return broken or "bounds: no way through there is within all of them"

    def _by_width(self, rows: WidestRows, position: int, at: int) -> tuple[int | None, str]:
        number = self.view.link_at(position)
        link = bandwidth_of(self.topology.links[number])
        width, best = min(link, rows.width_from(at, self.goal)), rows.width(self.goal)
        if not width:
            return None, "unreachable: the destination cannot be reached from there"
        told = 0 if width == UNLIMITED else width
        if width < best:
            return told, f"narrower: {width} bit/s, the best is {_unlimited(best)}"
        return told, f"longer: as wide, but with a larger sum of {self.definition.metric}"

    def no_entry(self) -> str:
        """Why the destination has no entry."""
        view, definition = self.view, self.definition
        if self.goal == view.root:
            return "the host itself"
        if view.tree.distance[self.goal] >= FAR:
            return self._out_of_reach()
        if definition.calculation == "disperse":
            found = len(without_common_host(view, self.goal, definition.paths))
            return f"share: {definition.least_paths} disjoint paths are needed, there are {found}"
        if definition.calculation == "bounded":
            broken = Bounds(definition).exceeded(path_amounts(view, view.tree.path(self.goal)))
            return broken or f"path: none within bounds has at most {MAX_PATH} hosts"
        kind = "via: no path passes those hosts once each" if definition.via else "path: too long"
        return f"{kind}, within {MAX_PATH} hosts"

    def _out_of_reach(self) -> str:
        free = Atlas(self.topology, self.view.graph.ids[self.view.root]).view(Definition(0, ""))
        if free.tree.distance[self.goal] >= FAR:
            return "unreachable: no links lead there"
        return "constraints: no way is left over links and hosts that may be used"


def _unlimited(width: int) -> str:
    return "unlimited" if width == UNLIMITED else f"{width}"
