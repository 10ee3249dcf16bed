"""A table brought up to date is the table made anew, to the last tie."""

from __future__ import annotations

import json
import random
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

import pytest

from fabric.routing.definitions import PROTOCOLS, Definition
from fabric.routing.incremental import changes, updated
from fabric.routing.needs import BOUNDED, DEFLECT
from fabric.routing.protocols import compute_table
from fabric.routing.rows import Row
from fabric.routing.spf import shortest_paths
from fabric.routing.table import ForwardingTable
from fabric.routing.topology import Link, Topology
from fabric.routing.view import View
from tests.sim.graphs import BANDWIDTHS, COLOURS, LOSSES, topology

RARE = (297, 500, 709, 351, 417, 529)
"""Seeds where nothing else tells that the own link of a widest alternate is narrower, or that
neighbours are nearer to each other or farther."""


def disturbed(graph: Topology, rng: random.Random) -> Topology:
    """The same network after something happened to it."""
    at = rng.randrange(len(graph.links))
    if rng.randrange(6) == 0 and len(graph.links) > 1:
        return graph.without({at})
    return changed(graph, rng, at)


def changed(graph: Topology, rng: random.Random, at: int) -> Topology:
    """The same links and hosts, but for one link or any host."""
    kind = rng.randrange(5)
    if kind == 0:
        node = rng.choice(graph.nodes)
        return graph.changed(nodes={node.id: replace(node, load=rng.random())})
    values: tuple[dict[str, Any], ...] = (
        {"cost": rng.choice((1, 1, 2, 500))},
        {"latency_us": rng.choice((0, 1000, 40_000)), "jitter_us": rng.choice((0, 2000))},
        {"bandwidth_bps": rng.choice(BANDWIDTHS)},
        {"loss": rng.choice(LOSSES), "affinities": tuple(rng.sample(COLOURS, 2))},
    )
    return graph.changed({at: Link(**{**graph.links[at].__dict__, **values[kind - 1]})})


def plain(table: ForwardingTable, protocols: Collection[int] | None = None) -> dict[str, Any]:
    """What a table says, as if no link had ever been there that is gone; ``protocols``: by these
    only."""
    document = table.to_json()
    kept = {str(number) for number in protocols} if protocols is not None else document["routes"]
    left = [at for at, link in enumerate(table.links) if link]
    number = {at: new for new, at in enumerate(left)}

    def told(row: Row) -> Row:
        metric, hops, *rest = row
        found: Row = [metric, [number[at] for at in hops], *rest]
        if rest and rest[0]:
            found[2] = [number[rest[0][0]], *rest[0][1:]]
        return found

    routes = {
        protocol: {goal: told(row) for goal, row in rows.items()}
        for protocol, rows in document["routes"].items()
        if protocol in kept
    }
    return {
        "hops": [table.links[at] for at in left],
        "protocols": {n: told for n, told in document["protocols"].items() if n in kept},
        "routes": routes,
    }


def check(
    graph: Topology, node: int, used: Mapping[int, Definition], steps: int, rng: random.Random
) -> None:
    """Links change, go and come back, the host's own more often than others."""
    own = [at for at, link in enumerate(graph.links) if node in (link.a, link.b)]
    down, seen = set[int](), graph
    table = compute_table(seen, node, 0, used)
    for version in range(1, steps):
        table.to_json([n.id for n in graph.nodes if rng.random() < 0.8])
        for _ in range(rng.choice((1, 1, 2, 3))):
            at = rng.choice(own) if own and rng.random() < 0.5 else rng.randrange(len(graph.links))
            if rng.random() < 0.5:
                down ^= {at}
            else:
                graph = changed(graph, rng, at)
        seen, before = graph.without(down), table
        table = compute_table(seen, node, version, used, previous=before)
        # What is settled says which paths were in use, but not how they were found.
        anew = compute_table(seen, node, version, used, previous=before.settled())
        assert plain(table) == plain(anew)
        unstuck = {n: d for n, d in used.items() if d.calculation != "bounded"}
        assert plain(table, unstuck) == plain(compute_table(seen, node, version, unstuck))


