"""From measurements to reports, from reports to a topology, from a topology to tables."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fabric.errors import ConfigError
from fabric.host.config import HostConfig
from fabric.host.control import topology_keeper
from fabric.host.control.link_state import LinkState
from fabric.host.control.topology_keeper import SETTLE, TopologyKeeper, table_version
from fabric.host.events import EventLog
from fabric.routing.damping import LATENCY
from fabric.routing.link_state import LinkReport, NodeReport, Observatory
from fabric.routing.protocols import by_name, compute_table
from fabric.routing.table import ForwardingTable
from fabric.routing.topology import Link, Topology
from tests.unit.graph_samples import build
from tests.unit.test_orchestrator import FakeClock

SHORTEST, LOW_LATENCY = by_name("shortest").id, by_name("low-latency").id
SECOND = 1_000_000


def square() -> Topology:
    """1 - 2 - 4 and 1 - 3 - 4: two ways that are meant to be equal."""
    return build(4, *(Link(a, b, latency_us=10_000) for a, b in ((1, 2), (2, 4), (1, 3), (3, 4))))


def standing(interface: int, up: bool | None = True, **measured: Any) -> dict[str, Any]:
    known = {"rtt_us": None, "least_us": None, "jitter_us": None, "loss": None}
    told = {"interface": interface, "neighbour": 0, "up": up, "diagnostic": "why"}
    told |= {"address": f"a{interface}"}
    return {**known, **told, **measured}


# -- what is worth telling -------------------------------------------------------------------------


def test_a_link_as_it_is_meant_to_be_is_no_news() -> None:
    state = LinkState(square(), 1)
    assert state.measure([standing(1, least_us=10_300), standing(2, least_us=9_800)], 0, SECOND)
    assert all(link == LinkReport() for link in state.report.links.values())
    assert not state.measure([standing(1, least_us=10_500)], 0, 10 * SECOND)


def test_a_link_that_is_down_is_told_at_once_and_so_is_its_return() -> None:
    state = LinkState(square(), 1)
    state.measure([standing(1), standing(2)], 0, SECOND)
    assert state.measure([standing(1, up=False), standing(2)], 0, SECOND + 1)
    assert not state.report.links[1].up
    assert state.measure([standing(1), standing(2)], 0, SECOND + 2)
    assert state.report.links[1].up


def test_a_link_not_known_yet_counts_as_up() -> None:
    state = LinkState(square(), 1)
    state.measure([standing(1, up=None)], 0, SECOND)
    assert state.report.links[1].up


def test_a_link_that_is_slower_than_meant_is_told_at_once_then_seldom() -> None:
    state = LinkState(square(), 1)
    assert state.measure([standing(1, least_us=50_000)], 0, SECOND)
    assert state.report.links[1].latency_us == 50_000
    told = [
        at
        for at in range(1, 60)
        if state.measure([standing(1, least_us=50_000 + 300 * at)], 0, SECOND + at * SECOND // 2)
    ]
    assert all(later - earlier >= 10 for earlier, later in itertools.pairwise(told))
    assert told


@given(st.integers(0, 1000))
@settings(max_examples=25, deadline=None)
def test_noise_never_moves_traffic_between_equal_paths(seed: int) -> None:
    rng = random.Random(seed)
    topology = square()
    watch = Observatory(topology)
    states = {node: LinkState(topology, node) for node in (1, 2, 3, 4)}
    before = compute_table(topology, 1, 1).lookup(4, LOW_LATENCY)
    assert len(before) == 2
    for second in range(1, 120):
        for state in states.values():
            noisy = [
                standing(at, least_us=round(rng.gauss(10_000, LATENCY.absolute / 4)))
                for at in (1, 2)
            ]
            state.measure(noisy, 0, second * SECOND)
        seen = watch.observe(state.report for state in states.values())
        assert compute_table(seen, 1, 1).lookup(4, LOW_LATENCY) == before


# -- what follows from reports ---------------------------------------------------------------------


def test_either_end_can_take_a_link_away() -> None:
    topology = square()
    for reporter in (
        NodeReport(1, {1: LinkReport(up=False)}),
        NodeReport(2, {1: LinkReport(False)}),
    ):
        seen = Observatory(topology).observe([reporter])
        assert [(link.a, link.b) for link in seen.links] == [(2, 4), (1, 3), (3, 4)]


def test_the_mean_of_both_delays_holds_and_the_worse_of_both_losses() -> None:
    reports = [
        NodeReport(1, {1: LinkReport(latency_us=20_000, loss=0.1)}),
        NodeReport(2, {1: LinkReport(latency_us=40_000, loss=0.2, jitter_us=7)}),
    ]
    link = Observatory(square()).observe(reports).links[0]
    assert (link.latency_us, link.loss, link.jitter_us) == (30_000, 0.2, 7)


def test_nothing_said_is_nothing_changed_and_the_same_objects_stay() -> None:
    topology = square()
    watch = Observatory(topology)
    assert watch.observe([NodeReport(1, {1: LinkReport()}), NodeReport(77)]) is topology
    slow = [NodeReport(1, {1: LinkReport(latency_us=99_000)}, load=0.5)]
    first, second = watch.observe(slow), watch.observe(slow)
    assert first.links[0] is second.links[0]
    assert first.links[1] is topology.links[1]
    assert first.node(1).load == 0.5
    assert first.nodes[0] is second.nodes[0]


def test_reports_come_back_as_they_were() -> None:
    report = NodeReport(3, {2: LinkReport(False, 5, None, 0.25), 1: LinkReport()}, 0.75)
    assert NodeReport.from_json(report.to_json()) == report


@pytest.mark.parametrize(
    "document",
    [
        None,
        {},
        {"node": 1},
        {"node": "x", "links": {}},
        {"node": 1, "links": {"1": None}},
        {"node": 1, "links": {"1": {"up": 1}}},
        {"node": 1, "links": {"1": {"loss": 1}}},
        {"node": 1, "links": {"1": {"latency_us": -1}}},
        {"node": 1, "links": {"one": {}}},
    ],
)
def test_a_report_that_cannot_be_is_refused(document: Any) -> None:
    with pytest.raises(ConfigError):
        NodeReport.from_json(document)


# -- the keeper ------------------------------------------------------------------------------------


class Kept:
    """One keeper and what came of it."""

    def __init__(self, node: int = 1) -> None:
        topology = square()
        self.installed: list[tuple[Topology, ForwardingTable]] = []
        self.published: list[NodeReport] = []
        self.events = EventLog(f"n{node}", FakeClock().unix_us)
        config = HostConfig(
            lab="t", host=f"n{node}", node=node, bridge="b", guest_interface="guests",
            overlay_addresses=(), overlay_prefixes=(), topology=topology.to_json(),
        )  # fmt: skip
        self.keeper = TopologyKeeper(
            config,
            topology,
            compute_table(topology, node, table_version(topology)),
            install=lambda seen, table: self.installed.append((seen, table)),
            events=self.events,
            clock=FakeClock(),
        )
        self.keeper.publish = self.published.append
        self.keeper.share(True)

    def names(self) -> list[str]:
        return [event.name for event in self.events.since(0)]

    def hear(self, *links: Mapping[str, Any]) -> None:
        self.keeper.on_links({"links": list(links), "late_us": 0}, load=0.0)


def run(story: Any) -> None:
    asyncio.run(story)


def test_a_dead_link_of_ones_own_is_told_at_once_and_leaves_the_table_when_others_know(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(topology_keeper, "CONVERGENCE", 5 * SETTLE)

    async def story() -> None:
        kept = Kept()
        kept.hear(standing(1), standing(2))
        assert kept.installed == []
        await asyncio.sleep(2 * SETTLE)
        kept.hear(standing(1, up=False), standing(2))
        assert not kept.published[-1].links[1].up
        assert kept.keeper.down == ("a1",)
        assert "link-down" in kept.names()
        # Others' news do not take it out early.
        kept.keeper.on_reports([NodeReport(3, {1: LinkReport(latency_us=90_000)})])
        await asyncio.sleep(2 * SETTLE)
        assert [hop.node for hop in kept.keeper.table.lookup(4, SHORTEST)] == [2, 3]
        await asyncio.sleep(8 * SETTLE)
        assert [hop.node for hop in kept.keeper.table.lookup(4, SHORTEST)] == [3]
        assert table_version(kept.keeper.topology) == kept.keeper.table.version
        kept.hear(standing(1), standing(2))
        assert kept.names()[-1] == "link-up"
        await asyncio.sleep(2 * SETTLE)
        assert [hop.node for hop in kept.keeper.table.lookup(4, SHORTEST)] == [2, 3]
        kept.keeper.close()

    run(story())


def test_a_neighbour_that_lost_the_link_to_here_is_as_good_as_ones_own_word(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(topology_keeper, "CONVERGENCE", 5 * SETTLE)

    async def story() -> None:
        kept = Kept()
        await asyncio.sleep(2 * SETTLE)
        kept.keeper.on_reports([NodeReport(2, {1: LinkReport(up=False)})])
        await asyncio.sleep(2 * SETTLE)
        assert kept.installed == []  # its agents are to repair, when they notice
        await asyncio.sleep(8 * SETTLE)
        assert [hop.node for hop in kept.keeper.table.lookup(4, SHORTEST)] == [3]
        kept.keeper.close()

    run(story())


def test_without_a_store_tables_stay_and_on_its_return_everything_converges() -> None:
    async def story() -> None:
        kept = Kept()
        kept.keeper.share(False)
        report = NodeReport(2, {2: LinkReport(up=False)})
        kept.keeper.on_reports([report])
        await asyncio.sleep(2 * SETTLE)
        assert kept.installed == []
        before = len(kept.published)
        kept.keeper.share(True)
        await asyncio.sleep(2 * SETTLE)
        assert len(kept.published) == before + 1
        assert [hop.node for hop in kept.keeper.table.lookup(4, SHORTEST)] == [3]
        assert [name for name in kept.names() if name.startswith("store")] == [
            "store-connected",
            "store-lost",
            "store-connected",
        ]

    run(story())


def test_reports_of_one_event_make_two_tables_at_most() -> None:
    async def story() -> None:
        kept = Kept()
        await asyncio.sleep(2 * SETTLE)
        for node, interface in ((4, 1), (2, 2), (4, 2), (3, 2)):  # none of them node 1's own
            down = {interface: LinkReport(up=False)}
            kept.keeper.on_reports([NodeReport(node, down)])
        assert len(kept.installed) == 1
        await asyncio.sleep(3 * SETTLE)
        assert len(kept.installed) == 2
        assert kept.keeper.table.lookup(4, SHORTEST) == ()

    run(story())


def test_hosts_that_see_the_same_have_the_same_version() -> None:
    async def story() -> None:
        one, other = Kept(1), Kept(3)
        report = NodeReport(2, {2: LinkReport(up=False)})
        one.keeper.on_reports([report])
        other.keeper.on_reports([report])
        assert one.keeper.table.version == other.keeper.table.version

    run(story())


def test_what_others_say_of_oneself_is_not_believed() -> None:
    async def story() -> None:
        kept = Kept()
        kept.keeper.on_reports([NodeReport(1, {1: LinkReport(up=False)})])
        assert kept.installed == []

    run(story())


def test_a_host_that_left_carries_nothing_until_it_is_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(topology_keeper, "CONVERGENCE", 3 * SETTLE)

    async def story() -> None:
        kept = Kept()
        word = NodeReport(2, {1: LinkReport(), 2: LinkReport()})
        kept.keeper.on_reports([word])
        await asyncio.sleep(2 * SETTLE)
        assert kept.keeper.topology == square()
        kept.keeper.on_reports([], gone=[2, 3])  # of 3 nobody ever heard
        await asyncio.sleep(6 * SETTLE)
        assert [hop.node for hop in kept.keeper.table.lookup(4, SHORTEST)] == [3]
        assert kept.keeper.table.lookup(2, SHORTEST) == ()
        kept.keeper.on_reports([word])
        await asyncio.sleep(2 * SETTLE)
        assert [hop.node for hop in kept.keeper.table.lookup(4, SHORTEST)] == [2, 3]
        kept.keeper.close()

    run(story())


def test_a_watch_that_is_gone_is_told_and_its_last_word_holds() -> None:
    async def story() -> None:
        kept = Kept()
        kept.hear(standing(1, up=False), standing(2))
        kept.keeper.on_silence()
        assert kept.names()[-1] == "links-unwatched"
        assert kept.keeper.down == ("a1",)
        kept.keeper.close()

    run(story())
