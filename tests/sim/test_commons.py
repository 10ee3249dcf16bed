"""Tables that share searches with other hosts are those each host computes by itself."""

from __future__ import annotations

import random

import pytest

from fabric.routing.commons import Commons
from fabric.routing.protocols import compute_table
from tests.sim.graphs import topology


@pytest.mark.parametrize("seed", range(4))
def test_shared_searches_change_no_table_before_and_after_a_change(seed: int) -> None:
    graph, rng = topology(f"random-{seed}"), random.Random(seed)
    commons = Commons(graph)
    for node in graph.nodes:
        shared = compute_table(graph, node.id, 1, commons=commons)
        assert shared == compute_table(graph, node.id, 1)
    for _ in range(2):
        after = graph.without(set(rng.sample(range(len(graph.links)), min(2, len(graph.links)))))
        later = Commons(after, commons)
        for node in after.nodes:
            assert compute_table(after, node.id, 2, commons=later) == compute_table(
                after, node.id, 2
            )


def test_what_one_host_searched_no_other_searches_again() -> None:
    graph = topology("planar")
    commons = Commons(graph)
    shortest = {0: graph.protocol(0)}
    goal = graph.nodes[-1].id

    compute_table(graph, 1, 1, shortest, commons=commons).lookup(goal, 0)
    first = commons.tally.searches
    assert first >= 1 + len({end.node for end in graph.neighbours(1)})
    compute_table(graph, 1, 1, shortest, commons=commons).lookup(goal, 0)
    assert commons.tally.searches == first
    # A link far away went: the trees are mended, not made.
    far = next(n for n, link in enumerate(graph.links) if 1 not in (link.a, link.b))
    later = Commons(graph.without({far}), commons)
    compute_table(later.topology, 1, 2, shortest, commons=later).lookup(goal, 0)
    assert commons.tally.searches <= first + 1
