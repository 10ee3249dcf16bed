"""Whole networks in virtual time: what the figures say is what must be so."""

from __future__ import annotations

import json
from dataclasses import replace
from random import Random
from typing import Any

import networkx as nx
import pytest

from fabric.errors import UserError
from fabric.routing.definitions import PROTOCOLS
from fabric.routing.needs import DISJOINT, DISPERSE, LOW_LATENCY, SHORTEST, WIDE
from fabric.routing.protocols import compute_table
from fabric.routing.topology import Link, Node, Topology
from fabric.sim.experiment import simulate
from fabric.sim.failures import parse_failures
from fabric.sim.settings import Settings
from fabric.sim.synthetic import synthetic
from fabric.wire.packet import DEFAULT_HOP_LIMIT

SQUARE = ((1, 2), (2, 3), (3, 4), (4, 1))


def network(edges: tuple[tuple[int, int], ...], latency_us: int = 2000) -> Topology:
    count = max(max(edge) for edge in edges)
    interfaces = dict.fromkeys(range(1, count + 1), 0)
    links = []
    for at, (a, b) in enumerate(edges):
        interfaces[a] += 1
        interfaces[b] += 1
        links.append(
            Link(
                *(a, b),
                latency_us=latency_us,
                a_interface=interfaces[a],
                b_interface=interfaces[b],
                a_address=f"172.31.{at}.0",
                b_address=f"172.31.{at}.1",
            )
        )
    return Topology(tuple(Node(n, f"h{n}") for n in interfaces), tuple(links))


def run(graph: Topology, *fail: str, protocol: int = SHORTEST, **more: Any) -> dict[str, Any]:
    settings = replace(Settings((PROTOCOLS[protocol],), pairs=1000), **more)
    return simulate(graph, settings, parse_failures(fail, graph, Random(settings.seed)))


@pytest.mark.parametrize("seed", range(2))
def test_a_square_is_dark_until_bfd_notices_and_no_longer(seed: int) -> None:
    result = run(network(SQUARE), "h1-h2@1s", interval_us=1000, seed=seed, settle_us=500_000)
    during = result["protocols"][0]["during"]
    # The last packet came through up to an interval before: two to three of them are waited for,
    # and the link's latency.
    assert 100 <= result["events"][0]["noticed_after_ms"] <= 152
    assert during["streams_hit"] > 0
    blackout = during["blackout_ms"]
    assert 100 <= blackout["p50"] <= 155
    # Hosts with new tables may send packets back to one that has none yet: store and computing.
    assert blackout["max"] <= 155 + 30 + 10


def test_without_local_repair_the_dark_lasts_until_there_are_tables() -> None:
    slow: dict[str, Any] = {"store_us": 200_000, "compute_us": 100_000, "interval_us": 5000}
    square = network(SQUARE)
    dark = {
        repair: run(square, "h1-h2@1s", repair=repair, **slow)["protocols"][0]["during"]
        for repair in (True, False)
    }
    assert dark[False]["blackout_ms"]["p50"] >= dark[True]["blackout_ms"]["p50"] + 90


def test_disjoint_paths_lose_nothing() -> None:
    result = run(network(SQUARE), "h1-h2@1s", protocol=DISJOINT)
    found = result["protocols"][0]
    assert found["during"]["lost"] == 0
    assert found["during"]["blackout_ms"] is None
    assert found["after"]["delivered"] == found["after"]["reachable"] == 12
    assert found["after"]["stretch"] is not None


def test_a_dispersed_flow_lets_go_of_what_waits_for_the_lost() -> None:
    result = run(network(SQUARE), "h1-h2@1s..2s", protocol=DISPERSE)
    during = result["protocols"][0]["during"]
    assert 0 < during["lost"] < during["sent"] / 10


def test_what_is_cut_off_is_no_blackout_and_comes_back() -> None:
    line = network(((1, 2), (2, 3)))
    gone = run(line, "h3@1s")["protocols"][0]
    assert gone["before"]["delivered"] == 6
    assert gone["during"]["streams_out_of_reach"] == 4
    assert gone["during"]["streams_hit"] == 0
    assert (gone["after"]["reachable"], gone["after"]["delivered"]) == (2, 2)
    back = run(line, "h3@1s..2s")
    assert back["protocols"][0]["after"]["delivered"] == 6
    assert [event["what"] for event in back["events"]] == ["h3 down", "h3 up"]
    assert all(event["converged_after_ms"] for event in back["events"])


def test_ways_beyond_the_hop_limit_are_no_loops_and_no_blackout() -> None:
    line = network(tuple((at, at + 1) for at in range(1, 80)))
    found = run(line, "h79-h80@1s", settle_us=50_000, pairs=40)["protocols"][0]
    unreached = found["before"]["reachable"] - found["before"]["delivered"]
    assert unreached > 0
    assert found["before"]["hops"]["max"] <= DEFAULT_HOP_LIMIT
    assert found["drops"]["hop_limit"] > 0
    assert found["microloops"] == 0
    assert found["during"]["streams_never_reached"] == unreached
    assert found["during"]["streams_hit"] == 0


def test_a_way_that_becomes_too_long_is_cut_off_rather_than_dark() -> None:
    ring = network((*((at, at + 1) for at in range(1, 110)), (110, 1)))
    found = run(ring, "h110-h1@1s", settle_us=300_000, pairs=30)["protocols"][0]
    during = found["during"]
    assert found["before"]["delivered"] == 30
    assert during["streams_not_restored"] == 30 - found["after"]["delivered"] > 0
    assert during["streams_out_of_reach"] == 0
    assert during["blackout_ms"]["max"] < 250