def check_random(seed: int, steps: int) -> None:
    rng, graph = random.Random(f"random-{seed}"), topology(f"random-{seed}")
    if graph.links:
        check(graph, rng.choice(graph.nodes).id, graph.definitions, steps, rng)


@pytest.mark.parametrize("seed", range(12))
def test_tables_brought_up_to_date_are_those_made_anew(seed: int) -> None:
    check_random(seed, 10)


@pytest.mark.exhaustive
@pytest.mark.parametrize("seed", [*range(12, 120), *RARE])
def test_tables_brought_up_to_date_are_those_made_anew_on_many_more(seed: int) -> None:
    check_random(seed, 12)


@pytest.mark.exhaustive
@pytest.mark.parametrize("node", [1, 300])
def test_a_large_network_is_brought_up_to_date_step_by_step(node: int) -> None:
    used = {n: PROTOCOLS[n] for n in (0, 1, 2, 3, 4, 6, 7, 8, 9, 10)}
    check(topology("planar"), node, used, 12, random.Random(node))


def test_an_own_link_that_went_leaves_the_rows_that_do_not_name_it() -> None:
    graph = topology("planar")
    used = {0: PROTOCOLS[0], 2: PROTOCOLS[2]}
    table = compute_table(graph, 1, 0, used)
    table.to_json()
    own = [at for at, link in enumerate(graph.links) if 1 in (link.a, link.b)]
    cut = graph.without({own[0]})
    after = compute_table(cut, 1, 1, used, previous=table)
    kept = [len(after._routes[str(n)].known()) for n in used]  # type: ignore[attr-defined]
    assert all(0 < count < len(graph.nodes) - 1 for count in kept)
    assert [] in after.links
    assert plain(after) == plain(compute_table(cut, 1, 1, used))
    back = compute_table(graph, 1, 0, used, previous=after)
    assert back == table, "it has its place again"


def test_a_table_that_was_written_down_tells_where_its_links_are() -> None:
    graph = topology("planar")
    used = {0: PROTOCOLS[0]}
    table = compute_table(graph, 1, 0, used)
    own = [at for at, link in enumerate(graph.links) if 1 in (link.a, link.b)]
    cut = graph.without({own[0]})
    table = compute_table(cut, 1, 1, used, previous=table)
    read = ForwardingTable.from_json(json.loads(json.dumps(table.to_json())))
    assert compute_table(cut, 1, 1, used, previous=read) == table
    table = compute_table(graph, 1, 0, used)
    turned = ForwardingTable.from_json({**table.to_json(), "hops": table.links[::-1]})
    assert len(table.links) > 1
    assert compute_table(graph, 1, 0, used, previous=turned) == table, "order is by node id"


def test_a_busy_neighbour_lost_may_make_an_idle_one_nearer() -> None:
    from tests.sim.test_ways import plain_links

    ends = [(1, 2), (2, 6), (1, 3), (3, 6), (1, 4), (4, 6), (1, 5), (5, 6)]
    costs = [1, 1, 10, 1, 10, 1, 1, 3]
    graph = plain_links(6, ends)
    loads = {2: 0.9, 3: 0.4, 4: 0.6}
    graph = graph.changed(
        {at: replace(graph.links[at], cost=cost) for at, cost in enumerate(costs)},
        {node.id: replace(node, load=loads.get(node.id, 0.0)) for node in graph.nodes},
    )
    used = {DEFLECT: PROTOCOLS[DEFLECT]}
    table = compute_table(graph, 1, 0, used)
    assert [hop.node for hop in table.lookup(6, DEFLECT)] == [3]
    alternate = table.alternate(6, DEFLECT)
    assert alternate is not None and alternate.hop.node == 4, "nothing names host 2"
    after = compute_table(graph.without({0}), 1, 1, used, previous=table)
    assert [hop.node for hop in after.lookup(6, DEFLECT)] == [5]


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
            was = old.first_of(other)
            tree = shortest_paths(old.arcs, other, was, banned)
            update = updated(tree, changed, other, was, first, banned)
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
