"""A tier that cannot be had costs time and an event, never the application's connection."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fabric.host import tiers
from fabric.host.guests import Guest
from fabric.host.journal import Journal
from fabric.host.lifecycle import GuestState
from fabric.host.template import Ingredients, TemplateStore
from fabric.wire.control import Configure, Identify
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
            "create", "load", "resume",
        ]  # fmt: skip
        assert guest.name not in w.hypervisor.paused
        assert "share=off" in w.hypervisor.xml[guest.name]
        assert len(w.agents.pushed) == 1, "only the template's guest was provisioned"
        for phase in ("domain_ms", "state_ms", "resume_ms", "identify_ms", "ready_ms", "total_ms"):
            assert guest.phases[phase] >= 0
        assert w.names()[-4:] == [
            "guest-started", "guest-resumed", "guest-identified", "guest-ready",
        ]  # fmt: skip

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
        assert fallbacks(w) == [{"from": "template", "to": "cold", "reason": tiers.BEING_MADE}]
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


def test_a_template_whose_copies_keep_failing_is_made_anew(tmp_path: Path) -> None:
    async def scenario(w: World) -> None:
        await ready(w)
        first = store(tmp_path).find()
        w.hypervisor.fail_loading = tiers.MAX_FAILURES
        for connection in range(1, tiers.MAX_FAILURES + 1):
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
