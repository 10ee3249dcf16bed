"""Paths within bounds on latency, jitter and loss.

Owns: Bounds and the exact search. May import: routing.{definitions,graph,view}, wire. Stays on the
host.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Collection, Sequence
from itertools import pairwise
from operator import le

from fabric.routing.constraints import LOSS_UNITS, loss_weight
from fabric.routing.definitions import Definition
from fabric.routing.graph import FAR
from fabric.routing.spf import shortest_paths
from fabric.routing.topology import Link
from fabric.routing.view import View
from fabric.wire.packet import MAX_PATH

MAX_LABELS = 50_000
"""Partial paths looked at for one destination, a second's work. The problem is NP-hard; real
networks take some hundreds. A search that ends here found no path it could vouch for."""

Amounts = tuple[int, int, int]
"""Latency µs, jitter µs, loss in 1/LOSS_UNITS of -ln(1 - loss): all of them add up."""

Label = tuple[int, int, int, int]
"""What a partial path adds up to: weight, then its amounts."""


def amounts(link: Link) -> Amounts:
    """What a link adds to a path."""
    return link.latency_us, link.jitter_us, loss_weight(link)


class Bounds:
    """The bounds of one definition; FAR where there is none."""

    def __init__(self, definition: Definition) -> None:
        loss = definition.bound_loss
        self.limits: Amounts = (
            definition.bound_latency_us or FAR,
            definition.bound_jitter_us or FAR,
            round(-math.log1p(-loss) * LOSS_UNITS) if loss else FAR,
        )

    @property
    def none(self) -> bool:
        """Whether there is nothing to keep."""
        return self.limits == (FAR, FAR, FAR)

    def exceeded(self, sums: Amounts) -> str:
        """The first bound that is broken, in words; empty when none is."""
        for name, unit, total, limit in zip(_NAMES, _UNITS, sums, self.limits, strict=True):
            if total > limit:
                return f"bound_{name}: {total}{unit} of at most {limit}{unit}"
        return ""

    def hold(self, view: View, path: Sequence[int], avoid: Collection[int] = ()) -> bool:
        """Whether a path from the root is within all bounds."""
        return self.none or not self.exceeded(path_amounts(view, path, avoid))


_NAMES, _UNITS = ("latency", "jitter", "loss"), (" µs", " µs", "e-9")


def path_amounts(view: View, path: Sequence[int], avoid: Collection[int] = ()) -> Amounts:
    """What a path from the root adds up to, by the best link between each two hosts.

    ``avoid``: positions of the root's links not to be used.
    """
    numbers = [view.link_at(view.position_to(path[0], avoid))]
    numbers += [view.best[hop][1] for hop in pairwise(path)]
    each = [amounts(view.topology.links[number]) for number in numbers]
    return sum(a for a, _, _ in each), sum(b for _, b, _ in each), sum(c for _, _, c in each)


def best_within(
    view: View, goal: int, bounds: Bounds, banned: int, avoid: Collection[int]
) -> list[int]:
    """The path with the least sum of the metric among those within bounds; empty: none.

    Label setting, best first: a partial path is dropped when another one to the same host is no
    worse in anything (it is dominated), or when even the best rest of the way would break a bound.
    """
    rest = [
        _least(view, goal, which) if limit < FAR else [0] * len(view.arcs)
        for which, limit in enumerate(bounds.limits)
    ]
    ahead = view.measured(goal)
    none: Label = (0, 0, 0, 0)
    kept = {view.root: [none]}
    heap: list[tuple[int, tuple[int, ...], Label]] = [(ahead[view.root], (view.root,), none)]
    for _ in range(MAX_LABELS):
        if not heap:
            break
        _, path, so_far = heapq.heappop(heap)
        if path[-1] == goal:
            return list(path[1:])
        for there, number in _links_on(view, path, banned, avoid):
            latency, jitter, loss = amounts(view.topology.links[number])
            label = (
                so_far[0] + view.weights[number],
                so_far[1] + latency,
                so_far[2] + jitter,
                so_far[3] + loss,
            )
            if ahead[there] < FAR and all(
                total + least[there] <= limit
                for total, least, limit in zip(label[1:], rest, bounds.limits, strict=True)
            ):
                others = kept.setdefault(there, [])
                if not any(all(map(le, other, label)) for other in others):
                    others.append(label)
                    heapq.heappush(heap, (label[0] + ahead[there], (*path, there), label))
    return []


def _links_on(
    view: View, path: tuple[int, ...], banned: int, avoid: Collection[int]
) -> list[tuple[int, int]]:
    """(neighbour, number of the best link there) from the end of a partial path."""
    here, at_root = path[-1], len(path) == 1
    if len(path) > MAX_PATH or (here in view.idle and not at_root):
        return []
    closed = {view.link_at(position) for position in avoid} if at_root else ()
    best: dict[int, tuple[int, int]] = {}
    for far, number in view.graph.ends[here]:
        shut = number in view.shut or far == banned or number in closed
        if not shut and (far not in best or view.weights[number] < best[far][0]):
            best[far] = (view.weights[number], number)
    return [(far, number) for far, (_, number) in best.items()]


def _least(view: View, goal: int, which: int) -> list[int]:
    """The least of one amount from every host to ``goal``."""
    own = [amounts(link)[which] for link in view.topology.links]
    arcs = [
        [(far, own[number]) for far, number in each if number not in view.shut]
        for each in view.graph.ends
    ]
    first = [(far, w, 0) for far, w in arcs[goal]]
    for at in view.idle:
        arcs[at] = []
    return shortest_paths(arcs, goal, first).distance
