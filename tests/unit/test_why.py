"""Explanations of table entries: for every neighbour left out, the constraint that did it."""

from __future__ import annotations

import pytest

from fabric.errors import NameUnknown
from fabric.routing.definitions import Definition
from fabric.routing.needs import AVOID, DEFLECT, DISPERSE, FLOOD, SHORTEST, WIDE
from fabric.routing.topology import Link, Node, Topology
from fabric.routing.why import Why, why
from tests.unit.graph_samples import build

MBIT = 10**6
BUSY = {
    3: Node(3, "n3", tags=("avoid",)),
    4: Node(4, "n4", region="us", load=0.6),
}
OWN = (
    Definition(128, "fibre", include_all=("fibre",)),
    Definition(129, "no-radio", exclude_any=("radio",), maximum_loss=0.01),
    Definition(130, "either", include_any=("copper", "fibre"), minimum_bandwidth_bps=50 * MBIT),
    Definition(131, "at-home", exclude_regions=("us",), exclude_hosts=(2,)),
    Definition(132, "in-time", "bounded", bound_latency_us=7_000),
    Definition(133, "thirds", "disperse", paths=4, share=0.25),
    Definition(134, "quick", metric="latency", maximum_latency_us=3_000),
)


def fan() -> Topology:
    """1 to 5 by way of 2, 3 and 4; 6 hangs on 1 alone; 7 on nothing."""
    return build(
        7,
        Link(1, 2, cost=1, affinities=("fibre",), bandwidth_bps=100 * MBIT, latency_us=5_000),
        Link(2, 5, cost=1, affinities=("fibre",), bandwidth_bps=100 * MBIT, latency_us=5_000),
        Link(1, 3, cost=2, affinities=("radio",), bandwidth_bps=10 * MBIT, latency_us=2_000),
        Link(3, 5, cost=1, affinities=("radio",), bandwidth_bps=200 * MBIT, latency_us=2_000),
        Link(1, 4, cost=1, loss=0.1, bandwidth_bps=200 * MBIT, latency_us=9_000),
        Link(4, 5, cost=2, bandwidth_bps=200 * MBIT, latency_us=9_000),
        Link(1, 6, cost=1),
        nodes=BUSY,
        own=OWN,
    )


def told(found: Why) -> dict[int, str]:
    return {each.node: each.excluded for each in found.candidates}


@pytest.mark.parametrize(
    ("protocol", "neighbour", "words"),
    [
        (SHORTEST, 2, ""),
        (SHORTEST, 3, "longer: 3, the best is 2"),
        (SHORTEST, 6, "comes back: its own best way leads through this host"),
        (WIDE, 4, ""),
        (WIDE, 3, "narrower: 10000000 bit/s, the best is 200000000"),
        (DEFLECT, 3, "longer"),
        (DEFLECT, 4, "not nearer: 2 from there, 2 from here"),
        (AVOID, 3, "exclude_tags: the host has tag avoid"),
        (FLOOD, 6, "comes back"),
        (128, 3, "include_all: the link lacks fibre"),
        (129, 3, "exclude_any: the link has affinity radio"),
        (129, 4, "maximum_loss: 0.01, the link has 0.1"),
        (130, 4, "include_any: the link has none of copper, fibre"),
        (131, 2, "exclude_hosts: names this host"),
        (131, 4, "exclude_regions: the host is in us"),
        (132, 2, "bound_latency: 10000 µs of at most 7000 µs"),
        (132, 3, ""),
        (134, 2, "maximum_latency: 3000 µs, the link has 5000 µs"),
        (DISPERSE, 6, "comes back"),
    ],
)
def test_every_neighbour_left_out_names_its_constraint(
    protocol: int, neighbour: int, words: str
) -> None:
    excluded = told(why(fan(), 1, 5, protocol))[neighbour]
    if words:
        assert words in excluded
    else:
        assert excluded == ""


def test_metrics_are_those_of_the_way_through_each_neighbour() -> None:
    found = why(fan(), 1, 5, SHORTEST)
    assert {each.node: each.metric for each in found.candidates} == {2: 2, 3: 3, 4: 3, 6: 4}
    assert (found.metric, found.unit) == (2, "sum of link costs")
    assert found.alternate is not None
    assert found.alternate.hop.node in (3, 4)


def test_a_busier_neighbour_that_is_nearer_is_told_from_one_that_is_not() -> None:
    nodes = {2: Node(2, "n2", load=0.9)}
    diamond = build(4, Link(1, 2), Link(2, 4), Link(1, 3, cost=2), Link(3, 4, cost=1), nodes=nodes)
    assert told(why(diamond, 1, 4, DEFLECT)) == {2: "busier: its load is 90%", 3: ""}


@pytest.mark.parametrize(
    ("destination", "protocol", "words"),
    [
        (7, SHORTEST, "unreachable: no links lead there"),
        (1, SHORTEST, "the host itself"),
        (6, 128, "constraints: no way is left"),
        (6, 132, ""),
        (5, 133, "share: 4 disjoint paths are needed, there are 3"),
    ],
)
def test_a_missing_entry_is_explained(destination: int, protocol: int, words: str) -> None:
    found = why(fan(), 1, destination, protocol)
    assert found.excluded.startswith(words)
    assert (found.metric is None) == bool(words)


def test_bounds_nobody_can_keep_are_named() -> None:
    own = (Definition(140, "now", "bounded", bound_latency_us=100),)
    topology = build(2, Link(1, 2, latency_us=500), own=own)
    assert why(topology, 1, 2, 140).excluded == "bound_latency: 500 µs of at most 100 µs"


def test_unknown_hosts_and_protocols_are_named_errors() -> None:
    with pytest.raises(NameUnknown, match="no protocol 99"):
        why(fan(), 1, 5, 99)
    with pytest.raises(NameUnknown, match="no node 9"):
        why(fan(), 1, 9, SHORTEST)
