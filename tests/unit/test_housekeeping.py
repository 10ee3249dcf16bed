"""What differs is mended, each thing by its own means, and what is not ours is left alone."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from fabric.host.control import vigil
from fabric.host.guest import endings
from fabric.host.journal import GUEST_KIND, Journal
from fabric.host.upkeep.housekeeping import Housekeeper
from fabric.host.upkeep.reaper import Verb
from fabric.host.vmm.domain_xml import OwnerMark
from fabric.wire.control import Configure
from fabric.wire.inner import FiveTuple
from tests.unit.host_world import INGREDIENTS, Life, Machine, machine, until
from tests.unit.test_orchestrator import data, syn

STRAY = FiveTuple(4, 6, "10.77.0.1", 9, "10.77.0.3", 9)
MARK = OwnerMark("demo", "h1", 9, 7, 0)


def story(directory: Path, tell: Callable[[Machine, Life], Awaitable[Life | None]]) -> None:
    """A host with one established connection, in order at the beginning and at the end, even if
    ``tell`` puts another life in the place of the first."""

    async def within() -> None:
        async with asyncio.timeout(30), machine(directory) as made:
            life = Life(made)
            await life.start()
            life.miss(syn())
            await until(life.works)
            assert await keeper(life).run() == []
            life = await tell(made, life) or life
            assert await keeper(life).run() == [], "one comparison mends everything"
            assert life.works()
            await life.host.close()
            assert made.left() == []

    asyncio.run(within())


def keeper(life: Life) -> Housekeeper:
    return life.host.housekeeper


def slot_of_works(life: Life) -> int:
    return life.guest().index


def domain(made: Machine, _life: Life) -> None:
    made.hypervisor.domains["fabric-demo-h1-g9"] = MARK


def flow(made: Machine, life: Life) -> None:
    made.steering.flows[STRAY] = slot_of_works(life)


def connection(made: Machine, life: Life) -> None:
    made.steering.connections[77] = slot_of_works(life)


def lost_flow(made: Machine, _life: Life) -> None:
    made.steering.flows.clear()


def astray(made: Machine, life: Life) -> None:
    made.steering.connections[life.connections()[0].id] = 5


def rules(made: Machine, _life: Life) -> None:
    neighbours = dict(made.steering.guests)
    made.steering.remove()
    made.steering.guests = neighbours


def neighbour(made: Machine, _life: Life) -> None:
    made.steering.guests[9] = "02:fa:00:00:00:09"


def lost_neighbour(made: Machine, life: Life) -> None:
    made.steering.guests[slot_of_works(life)] = ""


def channel(made: Machine, _life: Life) -> None:
    (made.config.host_dir / "g9.channel").touch()


def record(made: Machine, _life: Life) -> None:
    (made.config.host_dir / "connections" / f"{77:016x}.json").touch()


def lost_record(made: Machine, _life: Life) -> None:
    for path in (made.config.host_dir / "connections").iterdir():
        path.unlink()


def draft(made: Machine, _life: Life) -> None:
    directory = Path(made.config.template_dir)
    directory.mkdir(mode=0o711)
    (directory / f".draft-{INGREDIENTS.key}").mkdir()


@pytest.mark.parametrize(
    ("disturb", "verbs"),
    [
        (domain, [Verb.DESTROY]),
        (flow, [Verb.UNSTEER]),
        (connection, [Verb.UNSTEER]),
        (lost_flow, [Verb.STEER]),
        (astray, [Verb.STEER]),
        (rules, [Verb.INSTALL, Verb.STEER]),
        (neighbour, [Verb.DETACH]),
        (lost_neighbour, [Verb.ATTACH]),
        (channel, [Verb.UNLINK]),
        (record, [Verb.FORGET]),
        (lost_record, [Verb.RECORD]),
        (draft, [Verb.ABANDON]),
    ],
)
def test_a_difference_is_told_mended_and_told_again(
    tmp_path: Path, disturb: Callable[[Machine, Life], None], verbs: list[Verb]
) -> None:
    async def tell(made: Machine, life: Life) -> None:
        disturb(made, life)
        planned = await keeper(life).run(dry_run=True)
        assert [action.verb for action in planned] == verbs
        assert "reaped" not in life.names(), "a dry run only tells"
        assert await keeper(life).run() == planned
        told = [(fields["verb"], fields["what"], fields["why"]) for fields in life.told("reaped")]
        assert told == [(a.verb.value, a.what, a.why) for a in planned]

    story(tmp_path, tell)


def test_a_journal_entry_of_nobody_is_looked_after(tmp_path: Path) -> None:
    async def tell(made: Machine, life: Life) -> Life:
        await life.bury()
        with Journal(made.config.host_dir / "journal.jsonl") as journal:
            journal.intend(GUEST_KIND, "fabric-demo-h1-g9")
        after = Life(made)
        assert (await after.start()).ended == 1
        await until(lambda: not [x for x in made.left() if x.startswith("journal") and "g9" in x])
        return after

    story(tmp_path, tell)


def test_domains_without_our_mark_and_of_other_hosts_are_left_alone(tmp_path: Path) -> None:
    async def tell(made: Machine, life: Life) -> None:
        others = {
            "fabric-demo-h1-g8": None,
            "fabric-demo-h2-g9": OwnerMark("demo", "h2", 9, 7, 0),
            "fabric-else-h1-g9": OwnerMark("else", "h1", 9, 7, 0),
        }
        made.hypervisor.domains |= others
        assert await keeper(life).run() == []
        for name in others:
            del made.hypervisor.domains[name]

    story(tmp_path, tell)


def test_a_guest_libvirt_forgot_is_lost_at_the_second_look_only(tmp_path: Path) -> None:
    async def tell(made: Machine, life: Life) -> None:
        forgotten = life.guest()
        mark = made.hypervisor.domains.pop(forgotten.name)
        assert await keeper(life).run() == [], "libvirtd may have just come back"
        made.hypervisor.domains[forgotten.name] = mark
        assert await keeper(life).run() == []
        del made.hypervisor.domains[forgotten.name]
        assert await keeper(life).run() == []
        (action,) = await keeper(life).run()
        assert action.verb is Verb.LOSE
        await until(lambda: life.works() and life.guest() is not forgotten)

    story(tmp_path, tell)


def test_while_libvirt_is_silent_nothing_of_its_is_touched(tmp_path: Path) -> None:
    async def tell(made: Machine, life: Life) -> None:
        domain(made, life)
        made.hypervisor.patience, made.hypervisor.down = 0.0, True
        assert await keeper(life).run() == []
        made.hypervisor.come_back()
        assert [a.verb for a in await keeper(life).run()] == [Verb.DESTROY]

    story(tmp_path, tell)


def test_what_cannot_be_mended_is_told_and_the_rest_goes_on(tmp_path: Path) -> None:
    async def tell(made: Machine, life: Life) -> None:
        (made.config.host_dir / "g9.channel").mkdir()  # unlinking a directory fails
        record(made, life)
        assert {a.verb for a in await keeper(life).run()} == {Verb.UNLINK, Verb.FORGET}
        (failed,) = life.told("reap-failed")
        assert failed["verb"] == "unlink" and failed["reason"]
        assert [fields["verb"] for fields in life.told("reaped")] == ["forget"]
        (made.config.host_dir / "g9.channel").rmdir()

    story(tmp_path, tell)


def test_a_host_that_ends_compares_no_more(tmp_path: Path) -> None:
    async def tell(made: Machine, life: Life) -> Life:
        await life.host.close()
        channel(made, life)
        assert await keeper(life).run() == []
        (made.config.host_dir / "g9.channel").unlink()
        after = Life(made)
        await after.start()
        after.miss(syn())
        await until(after.works)
        return after

    story(tmp_path, tell)


def test_there_is_something_to_do_for_every_verb(tmp_path: Path) -> None:
    async def tell(_made: Machine, life: Life) -> None:
        assert set(keeper(life)._doers) == set(Verb)

    story(tmp_path, tell)


# -- agents that fell silent -----------------------------------------------------------------------


def test_a_silent_agents_connection_gets_another_guest(tmp_path: Path) -> None:
    async def tell(made: Machine, life: Life) -> None:
        silent, (connection,) = life.guest(), life.connections()
        made.agents.dead.add(silent.identity.address)
        patience = vigil.QUIET + vigil.PATIENCE["tcg"]
        life.tick(int(patience) - 1)
        assert life.guest() is silent, "not before its time"
        life.tick(3)
        await until(lambda: life.works() and life.guest() is not silent)
        assert "silent for" in life.told("guest-failed")[0]["reason"]
        assert life.connections() == [connection]

    story(tmp_path, tell)


def test_a_quiet_agent_that_answers_stays(tmp_path: Path) -> None:
    async def tell(_made: Machine, life: Life) -> None:
        guest = life.guest()
        for _ in range(60):
            life.machine.clock.now += 1
            life.host.watch.tick()
            await asyncio.sleep(0.002)
        assert life.guest() is guest and life.works()

    story(tmp_path, tell)


def test_a_successor_counts_its_packets_above_the_lost_guest(tmp_path: Path) -> None:
    async def tell(made: Machine, life: Life) -> None:
        made.clock.now = 1.8e9  # some day in 2027
        first = life.guest()
        made.hypervisor.crash(first.name)
        await until(lambda: life.works() and life.guest() is not first)
        made.clock.now += 0.001
        second = life.guest()
        made.hypervisor.crash(second.name)
        await until(lambda: life.works() and life.guest() is not second)
        told = [m.first_sequence for m in made.agents.heard if isinstance(m, Configure)]
        assert len(told) == 3 and told == sorted(set(told))

    story(tmp_path, tell)


def test_packets_for_a_lost_guest_are_held_for_its_successor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endings, "RETRY", 0.02)

    async def tell(made: Machine, life: Life) -> None:
        lost = life.guest()
        made.delivered.clear()
        made.hypervisor.crash(lost.name)
        await until(lambda: not life.works())
        life.miss(data(b"meanwhile"))
        await until(life.works)
        assert made.delivered == [data(b"meanwhile")]

    story(tmp_path, tell)
