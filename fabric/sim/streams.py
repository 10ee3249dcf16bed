"""Constant streams of packets, and what became of them.

Owns: Stream, its packets, and the worth of paths. May import: routing, sim.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

from fabric.routing.atlas import Atlas
from fabric.routing.constraints import COST_BITS, WEIGHTS, bandwidth_of
from fabric.routing.definitions import Definition
from fabric.routing.graph import FAR
from fabric.routing.topology import Link
from fabric.routing.widest import WidestRows
from fabric.sim.hosts import Ends
from fabric.sim.maps import Map

_INNER = struct.Struct(">28sQ")
_HEAD = bytes([0x45, 0, 0, 36, 0, 0, 0, 0, 64, 17]) + bytes(18)
"""IPv4 and UDP headers, as far as an engine looks at them."""

Path = tuple[int, ...]
"""Positions of links in the whole topology."""


def packet(sequence: int) -> bytes:
    """An application's packet."""
    return _INNER.pack(_HEAD, sequence)


def sequence_of(inner: bytes) -> int:
    """Inverse of :func:`packet`."""
    return int(_INNER.unpack(inner)[1])


@dataclass
class Stream:
    """One direction between two hosts by one protocol."""

    ends: Ends
    definition: Definition
    sent_us: list[int] = field(default_factory=list)
    """When each packet was sent, by its number."""
    arrived: dict[int, Path] = field(default_factory=dict)
    """Number → the path of the first copy that came to the destination."""
    delivered: dict[int, int] = field(default_factory=dict)
    """Number → when the application got it, µs."""
    loops: int = 0
    """Packets that ended because they went in a circle."""
    out_of_reach: bool = False
    """For some time there was no way by the protocol's rules."""

    @property
    def reached(self) -> bool:
        """Whether the first packet arrived, when nothing had failed: a way may be longer than the
        hop limit allows."""
        return 0 in self.delivered

    @property
    def restored(self) -> bool:
        """Whether the newest packet arrived."""
        return len(self.sent_us) - 1 in self.delivered

    @property
    def lost(self) -> int:
        """Packets that never were delivered."""
        return len(self.sent_us) - len(self.delivered)


def worth(definition: Definition, links: Sequence[Link], path: Path) -> int:
    """What a path is worth in the protocol's metric: a sum, or the bottleneck."""
    if definition.calculation == "widest":
        return min((bandwidth_of(links[at]) for at in path), default=0)
    weigh = WEIGHTS[definition.metric]
    return _meaning(definition, sum(weigh(links[at]) for at in path))


def optimum(definition: Definition, known: Map, source: int, destination: int) -> int | None:
    """The best worth over links and hosts that the protocol may use; None: there is no way."""
    atlas = Atlas(known.topology, source, commons=known.commons)
    view = atlas.view(definition)
    goal = known.topology.graph.index[destination]
    if definition.calculation == "widest":
        return WidestRows(view).width(goal) or None
    distance = view.tree.distance[goal]
    return None if distance >= FAR else _meaning(definition, distance)


def stretch(definition: Definition, actual: int, best: int) -> float:
    """How much worse a path is than the best one; 1: it is as good."""
    if definition.calculation == "widest":
        actual, best = best, actual
    return actual / best if best else 1.0


def _meaning(definition: Definition, weight: int) -> int:
    return weight if definition.metric == "cost" else weight >> COST_BITS
