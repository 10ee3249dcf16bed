"""Guests come up in order, fail cleanly, and give their slot back only when nothing is left."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from fabric.errors import AgentLost, SpawnFailed
from fabric.host.guest import guest as guest_module
from fabric.host.guest.lifecycle import GuestState
from fabric.host.journal import Journal
from fabric.wire.control import Configure, Counters, Query, encode
from tests.unit.guest_samples import CONFIG
from tests.unit.guest_world import CONNECTION, World, run, until


def test_a_spawned_guest_runs_and_is_configured(tmp_path: Path) -> None:
    async def scenario(w: World) -> None:
        guest = await w.spawn()
        assert guest.state is GuestState.RUNNING
        assert guest.ready is not None and guest.ready.protocol_name == "shortest"
        assert list(w.hypervisor.domains) == ["fabric-demo-h1-g1"]
        assert w.names() == ["guest-spawning", "guest-started", "guest-ready"]
        assert w.agents.pushed == [guest.identity.address]
        assert [m.connection for m in w.agents.heard if isinstance(m, Configure)] == [CONNECTION]
        for phase in ("domain_ms", "boot_ms", "ssh_ms", "agent_ms", "ready_ms", "total_ms"):
            assert guest.phases[phase] >= 0

    run(tmp_path, scenario)


def test_ownership_is_written_before_anything_exists(tmp_path: Path) -> None:
    async def scenario(w: World) -> None:
        seen: list[int] = []
        create = w.hypervisor.create

        def watched(xml: str, *, paused: bool = False) -> Any:
            with Journal(tmp_path / "copy") as copy:
                copy.close()
            (tmp_path / "copy").write_bytes(w.journal.read_bytes())
            with Journal(tmp_path / "copy") as copy:
                seen.append(len(copy.open_entries()))
            return create(xml)

        w.hypervisor.create = watched  # type: ignore[method-assign]
        guest = await w.spawn()
        assert seen == [1]
        await w.manager.destroy(guest)
        with Journal(w.journal) as after:
            assert after.open_entries() == ()

    run(tmp_path, scenario)


def test_messages_go_both_ways_while_the_guest_runs(tmp_path: Path) -> None:
    async def scenario(w: World) -> None:
        guest = await w.spawn()
        guest.send(Query("counters"))
        counters = Counters({"packets_in": 1}, 0, False)
        w.agents.clients[guest.identity.address].write(encode(counters))
        await until(lambda: w.messages == [counters])
        await until(lambda: Query("counters") in w.agents.heard)
        await w.manager.destroy(guest)
        with pytest.raises(AgentLost):
            guest.send(Query("counters"))

    run(tmp_path, scenario)


def test_a_destroyed_guest_is_gone_and_its_slot_is_used_again(tmp_path: Path) -> None:
    async def scenario(w: World) -> None:
        first, second = await w.spawn(1), await w.spawn(2)
        assert (first.index, second.index) == (1, 2)
        await asyncio.gather(w.manager.destroy(first), w.manager.destroy(first))
        await w.manager.destroy(first)
        assert first.state is GuestState.GONE
        assert w.manager.alive() == 1
        assert w.names().count("guest-destroyed") == 1
        assert not first.identity.channel.exists()
        assert (await w.spawn(3)).index == 1

    run(tmp_path, scenario)


def test_a_slot_whose_absence_is_unproven_is_not_used_again(tmp_path: Path) -> None:
    async def scenario(w: World) -> None:
        guest = await w.spawn()
        w.hypervisor.stuck.add(guest.name)
        await w.manager.destroy(guest)
        assert guest.state is GuestState.DESTROYING
        assert "guest-stuck" in w.names()
        assert (await w.spawn(2)).index == 2
        w.hypervisor.stuck.clear()  # closing tries once more

    run(tmp_path, scenario)


def test_a_failed_spawn_is_tried_once_more_in_another_slot(tmp_path: Path) -> None:
    async def scenario(w: World) -> None:
        w.hypervisor.fail_next = 1
        guest = await w.spawn()
        assert guest.state is GuestState.RUNNING
        await until(lambda: w.manager.alive() == 1)
        assert w.names().count("guest-failed") == 1

    run(tmp_path, scenario)


@pytest.mark.parametrize("fault", ["create", "reach", "configure"])
def test_two_failures_are_the_end_and_leave_nothing(tmp_path: Path, fault: str) -> None:
    async def scenario(w: World) -> None:
        if fault == "create":
            w.hypervisor.fail_next = 2
        elif fault == "reach":
            w.agents.unreachable = 2
        else:
            w.agents.refusing = 2
        with pytest.raises(SpawnFailed, match="; then"):
            await w.spawn()
        await until(lambda: w.manager.alive() == 0)
        assert not w.hypervisor.domains
        assert not w.lost

    run(tmp_path, scenario)


def test_an_agent_that_refuses_its_configuration_is_quoted(tmp_path: Path) -> None:
    async def scenario(w: World) -> None:
        w.agents.refusing = 2
        with pytest.raises(SpawnFailed, match="no table"):
            await w.spawn()

    run(tmp_path, scenario)


def test_a_mute_agent_fails_with_its_last_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(guest_module.AGENT_DEADLINES, "tcg", 0.05)

    async def scenario(w: World) -> None:
        w.agents.mute = True
        with pytest.raises(SpawnFailed, match="its last words"):
            await w.spawn()

    run(tmp_path, scenario)


def test_a_guest_that_dies_is_reported_once_and_destroyed(tmp_path: Path) -> None:
    async def scenario(w: World) -> None:
        guest = await w.spawn()
        w.hypervisor.crash(guest.name)
        w.agents.clients[guest.identity.address].close()
        await until(lambda: guest.state is GuestState.GONE)
        assert w.lost == [guest]
        assert w.manager.alive() == 0

    run(tmp_path, scenario)


def test_a_domain_that_dies_during_the_spawn_ends_the_waiting(tmp_path: Path) -> None:
    async def scenario(w: World) -> None:
        w.agents.mute = True
        spawning = asyncio.create_task(w.spawn())
        await until(lambda: len(w.agents.pushed) == 1)
        w.hypervisor.crash("fabric-demo-h1-g1")
        # The second attempt follows at once, not after the agent's deadline.
        await until(lambda: len(w.agents.pushed) == 2)
        spawning.cancel()
        await asyncio.wait({spawning})
        await until(lambda: w.manager.alive() == 0)

    run(tmp_path, scenario)


def test_late_news_of_a_slots_former_domain_does_not_end_its_guest(tmp_path: Path) -> None:
    async def scenario(w: World) -> None:
        former = await w.spawn(1)
        await w.manager.destroy(former)
        guest = await w.spawn(2)
        assert guest.name == former.name
        w.hypervisor.report_stop(guest.name, former.uuid)
        await asyncio.sleep(0.05)
        assert guest.state is GuestState.RUNNING
        w.hypervisor.report_stop(guest.name, guest.uuid)
        await until(lambda: guest.state is GuestState.GONE)
        assert w.lost == [guest]

    run(tmp_path, scenario)


def test_an_abandoned_spawn_leaves_nothing(tmp_path: Path) -> None:
    async def scenario(w: World) -> None:
        w.agents.mute = True
        spawning = asyncio.create_task(w.spawn())
        await until(lambda: bool(w.agents.pushed))
        spawning.cancel()
        with pytest.raises(asyncio.CancelledError):
            await spawning
        await until(lambda: w.manager.alive() == 0)
        assert not w.hypervisor.domains

    run(tmp_path, scenario)


def test_a_name_that_somebody_else_holds_is_left_alone(tmp_path: Path) -> None:
    async def scenario(w: World) -> None:
        await w.manager.start()
        w.hypervisor.domains["fabric-demo-h1-g1"] = None  # the same name, without our mark
        guest = await w.spawn()
        assert guest.index == 2
        await w.manager.destroy(guest)
        await w.manager.close()
        assert list(w.hypervisor.domains) == ["fabric-demo-h1-g1"]

    run(tmp_path, scenario)


def test_leftovers_of_a_former_life_are_ended_first(tmp_path: Path) -> None:
    async def scenario(w: World) -> None:
        with Journal(w.journal) as former:
            former.intend("guest", "fabric-demo-h1-g9")
        w.hypervisor.domains["fabric-demo-h1-g9"] = None
        found = await w.manager.start()
        assert found.ended == 1
        await until(lambda: not w.hypervisor.domains)
        with Journal(w.journal) as after:
            assert after.open_entries() == ()

    run(tmp_path, scenario)


def test_no_more_boots_at_once_than_allowed(tmp_path: Path) -> None:
    async def scenario(w: World) -> None:
        w.agents.mute = True
        spawns = [asyncio.create_task(w.spawn(n)) for n in range(1, 6)]
        await until(lambda: len(w.agents.pushed) == 2)
        await asyncio.sleep(0.1)
        assert len(w.hypervisor.domains) == 2
        for spawn in spawns:
            spawn.cancel()
        await asyncio.wait(spawns)

    run(tmp_path, scenario, boots=2)


def test_the_limit_of_guests_holds(tmp_path: Path) -> None:
    async def scenario(w: World) -> None:
        for connection in range(1, CONFIG.limits.guests + 1):
            await w.spawn(connection)
        with pytest.raises(SpawnFailed, match="slots are taken"):
            await w.spawn(999)

    run(tmp_path, scenario)


def test_closing_ends_every_guest(tmp_path: Path) -> None:
    async def scenario(w: World) -> None:
        await asyncio.gather(*(w.spawn(n) for n in range(1, 4)))
        await w.manager.close()
        assert not w.hypervisor.domains
        assert w.manager.alive() == 0
        with pytest.raises(SpawnFailed):
            await w.spawn()

    run(tmp_path, scenario)
