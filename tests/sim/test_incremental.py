"""A table brought up to date is the table made anew, to the last tie."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest

from fabric.routing.definitions import PROTOCOLS
from fabric.routing.incremental import changes, updated
from fabric.routing.needs import BOUNDED
from fabric.routing.protocols import compute_table
from fabric.routing.spf import shortest_paths
from fabric.routing.topology import Link, Topology
from fabric.routing.view import View
from tests.sim.graphs import BANDWIDTHS, COLOURS, LOSSES, topology


def disturbed(graph: Topology, rng: random.Random) -> Topology:
    """The same network after something happened to it."""
    kind = rng.randrange(6)
    at = rng.randrange(len(graph.links))
    link = graph.links[at]
    if kind == 0 and len(graph.links) > 1:
        return graph.without({at})
    if kind == 1:
        node = rng.choice(graph.nodes)
        return graph.changed(nodes={node.id: replace(node, load=rng.random())})
    values: dict[int, dict[str, Any]] = {
        2: {"cost": rng.choice((1, 1, 2, 500))},
        3: {"latency_us": rng.choice((0, 1000, 40_000)), "jitter_us": rng.choice((0, 2000))},
        4: {"bandwidth_bps": rng.choice(BANDWIDTHS)},
        5: {"loss": rng.choice(LOSSES), "affinities": tuple(rng.sample(COLOURS, 2))},
    }
    return graph.changed({at: Link(**{**link.__dict__, **values.get(kind, {"cost": 3})})})


def check(name: str, steps: int) -> None:
    rng = random.Random(name)
    graph = topology(name)
    while not graph.links:
        return
    node = rng.choice(graph.nodes).id
    # Sticky ones are different on purpose.
    used = {n: d for n, d in graph.definitions.items() if d.calculation != "bounded"}
    table = compute_table(graph, node, 0, used)
    for version in range(1, steps):
        looked_at = [n.id for n in graph.nodes if rng.random() < 0.8]
        table.to_json(looked_at)
        graph = disturbed(graph, rng)
        table = compute_table(graph, node, version, used, previous=table)
        assert table.to_json() == compute_table(graph, node, version, used).to_json()


@pytest.mark.parametrize("seed", range(12))
def test_tables_brought_up_to_date_are_those_made_anew(seed: int) -> None:
    check(f"random-{seed}", 8)


@pytest.mark.exhaustive
@pytest.mark.parametrize("seed", range(12, 120))
def test_tables_brought_up_to_date_are_those_made_anew_on_many_more(seed: int) -> None:
    check(f"random-{seed}", 12)


@pytest.mark.exhaustive
@pytest.mark.parametrize("node", [1, 300])
def test_a_large_network_is_brought_up_to_date_step_by_step(node: int) -> None:
    graph, rng = topology("planar"), random.Random(node)
    used = {n: PROTOCOLS[n] for n in (0, 1, 2, 3, 4, 6, 7, 8, 10)}
    table = compute_table(graph, node, 0, used)
    for version in range(1, 8):
        table.to_json()
        graph = disturbed(graph, rng)
        table = compute_table(graph, node, version, used, previous=table)
        assert table.to_json() == compute_table(graph, node, version, used).to_json()


def test_what_is_far_away_leaves_most_rows_alone() -> None:
    graph = topology("planar")
    used = {0: PROTOCOLS[0], 1: PROTOCOLS[1]}
    table = compute_table(graph, 1, 0, used)
    table.to_json()
    far = max(range(len(graph.links)), key=lambda at: graph.links[at].a)
    link = graph.links[far]
    slower = graph.changed({far: replace(link, latency_us=link.latency_us + 7)})
    after = compute_table(slower, 1, 1, used, previous=table)
    kept = [len(after._routes[str(n)].known()) for n in used]  # type: ignore[attr-defined]
    assert kept[0] == len(graph.nodes) - 1
    assert 0 < len(graph.nodes) - kept[1] < 100
    assert after.to_json() == compute_table(slower, 1, 1, used).to_json()


@pytest.mark.parametrize("seed", range(15))
def test_a_tree_is_updated_as_if_searched_anew(seed: int) -> None:
    rng = random.Random(seed)
    before = topology(f"random-{seed}")
    if not before.links:
        return
    after = before
    for _ in range(rng.randrange(1, 4)):
        after = disturbed(after, rng)
        if not after.links:
            return
    for root in range(len(before.nodes)):
        old, new = View(before, root, "cost"), View(after, root, "cost")
        changed = changes(old.arcs, new, range(len(before.nodes)))
        for other in range(len(before.nodes)):
            banned = root if rng.random() < 0.5 and other != root else -1
            first = new.first_of(other)
            if first != old.first_of(other):
                continue
            tree = shortest_paths(old.arcs, other, first, banned)
            update = updated(tree, changed, other, first, banned)
            if update is None:
                continue
            found, touched = update
            anew = shortest_paths(new.arcs, other, first, banned)
            assert found == anew
            pairs = [
                zip(each.distance, each.hops, each.parent, strict=True) for each in (tree, anew)
            ]
            differ = {at for at, (one, two) in enumerate(zip(*pairs, strict=True)) if one != two}
            assert differ <= touched


@pytest.mark.parametrize("seed", range(25))
def test_what_is_left_after_a_failure_is_as_if_searched_anew(seed: int) -> None:
    graph, rng = topology(f"random-{seed}"), random.Random(seed)
    nodes = range(len(graph.nodes))
    for root in nodes:
        idle = frozenset(at for at in nodes if rng.random() < 0.2)
        shut = frozenset(at for at in range(len(graph.links)) if rng.random() < 0.1)
        view = View(graph, root, rng.choice(("cost", "latency", "loss")), shut, idle)
        for node in nodes:
            if node != root:
                anew = shortest_paths(view.arcs, root, view.first, node)
                assert view.without_node(node) == anew
        for _ in range(3):
            cut = {at for _, _, at in view.first if rng.random() < 0.5}
            left = [each for each in view.first if each[2] not in cut]
            assert view.without_links(cut) == shortest_paths(view.arcs, root, left)


def test_a_sticky_path_stays_until_it_breaks_its_bounds() -> None:
    from tests.sim.test_ways import plain_links

    graph = plain_links(4, [(1, 2), (2, 4), (1, 3), (3, 4)])
    own = replace(PROTOCOLS[BOUNDED], bound_latency_us=10_000)
    used = {BOUNDED: own}

    def with_link(graph: Topology, at: int, cost: int, latency_us: int = 0) -> Topology:
        return graph.changed({at: replace(graph.links[at], cost=cost, latency_us=latency_us)})

    table = compute_table(graph, 1, 0, used)
    assert table.paths(4, BOUNDED)[0].nodes == (2, 4)
    worse = with_link(graph, 1, cost=5)
    kept = compute_table(worse, 1, 1, used, previous=table)
    assert kept.paths(4, BOUNDED)[0].nodes == (2, 4), "still within bounds, so nothing moves"
    assert compute_table(worse, 1, 1, used).paths(4, BOUNDED)[0].nodes == (3, 4)
    slow = with_link(worse, 1, cost=5, latency_us=11_000)
    assert compute_table(slow, 1, 2, used, previous=kept).paths(4, BOUNDED)[0].nodes == (3, 4)
