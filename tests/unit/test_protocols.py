"""What each protocol prefers, on graphs small enough to check by hand."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from fabric.errors import NameUnknown
from fabric.lab.topology_file import load_topology
from fabric.routing.definitions import Definition
from fabric.routing.needs import LOW_LATENCY, RELIABLE, SHORTEST, WIDE
from fabric.routing.protocols import by_name, compute_table
from fabric.routing.topology import Link, Topology
from tests.unit.graph_samples import build

ROOT = Path(__file__).resolve().parents[2]
MBIT = 1_000_000


def path(topology: Topology, start: int, goal: int, protocol: int) -> list[int]:
    """The hosts a packet visits, every one deciding by its own table."""
    visited = [start]
    while visited[-1] != goal:
        table = compute_table(topology, visited[-1], 1)
        visited.append(table.lookup(goal, protocol)[0].node)
        assert len(visited) <= len(topology.nodes), f"loop: {visited}"
    return visited


def test_the_diamond_disagrees_at_the_first_host_and_at_a_relay() -> None:
    topology = load_topology(ROOT / "examples/diamond.yaml").topology()
    h1, h2, h3, h4 = (topology.by_name(name).id for name in ("h1", "h2", "h3", "h4"))
    assert path(topology, h1, h4, SHORTEST) == [h1, h3, h4]
    assert path(topology, h1, h4, LOW_LATENCY) == [h1, h2, h4]
    assert path(topology, h1, h4, WIDE) == [h1, h2, h3, h4]
    for node in (h1, h2, h3, h4):
        table = compute_table(topology, node, 1)
        known = {key: hops for key, hops in table.entries.items() if key[1] in (0, 1, 2, 3)}
        assert all(len(hops) == 1 for hops in known.values()), "paths must be predictable"


def test_reliable_avoids_loss_even_on_a_longer_path() -> None:
    topology = load_topology(ROOT / "examples/ring.yaml").topology()
    a, c, d, e = (topology.by_name(name).id for name in "acde")
    assert path(topology, a, c, RELIABLE) == [a, e, d, c]
    assert len(path(topology, a, c, SHORTEST)) == 3


def test_latency_ties_are_broken_by_cost() -> None:
    topology = build(3, Link(1, 2, cost=9), Link(1, 3, cost=1), Link(3, 2, cost=1))
    assert path(topology, 1, 2, LOW_LATENCY) == [1, 3, 2]


def test_width_ties_are_broken_by_cost() -> None:
    wide = 100 * MBIT
    topology = build(
        4,
        Link(1, 2, cost=1, bandwidth_bps=wide),
        Link(2, 4, cost=5, bandwidth_bps=wide),
        Link(1, 3, cost=1, bandwidth_bps=2 * wide),
        Link(3, 4, cost=6, bandwidth_bps=wide),
    )
    assert path(topology, 1, 4, WIDE) == [1, 2, 4]


def test_no_limit_is_wider_than_any_limit() -> None:
    topology = build(3, Link(1, 2, bandwidth_bps=10**15), Link(1, 3, cost=5), Link(3, 2, cost=5))
    assert path(topology, 1, 2, WIDE) == [1, 3, 2]
    assert compute_table(topology, 1, 1).lookup(2, WIDE)[0].metric == 0


def test_wide_hosts_that_know_better_never_send_back() -> None:
    """n1 reaches n3 at 100 Mbit/s only; n2 knows a wider, dearer way. Bandwidth first, no loop."""
    topology = build(
        4,
        Link(1, 2, cost=1, bandwidth_bps=100 * MBIT),
        Link(2, 3, cost=1, bandwidth_bps=100 * MBIT),
        Link(2, 4, cost=10, bandwidth_bps=1000 * MBIT),
        Link(4, 3, cost=10, bandwidth_bps=1000 * MBIT),
    )
    assert path(topology, 1, 3, WIDE) == [1, 2, 4, 3]


def test_equal_cost_next_hops_are_all_listed_in_order() -> None:
    topology = build(4, Link(3, 1), Link(1, 2), Link(2, 4), Link(3, 4))
    hops = compute_table(topology, 1, 1).lookup(4, SHORTEST)
    assert [h.node for h in hops] == [2, 3]
    assert {h.metric for h in hops} == {2}


def test_parallel_links_are_separate_next_hops() -> None:
    topology = build(2, Link(1, 2, bandwidth_bps=5), Link(1, 2), Link(1, 2, cost=2))
    table = compute_table(topology, 1, 1)
    assert [h.interface for h in table.lookup(2, SHORTEST)] == [1, 2]
    assert [h.interface for h in table.lookup(2, WIDE)] == [2]


def test_next_hops_name_the_neighbours_address_and_own_interface() -> None:
    topology = build(3, Link(2, 1, mtu=1400), Link(2, 3))
    hop = compute_table(topology, 1, 1).lookup(3, SHORTEST)[0]
    assert (hop.node, hop.address, hop.interface, hop.mtu) == (2, "172.31.0.0", 1, 1400)


def test_destinations_out_of_reach_have_no_entry() -> None:
    table = compute_table(build(3, Link(1, 2)), 1, 42)
    assert table.version == 42
    assert {destination for destination, _ in table.entries} == {2}


def test_a_network_defines_protocols_of_its_own() -> None:
    mine = Definition(200, "fewest-hops", metric="hops")
    topology = replace(build(2, Link(1, 2, cost=9)), protocols=(mine,))
    hop = compute_table(topology, 1, 1).lookup(2, 200)[0]
    assert (hop.node, hop.metric) == (2, 1)
    assert by_name("fewest-hops", topology.definitions) is mine


def test_an_unknown_name_lists_the_known_ones() -> None:
    assert by_name("wide").id == WIDE
    with pytest.raises(NameUnknown, match="shortest, low-latency, wide, reliable"):
        by_name("fastest")


def test_what_travels_into_guests_imports_nothing_heavy() -> None:
    """Every module costs a cold guest milliseconds before its first packet."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); before = set(sys.modules); "
        "import fabric.routing.policy, fabric.routing.table; "
        "print(*sorted(set(sys.modules) - before))"
    )
    argv = [sys.executable, "-I", "-S", "-c", code, str(ROOT)]
    loaded = subprocess.run(argv, capture_output=True, text=True, check=True).stdout.split()
    others = {name for name in loaded if not name.startswith("fabric")}
    assert others <= {"__future__", "struct", "_struct"}
    assert not {"fabric.routing.topology", "fabric.routing.protocols"} & set(loaded)
