"""Tables of every host of many graphs, against networkx and against each other.

``make check`` looks at a sample of graphs; ``make test`` at five hundred, and at the Topology Zoo
files beside the repository where there are any.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest

from fabric.routing.protocols import compute_table
from fabric.routing.topology import Topology
from tests.sim import check_alternates, check_hopwise, check_paths
from tests.sim.graphs import EXHAUSTIVE, SAMPLE, ZOO_NAMES, topology
from tests.sim.walk import Tables

Check = Callable[[Topology, Tables], None]
CHECKS: tuple[Check, ...] = (
    check_hopwise.reaches_all_without_loops,
    check_hopwise.sums_are_least,
    check_hopwise.bottlenecks_are_largest,
    check_hopwise.promised_bottlenecks_are_kept,
    check_hopwise.deflection_comes_nearer,
    check_alternates.alternates_never_come_back,
    check_alternates.loop_free_alternates_are_found,
    check_alternates.single_failures_are_survived,
    check_paths.paths_can_be_walked,
    check_paths.pairs_share_as_little_as_possible,
    check_paths.pairs_survive_any_link,
    check_paths.dispersed_paths_meet_nowhere,
    check_paths.bounds_are_kept_at_least_cost,
    check_paths.floods_know_the_way,
)


@cache
def tables(name: str) -> Tables:
    """The tables of all hosts."""
    graph = topology(name)
    return {node.id: compute_table(graph, node.id, 1) for node in graph.nodes}


@pytest.mark.parametrize("name", SAMPLE)
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_tables_of_a_sample(check: Check, name: str) -> None:
    check(topology(name), tables(name))


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", [*EXHAUSTIVE, *ZOO_NAMES])
def test_tables_of_every_graph(name: str) -> None:
    graph = topology(name)
    known = {node.id: compute_table(graph, node.id, 1) for node in graph.nodes}
    for check in CHECKS:
        check(graph, known)
