"""A tier that cannot be had costs time and an event, never the application's connection."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from fabric.host.config import PoolConfig
from fabric.host.guest import copies, pool, template_keeper
from fabric.host.guest.guests import Guest
from fabric.host.guest.ingredients import Ingredients
from fabric.host.guest.lifecycle import GuestState
from fabric.host.guest.pool import wanted
from fabric.host.guest.supply import WAKES_PER_CPU
from fabric.host.guest.template import TemplateStore
from fabric.host.guest.template_archive import TemplateArchive
from fabric.host.journal import Journal
from fabric.wire.control import Configure, Identify
from tests.unit.guest_samples import configure
from tests.unit.guest_world import World, run, until

MADE_OF = Ingredients("image", "boot", "agent", "qemu 7", "microvm", "tcg", "layout", 1)


def store(directory: Path) -> TemplateStore:
    return TemplateStore(directory / "templates", MADE_OF)


def fallbacks(w: World) -> list[dict[str, Any]]:
    return [fields for name, _, fields in w.events if name == "tier-fallback"]


async def ready(w: World, count: int = 1) -> None:
    """Until the template was made (or found) for the ``count``-th time."""
    await w.manager.start()
    await until(lambda: [name for name, _ in w.notices].count("template-ready") >= count)


def test_a_copy_is_created_paused_loaded_and_resumed(tmp_path: Path) -> None:
    async def scenario(w: World) -> None:
        await ready(w)
        w.hypervisor.log.clear()
        guest = await w.spawn()
        assert (guest.tier, guest.state) == ("template", GuestState.RUNNING)
        assert [verb for verb, name in w.hypervisor.log if name == guest.name] == [
            "create", "arm", "wake",
        ]  # fmt: skip
        assert guest.name not in w.hypervisor.paused
        assert "share=off" in w.hypervisor.xml[guest.name]
        assert len(w.agents.pushed) == 1, "only the template's guest was provisioned"
        for phase in ("queue_ms", "domain_ms", "arm_ms", "state_ms", "ready_ms", "total_ms"):
            assert guest.phases[phase] >= 0
        # A fake agent is as quick as the news of its waking up.
        started, *between, last = w.names()[-4:]
        assert (started, last) == ("guest-started", "guest-ready")
        assert set(between) == {"guest-resumed", "guest-identified"}

    run(tmp_path, scenario, templates=store(tmp_path))


def test_copies_get_an_identity_and_randomness_of_their_own(tmp_path: Path) -> None:
    async def scenario(w: World) -> None:
        await ready(w)
        guests: list[Guest] = [await w.spawn(1), await w.spawn(2)]
        told = [message for message in w.agents.heard if isinstance(message, Identify)]
        assert [message.mac for message in told] == [guest.identity.mac for guest in guests]
        assert len({message.address for message in told}) == 2
        assert len({message.entropy for message in told}) == 2
        assert all(len(bytes.fromhex(message.entropy)) == 32 for message in told)
        assert guests[0].sample != guests[1].sample

    run(tmp_path, scenario, templates=store(tmp_path))


def test_a_template_is_saved_before_any_connection_is_known(tmp_path: Path) -> None:
    async def scenario(w: World) -> None:
        await ready(w)
        assert not [message for message in w.agents.heard if isinstance(message, Configure)]
        assert not w.hypervisor.domains, "its guest is gone"
        assert w.manager.alive() == 0
        with Journal(w.journal) as journal:
            assert journal.open_entries() == ()

    run(tmp_path, scenario, templates=store(tmp_path))


def test_a_template_that_is_there_is_not_made_again(tmp_path: Path) -> None:
    run(tmp_path, ready, templates=store(tmp_path))

    async def scenario(w: World) -> None:
        await ready(w)
        assert w.notices[0][1]["found"]
        assert (await w.spawn()).tier == "template"
        assert not w.agents.pushed

    run(tmp_path, scenario, templates=store(tmp_path))


def test_requests_before_the_template_is_there_boot_cold(tmp_path: Path) -> None:
    async def scenario(w: World) -> None:
        guest = await w.spawn()
        assert guest.tier == "cold"
        assert fallbacks(w) == [
            {"from": "template", "to": "cold", "reason": template_keeper.BEING_MADE}
        ]
        await ready(w)
        assert (await w.spawn(2)).tier == "template"

    run(tmp_path, scenario, templates=store(tmp_path))


def test_the_templates_guest_costs_no_connection_its_place(tmp_path: Path) -> None:
    async def scenario(w: World) -> None:
        w.agents.mute = True
        await w.manager.start()
        await until(lambda: len(w.hypervisor.domains) == 1)
        assert w.manager.alive() == 0

    run(tmp_path, scenario, templates=store(tmp_path))


def test_a_copy_that_fails_is_followed_by_a_cold_boot(tmp_path: Path) -> None:
    async def scenario(w: World) -> None:
        await ready(w)
        w.hypervisor.fail_loading = 1
        guest = await w.spawn()
        assert guest.tier == "cold"
        (fallback,) = fallbacks(w)
        assert (fallback["from"], fallback["to"]) == ("template", "cold")
        assert "told to fail" in fallback["reason"]
        await until(lambda: w.manager.alive() == 1)
        assert list(w.hypervisor.domains) == [guest.name]

    run(tmp_path, scenario, templates=store(tmp_path))


def test_a_copy_that_is_somebody_else_is_not_used(tmp_path: Path) -> None:
    async def scenario(w: World) -> None:
        await ready(w)
        w.agents.confused = True
        assert (await w.spawn()).tier == "cold"
        assert "it says it is 02:00:00:00:00:00" in fallbacks(w)[0]["reason"]

    run(tmp_path, scenario, templates=store(tmp_path))


def test_a_copy_that_shows_behind_its_first_packet_to_be_somebody_else_is_lost(
    tmp_path: Path,
) -> None:
    async def scenario(w: World) -> None:
        await ready(w)
        w.agents.confused = w.agents.late = True
        guest = await w.spawn()
        assert guest.tier == "template"
        await until(lambda: w.lost == [guest])
        (failed,) = [fields for name, _, fields in w.events if name == "guest-failed"]
        assert "it says it is 02:00:00:00:00:00" in failed["reason"]
        await until(lambda: not w.hypervisor.domains)

    run(tmp_path, scenario, templates=store(tmp_path))


def test_a_template_whose_copies_keep_failing_is_made_anew(tmp_path: Path) -> None:
    async def scenario(w: World) -> None:
        await ready(w)
        first = store(tmp_path).find()
        w.hypervisor.fail_loading = template_keeper.MAX_FAILURES
        for connection in range(1, template_keeper.MAX_FAILURES + 1):
            assert (await w.spawn(connection)).tier == "cold"
        await ready(w, 2)
        assert store(tmp_path).find() != first
        assert (await w.spawn(99)).tier == "template"

    run(tmp_path, scenario, templates=store(tmp_path))


def test_a_template_that_vanished_is_made_anew(tmp_path: Path) -> None:
    async def scenario(w: World) -> None:
        await ready(w)
        found = store(tmp_path).find()
        assert found is not None
        found.memory.unlink()
        assert (await w.spawn(1)).tier == "cold"
        await ready(w, 2)
        assert (await w.spawn(2)).tier == "template"

    run(tmp_path, scenario, templates=store(tmp_path))


def test_a_guest_that_keeps_an_address_becomes_no_template(tmp_path: Path) -> None:
    async def scenario(w: World) -> None:
        w.agents.clinging = True
        await w.manager.start()
        await until(lambda: bool(w.notices))
        assert w.notices[0][0] == "template-failed"
        assert "it kept 10.0.0.1/8" in w.notices[0][1]["reason"]
        assert store(tmp_path).find() is None
        guest = await w.spawn()
        assert guest.tier == "cold"
        assert "could not be made" in fallbacks(w)[0]["reason"]
        assert list(w.hypervisor.domains) == [guest.name]

    run(tmp_path, scenario, templates=store(tmp_path))


def test_a_disk_that_fills_while_a_template_is_saved_ends_the_attempt_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(template_keeper, "MAKING_PAUSE", 0.05)

    async def scenario(w: World) -> None:
        save = w.hypervisor.save_state

        def full(name: str, path: Path) -> None:
            w.hypervisor.save_state = save  # type: ignore[method-assign]
            raise OSError(errno.ENOSPC, "No space left on device")

        w.hypervisor.save_state = full  # type: ignore[method-assign]
        await ready(w)
        assert [name for name, _ in w.notices] == ["template-failed", "template-ready"]
        assert "no room for a template" in w.notices[0][1]["reason"]
        assert (await w.spawn()).tier == "template"

    run(tmp_path, scenario, templates=store(tmp_path))


def test_a_template_whose_state_vanished_costs_time_only(tmp_path: Path) -> None:
    async def scenario(w: World) -> None:
        await ready(w)
        found = store(tmp_path).find()
        assert found is not None
        found.state.unlink()
        assert (await w.spawn()).tier == "cold"
        assert "state: No such file" in fallbacks(w)[0]["reason"]

    run(tmp_path, scenario, templates=store(tmp_path))


def test_closing_while_the_template_is_made_leaves_nothing(tmp_path: Path) -> None:
    async def scenario(w: World) -> None:
        w.agents.mute = True
        await w.manager.start()
        await until(lambda: bool(w.agents.pushed))
        await w.manager.close()
        assert not w.hypervisor.domains
        left = {path.name for path in (tmp_path / "templates").iterdir()}
        assert left == {f"{MADE_OF.key}.lock"}

    run(tmp_path, scenario, templates=store(tmp_path))


def pooled(*kinds: str, tier: str = "", **pool: int) -> dict[str, Any]:
    """Options of a world whose host keeps guests of these kinds ready."""
    size = PoolConfig(**{"minimum": 1, "maximum": 4, "memory_floor_mib": 0, **pool})
    return {"pooled": kinds, "config": {"tier": tier or kinds[0], "pool": size}}


async def kept(w: World, kind: str, count: int = 1) -> None:
    await w.manager.start()
    await until(lambda: w.manager.kept_ready()[kind] == count)


def test_a_prepared_guest_waits_paused_and_the_request_wakes_it(tmp_path: Path) -> None:
    async def scenario(w: World) -> None:
        await kept(w, "prepared")
        (name,) = w.hypervisor.paused
        assert w.manager.alive() == 0, "it is no connection's yet"
        w.hypervisor.log.clear()
        guest = await w.spawn()
        assert (guest.name, guest.tier, guest.state) == (name, "prepared", GuestState.RUNNING)
        assert [verb for verb, who in w.hypervisor.log if who == name] == ["wake"]
        assert w.manager.alive() == 1

    run(tmp_path, scenario, templates=store(tmp_path), **pooled("prepared"))


def test_a_warm_guest_runs_already_and_only_learns_its_connection(tmp_path: Path) -> None:
    async def scenario(w: World) -> None:
        await kept(w, "warm")
        assert not w.hypervisor.paused
        w.hypervisor.log.clear()
        guest = await w.spawn()
        assert (guest.tier, guest.state) == ("warm", GuestState.RUNNING)
        assert not [verb for verb, who in w.hypervisor.log if who == guest.name]

    run(tmp_path, scenario, templates=store(tmp_path), **pooled("warm"))


def test_an_empty_pool_costs_an_event_and_a_slower_tier(tmp_path: Path) -> None:
    async def scenario(w: World) -> None:
        await kept(w, "prepared")
        guests = await asyncio.gather(w.spawn(1), w.spawn(2))
        assert {guest.tier for guest in guests} == {"prepared", "template"}
        (fallback,) = fallbacks(w)
        assert (fallback["from"], fallback["to"]) == ("prepared", "template")
        assert fallback["reason"] == copies.EMPTY_POOL

    run(tmp_path, scenario, templates=store(tmp_path), **pooled("prepared"))


def test_a_burst_is_served_in_order_of_arrival(tmp_path: Path) -> None:
    async def scenario(w: World) -> None:
        await kept(w, "prepared", 4)
        guests = await asyncio.gather(*(w.spawn(number) for number in range(1, 5)))
        claimed = [guest for name, guest, _ in w.events if name == "guest-claimed"]
        assert claimed == [guest.name for guest in guests]
        # Some wake up at once, in threads: which is first there is chance.
        woken = {name for verb, name in w.hypervisor.log if verb == "wake"}
        assert woken == set(claimed)
        assert [name for name, _, _ in w.events].count("guest-ready") == 4

    run(tmp_path, scenario, templates=store(tmp_path), **pooled("prepared", minimum=4))


def test_copies_are_made_for_requests_behind_those_that_came_before(tmp_path: Path) -> None:
    """As many are ready-made as may wake up at once; the next request's copy is not even begun
    before one of them is awake."""
    ready_made = WAKES_PER_CPU * (os.cpu_count() or 1)

    async def scenario(w: World) -> None:
        await kept(w, "prepared", ready_made)
        w.hypervisor.log.clear()
        w.hypervisor.may_wake.clear()
        spawns = [asyncio.create_task(w.spawn(number)) for number in range(ready_made + 1)]
        try:
            await until(lambda: [n for n, _, _ in w.events].count("guest-claimed") == ready_made)
            await asyncio.sleep(0.1)
            assert "create" not in [verb for verb, _ in w.hypervisor.log]
        finally:
            w.hypervisor.may_wake.set()
        guests = await asyncio.gather(*spawns)
        assert [guest.tier for guest in guests] == ["prepared"] * ready_made + ["template"]

    options = pooled("prepared", minimum=ready_made, maximum=ready_made)
    run(tmp_path, scenario, templates=store(tmp_path), **options)


def test_a_pool_is_filled_again(tmp_path: Path) -> None:
    async def scenario(w: World) -> None:
        await kept(w, "prepared")
        first = await w.spawn(1)
        await until(lambda: w.manager.kept_ready()["prepared"] >= 1)
        second = await w.spawn(2)
        assert second.tier == "prepared" and second.name != first.name

    run(tmp_path, scenario, templates=store(tmp_path), **pooled("prepared"))


def test_a_guest_that_is_lost_in_the_pool_is_replaced(tmp_path: Path) -> None:
    async def scenario(w: World) -> None:
        await kept(w, "prepared")
        (name,) = w.hypervisor.paused
        identifier = w.hypervisor.uuids[name]
        w.hypervisor.crash(name)
        await until(lambda: bool({w.hypervisor.uuids[n] for n in w.hypervisor.paused}))
        await kept(w, "prepared")
        assert identifier not in {w.hypervisor.uuids[n] for n in w.hypervisor.paused}
        assert (await w.spawn()).tier == "prepared"
        assert not w.lost, "no connection lost a guest"

    run(tmp_path, scenario, templates=store(tmp_path), **pooled("prepared"))


def test_guests_of_a_spoiled_template_are_not_used(tmp_path: Path) -> None:
    async def scenario(w: World) -> None:
        await kept(w, "prepared")
        (name,) = w.hypervisor.paused
        identifier = w.hypervisor.uuids[name]
        found = store(tmp_path).find()
        assert found is not None
        found.memory.unlink()
        assert (await w.spawn(1)).tier == "cold"
        await ready(w, 2)
        await kept(w, "prepared")
        assert identifier not in [w.hypervisor.uuids[n] for n in w.hypervisor.paused]

    run(tmp_path, scenario, templates=store(tmp_path), **pooled("prepared"))


def test_a_request_may_name_another_tier_than_the_hosts(tmp_path: Path) -> None:
    async def scenario(w: World) -> None:
        await kept(w, "prepared")
        await kept(w, "warm")
        assert (await w.manager.spawn(1, partial(configure, 1), "warm")).tier == "warm"
        assert (await w.manager.spawn(2, partial(configure, 2), "cold")).tier == "cold"
        assert (await w.spawn(3)).tier == "prepared"

    run(tmp_path, scenario, templates=store(tmp_path), **pooled("prepared", "warm"))


def test_closing_ends_what_is_kept_ready(tmp_path: Path) -> None:
    async def scenario(w: World) -> None:
        await kept(w, "prepared", 3)
        await w.manager.close()
        assert not w.hypervisor.domains
        with Journal(w.journal) as journal:
            assert journal.open_entries() == ()

    run(tmp_path, scenario, templates=store(tmp_path), **pooled("prepared", minimum=3))


@pytest.mark.parametrize(
    ("demand", "memory_mib", "count"),
    [(0, 4096, 2), (5, 4096, 5), (99, 4096, 8), (5, 100, 0), (0, 512, 2)],
)
def test_a_pool_is_sized_by_demand_within_its_limits_and_by_memory(
    demand: int, memory_mib: int, count: int
) -> None:
    config = PoolConfig(minimum=2, maximum=8, memory_floor_mib=512)
    assert wanted(config, demand, memory_mib) == count


def test_a_pool_is_drained_while_memory_is_short_and_requests_are_still_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "LOOK_AGAIN", 0.02)
    available = [4096]

    async def scenario(w: World) -> None:
        await kept(w, "prepared", 2)
        available[0] = 511
        await until(lambda: w.manager.kept_ready()["prepared"] == 0)
        await until(lambda: not w.hypervisor.domains)
        short = [fields for name, fields in w.notices if name == "memory-short"]
        assert short == [{"available_mib": 511, "floor_mib": 512, "kept_ready": 2}]
        assert (await w.spawn()).tier == "template"
        available[0] = 512
        await kept(w, "prepared", 2)
        assert [name for name, _ in w.notices][-1] == "memory-back"

    options = pooled("prepared", minimum=2, maximum=2, memory_floor_mib=512)
    memory = partial(available.__getitem__, 0)
    run(tmp_path, scenario, templates=store(tmp_path), memory=memory, **options)


def test_a_host_says_what_it_prepares_until_it_can_give_guests(tmp_path: Path) -> None:
    async def scenario(w: World) -> None:
        await w.manager.start()
        assert w.manager.preparing() == template_keeper.BEING_MADE
        await kept(w, "prepared")
        assert w.manager.preparing() == ""

    run(tmp_path, scenario, templates=store(tmp_path), **pooled("prepared"))


def test_a_host_that_cannot_prepare_guests_keeps_nobody_waiting(tmp_path: Path) -> None:
    async def scenario(w: World) -> None:
        w.agents.clinging = True
        await w.manager.start()
        await until(lambda: bool(w.notices))
        assert w.notices[0][0] == "template-failed"
        assert w.manager.preparing() == ""

    run(tmp_path, scenario, templates=store(tmp_path), **pooled("prepared"))


def test_a_host_whose_guests_boot_prepares_nothing(tmp_path: Path) -> None:
    async def scenario(w: World) -> None:
        await w.manager.start()
        assert w.manager.preparing() == ""

    run(tmp_path, scenario)


# -- templates after a reboot ----------------------------------------------------------------------


def archived(directory: Path) -> TemplateStore:
    archive = TemplateArchive(directory / "state")
    return TemplateStore(directory / "templates", MADE_OF, archive)


def test_after_a_reboot_no_guest_boots_for_the_template(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(template_keeper, "COPY_DELAY", 0.0)

    async def first(w: World) -> None:
        await ready(w)
        await until((tmp_path / "state" / MADE_OF.key).exists)

    run(tmp_path, first, templates=archived(tmp_path))
    shutil.rmtree(tmp_path / "templates")

    async def second(w: World) -> None:
        await ready(w)
        assert [name for name, _ in w.notices] == ["template-restored", "template-ready"]
        assert not w.agents.pushed, "nothing booted"
        assert (await w.spawn()).tier == "template"

    run(tmp_path, second, templates=archived(tmp_path))


def test_a_template_that_went_bad_is_not_restored_but_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(template_keeper, "COPY_DELAY", 0.0)

    async def scenario(w: World) -> None:
        await ready(w)
        await until((tmp_path / "state" / MADE_OF.key).exists)
        found = archived(tmp_path).find()
        assert found is not None
        found.memory.unlink()
        assert (await w.spawn()).tier == "cold"
        await ready(w, 2)
        assert "template-restored" not in [name for name, _ in w.notices]

    run(tmp_path, scenario, templates=archived(tmp_path))


def test_a_copy_that_cannot_be_written_costs_an_event_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(template_keeper, "COPY_DELAY", 0.0)
    (tmp_path / "state").write_text("not a directory")

    async def scenario(w: World) -> None:
        await ready(w)
        await until(lambda: "template-not-kept" in [name for name, _ in w.notices])
        assert (await w.spawn()).tier == "template"

    run(tmp_path, scenario, templates=archived(tmp_path))
