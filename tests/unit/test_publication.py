"""Reports through a store: who hears of whom, and what a lost store costs."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable

import pytest

from fabric.host.control import publication, topology_keeper
from fabric.host.control.publication import Publication
from fabric.host.store.memory import MemoryStore, Place
from tests.unit.test_link_state import SHORTEST, Kept, standing

PATIENCE = 5.0


class Member:
    """One host with a session of its own."""

    def __init__(self, place: Place, node: int, holder: str = "") -> None:
        self.kept = Kept(node)
        self.kept.keeper.share(False)
        self.store = MemoryStore(place)
        self.publication = Publication(self.kept.keeper, self.store, self.kept.events, holder)
        self.task = asyncio.create_task(self.publication.run())

    def hops(self, to: int) -> list[int]:
        return [hop.node for hop in self.kept.keeper.table.lookup(to, SHORTEST)]

    async def leave(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        self.kept.keeper.close()


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Others are given fractions of a second to converge, and to come back."""
    monkeypatch.setattr(topology_keeper, "CONVERGENCE", 0.05)
    monkeypatch.setattr(publication, "RETURN", 0.3)


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not holds():
            await asyncio.sleep(0.005)


def test_a_word_reaches_the_others_and_a_lost_store_freezes_what_was_heard() -> None:
    async def story() -> None:
        place = Place()
        one, two, four = (Member(place, node) for node in (1, 2, 4))
        for member in (one, two, four):
            member.kept.hear(standing(1), standing(2))
        await until(lambda: one.kept.keeper.reports.keys() == {1, 2, 4})
        assert one.hops(4) == [2, 3]
        two.kept.hear(standing(1), standing(2, up=False))
        await until(lambda: one.hops(4) == [3])
        place.lose()
        await until(lambda: "store-lost" in one.kept.names()[-1:])
        two.kept.hear(standing(1), standing(2))
        four.kept.hear(standing(1, up=False), standing(2, up=False))
        await asyncio.sleep(0.1)
        assert one.hops(4) == [3]
        # It comes back empty: everybody says its word again, and nobody counts as gone meanwhile.
        place.values.clear()
        four.kept.hear(standing(1), standing(2))
        place.lose(False)
        for member in (one, two, four):
            await member.store.put(
                f"links/{member.kept.keeper.report.node}",
                json.dumps(member.kept.keeper.report.to_json()).encode(),
            )
        await until(lambda: one.hops(4) == [2, 3])
        await two.leave()
        await until(lambda: one.hops(4) == [3])
        await one.leave()
        await four.leave()

    asyncio.run(story())


def test_what_is_no_report_is_told_once_and_harms_nobody() -> None:
    async def story() -> None:
        place = Place()
        one, other = Member(place, 1), MemoryStore(place)
        await other.put("links/3", b"not json")
        await other.put("links/2", b'{"node": 2, "links": {"2": {"up": false}}}')
        await other.put("elsewhere", b"{}")
        await until(lambda: one.hops(4) == [3])
        await other.put("elsewhere", b"again")
        await asyncio.sleep(0.05)
        assert one.kept.names().count("report-refused") == 1
        await one.leave()

    asyncio.run(story())


def told(place: Place, node: int) -> bytes:
    return place.values.get(f"links/{node}", (0, b""))[1]


def test_of_two_hosts_with_one_id_the_first_goes_on_and_the_other_waits() -> None:
    async def story() -> None:
        place = Place()
        four, first = Member(place, 4, "host four"), Member(place, 1, "host one")
        first.kept.hear(standing(1), standing(2))
        four.kept.hear(standing(1), standing(2))
        await until(lambda: bool(told(place, 1)) and four.kept.keeper.reports.keys() == {1, 4})
        word = told(place, 1)
        second = Member(place, 1, "a stranger")
        second.kept.hear(standing(1, up=False), standing(2))
        await until(lambda: "node-taken" in second.kept.names())
        (event,) = [e for e in second.kept.events.since(0) if e.name == "node-taken"]
        assert event.fields["holder"] == "host one"
        second.kept.hear(standing(1), standing(2, up=False))
        await asyncio.sleep(0.05)
        assert told(place, 1) == word
        assert "node-taken" not in first.kept.names()
        first.kept.hear(standing(1, up=False), standing(2))
        await until(lambda: told(place, 1) != word)
        await first.leave()
        await until(lambda: "node-free" in second.kept.names() and bool(told(place, 1)))
        assert json.loads(told(place, 1))["links"]["2"] == {"up": False}
        await second.leave()
        await four.leave()

    asyncio.run(story())


def test_of_two_that_come_at_once_one_goes_on_with_its_own_word() -> None:
    async def story() -> None:
        place = Place()
        rivals = [Member(place, 1, f"host {name}") for name in "ab"]
        rivals[0].kept.hear(standing(1, up=False), standing(2))
        rivals[1].kept.hear(standing(1), standing(2, up=False))
        await until(lambda: any("node-taken" in each.kept.names() for each in rivals))
        await asyncio.sleep(0.1)
        (ahead,) = [each for each in rivals if "node-taken" not in each.kept.names()]
        report = ahead.kept.keeper.report.to_json()
        assert {**json.loads(told(place, 1)), "holder": ""} == {**report, "holder": ""}
        for each in rivals:
            await each.leave()

    asyncio.run(story())


def test_a_host_that_was_killed_and_started_again_is_still_itself() -> None:
    async def story() -> None:
        place = Place()
        killed = Member(place, 1, "host one")
        killed.kept.hear(standing(1), standing(2))
        await until(lambda: bool(told(place, 1)))
        again = Member(place, 1, "host one")  # the lease of the one before still runs
        again.kept.hear(standing(1, up=False), standing(2))
        await until(lambda: b'"up":false' in told(place, 1))
        assert "node-taken" not in again.kept.names()
        await again.leave()
        await killed.leave()

    asyncio.run(story())


def test_hosts_that_restart_together_do_not_take_each_other_for_gone() -> None:
    """All were killed; one is back, and another's lease ends before that one is back, too."""

    async def story() -> None:
        place = Place()
        killed = MemoryStore(place)
        await killed.put("links/2", b'{"node": 2, "links": {"1": {"up": true}, "2": {"up": true}}}')
        one = Member(place, 1)
        one.kept.hear(standing(1), standing(2))
        await until(lambda: 2 in one.kept.keeper.reports)
        await killed.close()
        await asyncio.sleep(0.1)
        assert one.hops(4) == [2, 3]
        await until(lambda: one.hops(4) == [3])  # it does not come back
        await one.leave()

    asyncio.run(story())
