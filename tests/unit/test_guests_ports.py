"""No guest runs before its bridge port lets it send as nobody but itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from fabric.host.guest.lifecycle import GuestState
from tests.unit.guest_world import World, run
from tests.unit.test_tiers import ready, store


@pytest.mark.parametrize(
    ("tier", "steps"),
    [
        ("cold", ["create", "secure", "resume"]),
        ("template", ["create", "secure", "arm", "wake"]),
    ],
)
def test_a_guest_runs_only_behind_a_secured_port(
    tmp_path: Path, tier: str, steps: list[str]
) -> None:
    async def scenario(w: World) -> None:
        if tier == "template":
            await ready(w)
        w.hypervisor.log.clear()
        guest = await w.spawn()
        assert guest.tier == tier
        mine = (guest.name, guest.identity.tap)
        assert [verb for verb, name in w.hypervisor.log if name in mine] == steps
        assert w.ports.secured[guest.identity.tap] == guest.identity.mac
        assert guest.phases["port_ms"] >= 0

    run(tmp_path, scenario, templates=store(tmp_path) if tier == "template" else None)


def test_a_guest_whose_port_cannot_be_secured_never_runs(tmp_path: Path) -> None:
    async def scenario(w: World) -> None:
        w.ports.fail_next = 1
        guest = await w.spawn()
        assert guest.state is GuestState.RUNNING, "another one took its place"
        (failed,) = [fields for name, _, fields in w.events if name == "guest-failed"]
        assert "cannot be secured" in failed["reason"]
        resumed = [name for verb, name in w.hypervisor.log if verb == "resume"]
        assert resumed == [guest.name]
        destroyed = [name for verb, name in w.hypervisor.log if verb == "destroy"]
        assert len(destroyed) == 1 and destroyed != resumed

    run(tmp_path, scenario)


def test_a_kernel_that_cannot_lock_ports_is_named(tmp_path: Path) -> None:
    async def scenario(w: World) -> None:
        await w.spawn(1)
        assert "port-unlocked" not in w.names()
        w.ports.locks = False
        guest = await w.spawn(2)
        (told,) = [fields for name, _, fields in w.events if name == "port-unlocked"]
        assert told["tap"] == guest.identity.tap
        assert "5.18" in told["cure"]

    run(tmp_path, scenario)