def test_hosts_that_disagree_send_packets_in_circles() -> None:
    slow: dict[str, Any] = {"store_us": 100_000, "repair": False, "settle_us": 600_000}
    square = network((*SQUARE, (2, 5)))
    found = run(square, "h1-h2@1s..1500ms", **slow)["protocols"][0]
    assert found["microloops"] == found["drops"]["loop"] > 0


def test_every_host_hears_of_every_change() -> None:
    result = run(network(SQUARE), "h1-h2@1s")
    assert result["messages"] == {"published": 2, "delivered": 8}
    # Both ends tell of one link: the second time nothing is new.
    assert result["events"][0]["new_tables"] == 4
    least = result["events"][0]["noticed_after_ms"] + 10
    assert least <= result["events"][0]["converged_after_ms"] <= least + 60 + 50


@pytest.mark.parametrize("protocol", [SHORTEST, LOW_LATENCY, WIDE])
def test_nothing_is_better_than_the_best(protocol: int) -> None:
    graph = synthetic(40, Random(3))
    found = run(graph, "random:2@1s", protocol=protocol, pairs=15, settle_us=400_000)
    found = found["protocols"][0]
    for when in ("before", "after"):
        # These protocols are exact: while nothing changes there is no stretch at all.
        assert found[when]["stretch"] == {"mean": 1.0, "p50": 1.0, "p90": 1.0, "max": 1.0}
        assert found[when]["delivered"] == found[when]["reachable"] == 15


def test_latencies_are_those_networkx_finds() -> None:
    graph = synthetic(25, Random(5))
    twin = nx.Graph()
    twin.add_weighted_edges_from((n.a, n.b, n.latency_us) for n in graph.links)
    lengths = dict(nx.all_pairs_dijkstra_path_length(twin))
    every = [lengths[a][b] for a in lengths for b in lengths if a != b]
    found = run(graph, protocol=LOW_LATENCY, pairs=10_000)["protocols"][0]["before"]
    assert found["pairs"] == len(every)
    assert found["latency_ms"]["mean"] == pytest.approx(sum(every) / len(every) / 1000, abs=1e-3)
    assert found["latency_ms"]["max"] == pytest.approx(max(every) / 1000, abs=1e-3)


def test_a_guest_that_takes_its_time_holds_packets_and_loses_none() -> None:
    quick = run(network(SQUARE), "h1-h2@1s")["protocols"][0]["during"]
    slow = run(network(SQUARE), "h1-h2@1s", spawn_us=100_000)["protocols"][0]["during"]
    assert slow["blackout_ms"]["max"] <= quick["blackout_ms"]["max"] + 20


def test_tables_are_weighed_where_somebody_could_have_them_whole() -> None:
    square = network(SQUARE)
    found = run(square)["protocols"][0]["table"]
    assert (found["rows"], len(found["of"])) == (3, 3)
    table = compute_table(square, 1, 1, {SHORTEST: PROTOCOLS[SHORTEST]})
    one = next(each for each in found["of"] if each["host"] == "h1")
    assert one["bytes"] == len(json.dumps(table.to_json(), separators=(",", ":")))
    large = synthetic(1001, Random(1))
    assert run(large, protocol=DISPERSE, pairs=2)["protocols"][0]["table"] is None


def test_one_seed_one_answer() -> None:
    graph = synthetic(20, Random(1))
    first, again, other = (
        json.dumps(run(graph, "random:1@1s", "n3@2s..3s", pairs=6, seed=seed)) for seed in (7, 7, 8)
    )
    assert first == again
    assert first != other


# -- what fails --------------------------------------------------------------------------------


def named() -> Topology:
    nodes = tuple(Node(at, name) for at, name in enumerate(("a", "a-b", "b", "c"), 1))
    ends = ((1, 3), (2, 4), (3, 4))
    links = tuple(Link(a, b, a_interface=n, b_interface=n + 10) for n, (a, b) in enumerate(ends, 1))
    return Topology(nodes, links)


def test_failures_are_links_hosts_or_chance() -> None:
    graph = named()
    found = parse_failures(["c@2s", "a-b@1s", "a-b-c@500ms..1.5s"], graph, Random(1))
    assert [(f.label, f.begin_us, f.end_us, f.links, f.node) for f in found] == [
        ("a-b-c", 500_000, 1_500_000, (1,), None),
        ("a-b", 1_000_000, None, (), 2),  # a host of that name comes first
        ("c", 2_000_000, None, (), 4),
    ]
    drawn = [parse_failures(["random:2@1s"], graph, Random(1)) for _ in range(2)]
    assert drawn[0] == drawn[1]
    assert len({failure.links for failure in drawn[0]}) == 2


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a-b", "does not say when"),
        ("a@soon", "is no time"),
        ("a@5", "is no time"),
        ("a@2s..1s", "ends before it begins"),
        ("x@1s", "neither a host nor two of them"),
        ("a-c@1s", "no link between a and c"),
        ("random:0@1s", "a number of links"),
        ("random:9@1s", "a number of links"),
    ],
)
def test_what_cannot_fail_is_told(text: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        parse_failures([text], named(), Random(1))
