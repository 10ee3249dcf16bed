"""What hosts may believe of the network: the whole, without the links they know to be down.

Owns: Maps. May import: routing.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from weakref import WeakValueDictionary

from fabric.routing.commons import Commons
from fabric.routing.topology import Topology

KEPT = 2
"""Maps remembered that no host uses. A map of ten thousand hosts with its searches takes hundreds
of MB."""


@dataclass(frozen=True)
class Map:
    """A topology as hosts know it at some time."""

    version: int
    """Of the tables computed from it; ascends with the order in which maps first appear."""
    topology: Topology
    commons: Commons


class Maps:
    """One map per set of links that are down, for all hosts that know this set."""

    def __init__(self, topology: Topology) -> None:
        self.whole = Map(1, topology, Commons(topology))
        self._versions = {frozenset[int](): 1}
        self._found: WeakValueDictionary[frozenset[int], Map] = WeakValueDictionary()
        self._newest: deque[Map] = deque(maxlen=KEPT)

    def without(self, down: frozenset[int]) -> Map:
        """``down``: positions of links in the whole topology."""
        if not down:
            return self.whole
        found = self._found.get(down)
        if found is None:
            version = self._versions.setdefault(down, len(self._versions) + 1)
            topology = self.whole.topology.without(down)
            # Always from the whole map: few links differ, whatever happened in between.
            found = Map(version, topology, Commons(topology, self.whole.commons))
            self._found[down] = found
            self._newest.append(found)
        return found
