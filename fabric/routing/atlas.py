"""The views of one node, and those of the topology before.

Owns: Atlas. May import: routing.{commons,constraints,definitions,topology,view}. Stays on the host.
"""

from __future__ import annotations

from collections.abc import Sequence

from fabric.routing.commons import Commons
from fabric.routing.constraints import link_exclusion, node_exclusion
from fabric.routing.definitions import Definition
from fabric.routing.topology import Topology
from fabric.routing.view import View


class Atlas:
    """The views of one node, shared by protocols that see the same."""

    def __init__(
        self,
        topology: Topology,
        node: int,
        places: Sequence[int] | None = None,
        earlier: Atlas | None = None,
        commons: Commons | None = None,
    ) -> None:
        """``places``: see View. ``earlier``: of the same node and with the same places, whose
        searches are worth bringing up to date. ``commons``: of the same topology, where there are
        other hosts to share with; it takes ``earlier``'s place.

        Raises NameUnknown when the topology lacks the node.
        """
        self.topology = topology
        self.node = topology.node(node).id
        self._places = places
        self._views: dict[tuple[object, ...], View] = {}
        self._by_words: dict[tuple[object, ...], View] = {}
        """By what definitions say, which stays when link numbers change."""
        self._commons = commons
        self._earlier = {} if earlier is None else earlier._by_words

    def forget(self) -> None:
        """Let go of the topology before: every view has what it wants of it."""
        self._earlier = {}

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
            words = (metric, *definition.constraints)
            earlier = self._earlier.get(words)
            shared = self._commons.shared(key, words) if self._commons is not None else None
            found = View(topology, root, metric, shut, idle, self._places, earlier, shared)
            self._views[key] = self._by_words[words] = found
        return found
