"""The graph: what it refuses, and how it answers questions about itself."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from fabric.errors import ConfigError, NameUnknown
from fabric.routing.definitions import Definition
from fabric.routing.topology import Link, Node, Topology


def triangle() -> Topology:
    nodes = (
        Node(1, "a", ("10.0.0.1/32", "fd00::1/128")),
        Node(2, "b", ("10.0.0.2/32", "192.168.0.0/16")),
        Node(3, "c", ("10.0.0.3/32", "192.168.7.0/24")),
    )
    links = (
        Link(1, 2, a_address="172.31.0.0", b_address="172.31.0.1", a_interface=1, b_interface=1),
        Link(1, 3, a_address="172.31.0.2", b_address="172.31.0.3", a_interface=2, b_interface=1),
        Link(3, 2, a_address="172.31.0.4", b_address="172.31.0.5", a_interface=2, b_interface=2),
    )
    return Topology(nodes, links)


def test_survives_a_round_trip_through_json() -> None:
    topology = triangle()
    assert Topology.from_json(json.loads(json.dumps(topology.to_json()))) == topology


@pytest.mark.parametrize(
    ("address", "owner"),
    [
        ("10.0.0.2", 2),
        ("fd00::1", 1),
        ("192.168.1.1", 2),
        ("192.168.7.9", 3),  # the longer prefix wins
        ("10.0.0.9", None),
        ("::10.0.0.2", None),  # an IPv6 address never matches an IPv4 prefix
        ("nonsense", None),
    ],
)
def test_finds_the_owner_of_an_address_by_longest_match(address: str, owner: int | None) -> None:
    assert triangle().node_for(address) == owner


def test_neighbours_are_seen_from_the_node_that_asks() -> None:
    ends = triangle().neighbours(3)
    assert [(e.node, e.address, e.local_address, e.interface) for e in ends] == [
        (1, "172.31.0.2", "172.31.0.3", 1),
        (2, "172.31.0.5", "172.31.0.4", 2),
    ]


def test_unknown_names_and_nodes_are_named_errors() -> None:
    with pytest.raises(NameUnknown, match="hosts: a, b, c"):
        triangle().by_name("d")
    with pytest.raises(NameUnknown):
        triangle().neighbours(9)
    assert triangle().name_of(9) == "9"
    assert triangle().by_name("b").id == 2


def test_lists_everything_impossible_at_once() -> None:
    nodes = (Node(1, "a"), Node(1, "b"), Node(0, "a", ("10.0.0.1/8",)))
    links = (
        Link(1, 1, cost=0, latency_us=-1, bandwidth_bps=-1, loss=1.0, a_interface=0),
        Link(1, 7),
    )
    with pytest.raises(ConfigError) as caught:
        Topology(nodes, links)
    text = "\n".join(caught.value.problems)
    for part in (
        "node id 1 is used 2 times",
        "name a is used 2 times",
        "id 0 is not in",
        "has host bits set",
        "both ends are the same node",
        "cost 0",
        "latency -1",
        "bandwidth -1",
        "loss 1.0",
        "interface id 0",
        "no node 7",
        "interface id 1 is on",
    ):
        assert part in text


def test_a_changed_network_is_the_same_one_with_other_attributes() -> None:
    before = triangle()
    after = before.changed(
        {1: replace(before.links[1], latency_us=9)}, {2: replace(before.nodes[1], load=0.5)}
    )
    assert [link.latency_us for link in after.links] == [0, 9, 0]
    assert after.node(2).load == 0.5
    assert before.node(2).load == before.links[1].latency_us == 0
    assert after == Topology(after.nodes, after.links), "as if made from its parts"
    assert after.neighbours(1)[1].link.latency_us == 9
    with pytest.raises(ConfigError, match="not possible"):
        before.changed({0: replace(before.links[0], cost=0)})
    with pytest.raises(ConfigError, match="not possible"):
        before.changed(nodes={2: replace(before.nodes[1], load=1.5)})


def test_links_can_be_taken_away() -> None:
    left = triangle().without({0, 2})
    assert left == Topology(triangle().nodes, triangle().links[1:2])
    assert left.components() == ((1, 3), (2,))


def test_impossible_protocols_are_listed_too() -> None:
    own = (
        Definition(5, "mine"),
        Definition(200, "wide"),
        Definition(201, "a", exclude_hosts=(9,)),
        Definition(201, "a", share=0.1),
        Definition(202, "b", calculation="best", metric="beauty", maximum_loss=1.5, slack=99),
    )
    with pytest.raises(ConfigError) as caught:
        Topology(triangle().nodes, triangle().links, own)
    text = "\n".join(caught.value.problems)
    for part in (
        "protocol id 201 is used 2 times",
        "protocol mine: ids below 128 are built in; 5 is disperse",
        "protocol wide: wide is the name of a built-in protocol",
        "protocol a: no node 9",
        "protocol a: a share of 0.1 needs 10 paths, not 2",
        "calculation 'best' is none of",
        "metric 'beauty' is none of",
        "maximum_loss 1.5",
        "slack 99",
    ):
        assert part in text


def test_malformed_documents_are_config_errors() -> None:
    documents: list[dict[str, Any]] = [
        {},
        {"nodes": [{}], "links": []},
        {"nodes": [], "links": [{"x": 1}]},
    ]
    for document in documents:
        with pytest.raises(ConfigError, match="topology document"):
            Topology.from_json(document)


def test_components_are_ordered_by_size() -> None:
    nodes = tuple(Node(n, f"n{n}") for n in range(1, 6))
    topology = Topology(nodes, (Link(4, 2), Link(4, 5, a_interface=2)))
    assert topology.components() == ((2, 4, 5), (1,), (3,))
    assert not topology.is_connected()
    assert triangle().is_connected()
