"""A topology as one protocol sees it from one node: which links count, and for how much.

Owns: View: the searches a node's rows need, each done once, and done again after a change only
where something changed. May import: routing. Stays on the host.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from functools import cached_property

from fabric.routing.commons import Search, Shared
from fabric.routing.constraints import COST_BITS, WEIGHTS, bandwidth_of
from fabric.routing.graph import FAR, Arc, Tree
from fabric.routing.incremental import Changes, changes, differences, touched, updated, without
from fabric.routing.spf import First, distances, shortest_paths
from fabric.routing.topology import Link, Topology

FEW_STAY = 0.75
"""Where more of the rows would go, looking for those that stay costs more than it spares."""


class View:
    """See the module docstring. Nodes are given by their index in the topology's graph."""

    def __init__(
        self,
        topology: Topology,
        root: int,
        metric: str,
        shut: frozenset[int] = frozenset(),
        idle: frozenset[int] = frozenset(),
        places: Sequence[int] | None = None,
        earlier: View | None = None,
        shared: Shared | None = None,
    ) -> None:
        """``shut``: numbers of links that do not count; ``idle``: nodes that carry nothing for
        others; ``places``: positions of the root's links, ascending, where some between are gone;
        ``earlier``: the same view of the topology before, whose searches are taken over;
        ``shared``: what other hosts have found that see the topology the same."""
        self.topology = topology
        self.graph = topology.graph
        self.root = root
        self.metric = metric
        self.shut = shut
        self.idle = idle
        self.places = places if places is not None else range(len(self.graph.ends[root]))
        self.around: list[list[Arc]]
        """Every node's links that count."""
        self.arcs: list[list[Arc]]
        """The same, as far as others may use them."""
        self._trees: dict[Search, Tree] = {}
        self._from: dict[int, list[int]] = {}
        self._apart: dict[int, list[int]] = {}
        # Trees once more, by what callers ask ten thousand times: a Search costs more than that.
        self._without_node: dict[int, Tree] = {}
        self._without_links: dict[tuple[int, ...], Tree] = {}
        self.gone: set[tuple[int, int]] = set()
        """(from, to) of arcs that the view before had, or had with another weight."""
        self.token = object()
        self._follows: object = None
        self._moved: set[int] = set()
        self.lost: frozenset[int] = frozenset()
        """Positions of links that counted, or counted for less or more, in the view before: rows
        that name them are others."""
        self.came: frozenset[int] = frozenset()
        """Positions of those that count now, and did not, or not for the same. They may be new
        alternates where no path is another one."""
        self.near_moved = False
        """Whether the root and its neighbours have other distances to each other than in the view
        before."""
        self._shared = shared
        if shared is not None:
            self.weights = shared.weights
            self.around, self.arcs = shared.around, shared.arcs
        elif earlier is not None and earlier.graph.ids == self.graph.ids and earlier.idle == idle:
            ends = touched_nodes(earlier, self)
            self.around, self.arcs = list(earlier.around), list(earlier.arcs)
            for at in ends:
                self.around[at] = self._links_of(at)
                self.arcs[at] = [] if at in idle else self.around[at]
            self._follow(earlier, ends)
            if "best" in earlier.__dict__ and earlier.graph.ends == self.graph.ends:
                self.best = dict(earlier.best)
                self._find_best(self.best, ends)
        else:
            self.around = [self._links_of(at) for at in range(len(self.graph.ids))]
            self.arcs = [[] if at in idle else arcs for at, arcs in enumerate(self.around)]

    def _links_of(self, at: int) -> list[Arc]:
        weights, shut = self.weights, self.shut
        return [(far, weights[number]) for far, number in self.graph.ends[at] if number not in shut]

    @cached_property
    def weights(self) -> list[int]:
        """By link number."""
        weigh = WEIGHTS[self.metric]
        return [weigh(link) for link in self.topology.links]

    def meaning(self, weight: int) -> int:
        """A sum of weights in the metric's own unit."""
        return weight >> self._below

    @cached_property
    def _below(self) -> int:
        """Bits that break ties by cost."""
        return 0 if self.metric == "cost" else COST_BITS

    @cached_property
    def first(self) -> list[First]:
        """The root's links that count."""
        return [
            (far, self.weights[number], position)
            for position, (far, number) in zip(self.places, self.graph.ends[self.root], strict=True)
            if number not in self.shut
        ]

    def link_at(self, position: int) -> int:
        """The number of one of the root's links."""
        return self.graph.ends[self.root][self.places.index(position)][1]

    @cached_property
    def tree(self) -> Tree:
        """Best paths from the root."""
        return self._find(Search(self.root))

    def distances_from(self, node: int) -> list[int]:
        """Least sums from another node, by node; not to be changed."""
        found = self._from.get(node)
        if found is None:
            found = self._from[node] = self.measured(node)
        return found

    def from_new_neighbours(self) -> list[list[int]]:
        """The same from each that is behind a link that came."""
        return [
            self.distances_from(far) for far, _, position in self.first if position in self.came
        ]

    def distances_apart(self, node: int) -> list[int]:
        """The same by paths that avoid the view's root."""
        found = self._apart.get(node)
        if found is None:
            found = self._apart[node] = self.measured(node, self.root)
        return found

    def measured(self, node: int, banned: int = -1) -> list[int]:
        """The same by paths that avoid any one node, or none: computed every time."""
        if self._shared is not None:
            return self._shared.tree(Search(node, banned)).distance
        known, there = None, self.tree.distance[node]
        if banned < 0 and there < FAR and self.root not in self.idle:
            # By way of the root. Most nodes are not nearer from a neighbour.
            known = [there + rest if rest < FAR else FAR for rest in self.tree.distance]
        return distances(self.arcs, node, self.around[node], known, banned)

    def without_node(self, node: int) -> Tree:
        """Best paths from the root when ``node`` is gone."""
        found = self._without_node.get(node)
        if found is None:
            found = self._without_node[node] = self._find(Search(self.root, node))
        return found

    def without_links(self, positions: Collection[int]) -> Tree:
        """Best paths from the root when these of its links are gone."""
        key = tuple(positions)
        found = self._without_links.get(key)
        if found is None:
            cut = Search(self.root, cut=frozenset(positions))
            found = self._without_links[key] = self._find(cut)
        return found

    def _find(self, search: Search) -> Tree:
        if self._shared is not None:
            return self._shared.tree(search)
        found = self._trees.get(search)
        if found is None:
            found = self._trees[search] = self._searched(search)
        return found

    def _searched(self, search: Search) -> Tree:
        _, banned, cut = search
        first = self.first_of(self.root, cut)
        if banned >= 0 or cut:
            return without(self.tree, self, self.root, first, banned, cut)
        return shortest_paths(self.arcs, self.root, first)

    def first_of(self, node: int, cut: Collection[int] = ()) -> list[First]:
        """The links of any node that count, for a search from there; positions are those of the
        view's root, and all 0 elsewhere. ``cut``: positions of the root's links to leave out."""
        if node == self.root:
            return [each for each in self.first if each[2] not in cut] if cut else self.first
        return [(far, w, 0) for far, w in self.around[node]]

    def moved_since(self, earlier: View) -> set[int] | None:
        """Nodes whose best paths, in any search, are other ones than in an earlier view; None: it
        is not the view this one followed."""
        return self._moved if self._follows is earlier.token else None

    def same_as(self, earlier: View) -> bool:
        """Whether the same links count for the same."""
        return (
            self.graph.ids == earlier.graph.ids
            and self.first == earlier.first
            and self.around == earlier.around
            and self.idle == earlier.idle
        )

    def _follow(self, earlier: View, ends: set[int]) -> None:
        """Bring the searches of an earlier view up to date. ``ends``: of links that changed."""
        changed = changes(earlier.arcs, self, ends)
        self.gone = {(here, there) for here, there, _ in changed.gone}
        had, have = set(earlier.first), set(self.first)
        self.lost = frozenset(at for _, _, at in had - have)
        self.came = frozenset(at for _, _, at in have - had)
        # If nothing else changed, a best path that began with no lost link is one still, and none
        # is new that does not begin with one that came; also around failures.
        only_own = had != have and all(
            self.root in (here, there) for here, there, _ in (*changed.gone, *changed.come)
        )
        rows_stay = only_own or not self.came  # else all are other ones
        near, before = {far for far, _, _ in have}, {far for far, _, _ in had}
        left = before - near
        for search, tree in earlier._trees.items():
            _, banned, cut = search
            if banned in left or cut & self.lost:
                continue  # only rows that name a lost link looked at it
            update = None
            if had == have or (search == Search(self.root) and not self.came):
                was, first = (view.first_of(self.root, cut) for view in (earlier, self))
                update = updated(tree, changed, self.root, was, first, banned)
            if update is not None:
                fresh, moved = update
            elif rows_stay:
                fresh = self._searched(search)
                rest = only_own and search != Search(self.root)
                moved = _over(fresh, self.came) if rest else differences(tree, fresh)
            else:
                continue  # it is searched when somebody wants it
            self._trees[search] = fresh
            self._moved |= moved
            # Where hardly a row would stay, nothing more need be compared.
            rows_stay = rows_stay and len(self._moved) < FEW_STAY * len(fresh.distance)
        self._follow_distances(earlier, changed, near & before, left)
        if rows_stay:
            self._follows = earlier.token

    def _follow_distances(
        self, earlier: View, changed: Changes, near: set[int], left: set[int]
    ) -> None:
        """The same for what was seen from elsewhere, but from those that are no neighbours now."""
        for kept, mine, banned in (
            (earlier._from, self._from, -1),
            (earlier._apart, self._apart, self.root),
        ):
            for node in kept.keys() - left:
                was, now = earlier.first_of(node), self.first_of(node)
                mine[node] = before = kept[node]
                if touched(before, changed, node, was, now, banned):
                    mine[node] = after = self.measured(node, banned)
                    self._moved.update(at for at, far in enumerate(before) if far != after[at])
                    if banned < 0:
                        self.near_moved |= any(before[n] != after[n] for n in (self.root, *near))

    @cached_property
    def best(self) -> dict[tuple[int, int], tuple[int, int]]:
        """(host, neighbour) → (weight, number) of the best link that counts between them."""
        found: dict[tuple[int, int], tuple[int, int]] = {}
        self._find_best(found, range(len(self.graph.ends)))
        return found

    def _find_best(
        self, found: dict[tuple[int, int], tuple[int, int]], nodes: Iterable[int]
    ) -> None:
        weights, shut = self.weights, self.shut
        for here in nodes:
            ends = self.graph.ends[here]
            for far, _ in ends:
                found.pop((here, far), None)
            for far, number in ends:
                link = (weights[number], number)
                if number not in shut and link < found.get((here, far), (FAR, 0)):
                    found[here, far] = link

    def path_weight(self, path: Sequence[int]) -> int:
        """The sum of weights along a path from the root."""
        best, total, here = self.best, 0, self.root
        for there in path:
            total += best[here, there][0]
            here = there
        return total

    def position_to(self, neighbour: int, avoid: Collection[int] = ()) -> int:
        """The best of the root's links to a neighbour."""
        if not avoid:
            return self._position_to[neighbour]
        return min((w, at) for far, w, at in self.first if far == neighbour and at not in avoid)[1]

    @cached_property
    def _position_to(self) -> dict[int, int]:
        worst_first = sorted(((w, at, far) for far, w, at in self.first), reverse=True)
        return {far: at for _, at, far in worst_first}

    def at_least(self, bandwidth_bps: int, earlier: View | None = None) -> View:
        """The same with wide enough links only; this one itself where all are."""
        narrow = {
            number
            for number, link in enumerate(self.topology.links)
            if bandwidth_of(link) < bandwidth_bps
        }
        if narrow <= self.shut:
            return self
        shut = self.shut | narrow
        return View(self.topology, self.root, self.metric, shut, self.idle, self.places, earlier)


def touched_nodes(earlier: View, later: View) -> set[int]:
    """Ends of links that count in one view and not, or not as the same object, in the other."""
    one, other = _counting(earlier), _counting(later)
    same = set(map(id, one)).intersection(map(id, other))
    index = later.graph.index
    differ = [link for link in (*one, *other) if id(link) not in same]
    return {index[end] for link in differ for end in (link.a, link.b)}


def _over(tree: Tree, positions: Collection[int]) -> set[int]:
    """Nodes with a best path over any of these links of the root."""
    bits = sum(1 << position for position in positions)
    return {at for at, by in enumerate(tree.hops) if by & bits}


def _counting(view: View) -> Sequence[Link]:
    links, shut = view.topology.links, view.shut
    return [link for number, link in enumerate(links) if number not in shut] if shut else links
