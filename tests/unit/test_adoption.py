"""An orchestrator that comes after a killed one takes over what lives, and ends what does not."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fabric.host.control.records import SavedConnection, SavedGuest
from fabric.host.guest import adoption, endings
from fabric.host.guest.adoption import choose
from fabric.host.guest.lifecycle import GuestState
from fabric.host.vmm.domains import OwnedDomain
from fabric.routing.topology import Topology
from fabric.wire.control import Identity, InstallTable, encode
from tests.unit.host_world import Life, Machine, machine, until
from tests.unit.test_orchestrator import TOPOLOGY, data, syn
from tests.unit.test_records import connection


def saved(number: int, slot: int, uuid: str = "uuid", requested_at_us: int = 0) -> SavedConnection:
    bare = replace(connection(number), requested_at_us=requested_at_us)
    return SavedConnection.of(bare, SavedGuest(slot, uuid, "cold"))


def domain(slot: int, uuid: str = "uuid", *, active: bool = True) -> OwnedDomain:
    return OwnedDomain(f"fabric-demo-h1-g{slot}", "demo", "h1", slot, 0, active, 0.0, uuid)


def test_a_record_and_the_running_domain_it_names_belong_together() -> None:
    choice = choose([saved(1, 3)], [domain(3), domain(4)])
    assert [record.id for record in choice.adoptable] == [1] and not choice.refused


@pytest.mark.parametrize(
    ("domains", "why"),
    [
        ([], "gone"),
        ([domain(4)], "gone"),
        ([domain(3, active=False)], "gone"),
        ([domain(3, "another")], "another guest"),
        ([replace(domain(3), name="somebody-elses-g3")], "gone"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_reason(domains: list[OwnedDomain], why: str) -> None:
    choice = choose([saved(1, 3)], domains)
    assert not choice.adoptable and why in choice.refused[1]


def test_of_two_records_for_one_guest_the_newer_counts() -> None:
    choice = choose([saved(1, 3, requested_at_us=5), saved(2, 3, requested_at_us=9)], [domain(3)])
    assert [record.id for record in choice.adoptable] == [2]
    assert "another connection" in choice.refused[1]


# -- whole lives -----------------------------------------------------------------------------------


def story(
    directory: Path, tell: Callable[[Machine, Life], Awaitable[None]], **options: Any
) -> None:
    """A machine with one established connection; what is left at the end must be nothing."""

    async def within() -> None:
        async with asyncio.timeout(30), machine(directory, **options) as made:
            life = Life(made)
            await life.start()
            life.miss(syn())
            await until(life.works)
            await tell(made, life)

    asyncio.run(within())


async def next_life(made: Machine, former: Life) -> Life:
    await former.bury()
    life = Life(made)
    await life.start()
    return life


async def end(made: Machine, life: Life) -> None:
    assert await life.host.housekeeper.run() == [], "all is in order"
    await life.host.close()
    assert made.left() == []


@pytest.mark.parametrize("tier", ["cold", "template", "prepared", "warm"])
def test_an_established_connection_survives(tmp_path: Path, tier: str) -> None:
    async def tell(made: Machine, life: Life) -> None:
        guest, (former,) = life.guest(), life.connections()
        before = made.steering.entries()
        made.delivered.clear()
        key = guest.host_key
        life = await next_life(made, life)
        assert (life.guest().host_key is None) == (key is None) == (tier == "cold")
        assert life.works() and made.steering.entries() == before
        (connection,) = life.connections()
        number = connection.label
        assert (connection.id, connection.facts) == (former.id, former.facts)
        assert (connection.flow, connection.reason) == (former.flow, former.reason)
        assert (life.guest().name, life.guest().uuid) == (guest.name, guest.uuid)
        assert life.guest().state is GuestState.RUNNING and life.guest().tier == tier
        assert life.told("guest-adopted")[0]["digest"] == "digest"
        assert life.told("connection-adopted")[0]["guest"] == guest.name
        assert number not in life.connections_of(
            "guest-spawning", "guest-destroyed", "guest-failed"
        )
        life.miss(data(b"late"))
        assert made.delivered == [data(b"late")], "what slips past steering still gets there"
        await end(made, life)

    story(tmp_path, tell, tier=tier)


def test_it_survives_any_number_of_times(tmp_path: Path) -> None:
    async def tell(made: Machine, life: Life) -> None:
        uuid = life.guest().uuid
        for _ in range(3):
            life = await next_life(made, life)
        assert life.works() and life.guest().uuid == uuid
        await end(made, life)

    story(tmp_path, tell)


def test_an_adopted_guest_is_a_guest_like_any_other(tmp_path: Path) -> None:
    async def tell(made: Machine, life: Life) -> None:
        life = await next_life(made, life)
        adopted = life.guest()
        made.hypervisor.crash(adopted.name)
        await until(lambda: life.works() and life.guest() is not adopted)
        await end(made, life)

    story(tmp_path, tell)


def test_an_adopted_guest_whose_table_is_old_gets_the_new_one(tmp_path: Path) -> None:
    async def tell(made: Machine, life: Life) -> None:
        await life.bury()
        links = TOPOLOGY.links
        changed = Topology(TOPOLOGY.nodes, (replace(links[0], latency_us=9), *links[1:]))
        made.config = replace(made.config, topology=changed.to_json())
        life = Life(made)
        await life.start()
        version = life.host.orchestrator.table.version
        await until(lambda: any(isinstance(m, InstallTable) for m in made.agents.heard))
        (told,) = [m for m in made.agents.heard if isinstance(m, InstallTable)]
        assert told.table["version"] == version
        await end(made, life)

    story(tmp_path, tell)


def test_rules_that_were_flushed_meanwhile_are_made_anew(tmp_path: Path) -> None:
    async def tell(made: Machine, life: Life) -> None:
        await life.bury()
        made.steering.remove()
        life = Life(made)
        await life.start()
        assert life.works()
        await end(made, life)

    story(tmp_path, tell)


def test_new_connections_get_other_ids_than_adopted_ones(tmp_path: Path) -> None:
    async def tell(made: Machine, life: Life) -> None:
        life = await next_life(made, life)
        (adopted,) = life.connections()
        life.host.intake._serial = (adopted.id & 0xFFFF_FFFF) - 1
        life.miss(syn(port=41000))
        await until(lambda: len(life.connections()) == 2)
        assert {c.id for c in life.connections()} == {adopted.id, adopted.id + 1}
        await end(made, life)

    story(tmp_path, tell)


def _qemu_died(made: Machine, life: Life) -> None:
    made.hypervisor.crash(life.guest().name)


def _agent_died(made: Machine, life: Life) -> None:
    made.agents.dead.add(life.guest().identity.address)


def _network_lost(made: Machine, life: Life) -> None:
    made.agents.unplugged.add(life.guest().identity.address)


def _serves_another(made: Machine, life: Life) -> None:
    address = life.guest().identity.address
    told = made.agents.serving[address]
    values = dict(zip(told.names, told.values(), strict=True)) | {"connection": 99}
    made.agents.serving[address] = type(told)(**values)


def _channel_lost(_made: Machine, life: Life) -> None:
    life.guest().identity.channel.unlink()


@pytest.mark.parametrize(
    "happens", [_qemu_died, _agent_died, _network_lost, _serves_another, _channel_lost]
)
def test_a_connection_whose_guest_is_of_no_use_gets_another(
    tmp_path: Path, happens: Callable[[Machine, Life], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(adoption.ADOPTION_DEADLINES, "tcg", 0.1)

    async def tell(made: Machine, life: Life) -> None:
        uuid, (former,) = life.guest().uuid, life.connections()
        await life.bury()
        happens(made, life)
        life = Life(made)
        await life.start()
        made.agents.unplugged.clear()
        await until(life.works)
        assert life.guest().uuid != uuid and life.connections()[0].id == former.id
        adopted = life.told("connection-adopted")[0]
        assert adopted["guest"] is None and adopted["why"]
        await until(lambda: list(made.hypervisor.domains) == [life.guest().name])
        await end(made, life)

    story(tmp_path, tell)


def test_a_guest_that_dies_while_others_are_still_asked_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(adoption.ADOPTION_DEADLINES, "tcg", 0.5)

    async def tell(made: Machine, life: Life) -> None:
        first = life.guest()
        life.miss(syn(port=41000))
        await until(lambda: all(c.guest for c in life.connections()) and len(made.serving()) == 2)
        (other,) = {c.guest for c in life.connections()} - {first}
        assert other is not None
        made.agents.dead.add(other.identity.address)
        await life.bury()
        life = Life(made)
        starting = asyncio.create_task(life.start())
        await until(lambda: "guest-adopted" in life.names())
        made.hypervisor.crash(first.name)
        await starting
        await until(lambda: len(made.serving()) == 2)
        whys = {fields["why"] for fields in life.told("connection-adopted")}
        assert "its guest was lost while others were asked" in whys
        await until(lambda: len(made.hypervisor.domains) == 2)
        await end(made, life)

    story(tmp_path, tell)


def test_without_its_record_a_guest_is_destroyed_and_steering_goes_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endings, "RETRY", 0.05)

    async def tell(made: Machine, life: Life) -> None:
        await life.bury()
        for record in (made.config.host_dir / "connections").iterdir():
            record.write_text("not whole")
        made.hypervisor.stuck = set(made.hypervisor.domains)
        life = Life(made)
        inheritance = await life.start()
        assert inheritance.ended == 1 and life.connections() == []
        assert made.steering.flows == {} and made.steering.connections == {}
        assert {fields["verb"] for fields in life.told("reaped")} == {"unsteer", "detach"}
        life.miss(data(b"goes on"))
        await until(life.works)
        made.hypervisor.stuck.clear()
        await until(lambda: list(made.hypervisor.domains) == [life.guest().name])
        await end(made, life)

    story(tmp_path, tell)


def test_records_of_another_boot_are_of_nobody(tmp_path: Path) -> None:
    async def tell(made: Machine, life: Life) -> None:
        await life.bury()
        made.hypervisor.crash(life.guest().name)
        made.steering.remove()
        (record,) = (made.config.host_dir / "connections").iterdir()
        text = record.read_text()
        boot = text.split('"boot": "')[1].split('"')[0]
        record.write_text(text.replace(boot, "another"))
        life = Life(made)
        await life.start()
        assert life.connections() == [] and "connection-adopted" not in life.names()
        await until(lambda: made.left() == [])
        await end(made, life)

    story(tmp_path, tell)


def test_a_graceful_end_ends_everything(tmp_path: Path) -> None:
    async def tell(made: Machine, life: Life) -> None:
        await end(made, life)
        life = Life(made)
        inheritance = await life.start()
        assert not inheritance.adopted and not inheritance.refused and not inheritance.ended
        await end(made, life)

    story(tmp_path, tell)


def test_a_line_cut_by_the_death_of_the_former_host_costs_nothing(tmp_path: Path) -> None:
    """The agent's decoder still holds the beginning of a message nobody will finish."""

    async def tell(made: Machine, life: Life) -> None:
        await until(lambda: "clock-aligned" in life.names())  # the last word of its own accord
        channel, uuid = life.guest().channel, life.guest().uuid
        assert channel is not None
        channel._writer.write(encode(InstallTable({"version": 9}))[:-5])
        await asyncio.sleep(0.05)
        life = await next_life(made, life)
        assert life.works() and life.guest().uuid == uuid
        await end(made, life)

    story(tmp_path, tell)


def test_an_agent_that_claims_another_connection_later_is_replaced(tmp_path: Path) -> None:
    async def tell(made: Machine, life: Life) -> None:
        suspect = life.guest()
        liar = made.agents.clients[suspect.identity.address]
        liar.write(encode(Identity(99, 0, 1, "digest")))
        await until(lambda: life.works() and life.guest() is not suspect)
        assert "serves 0000000000000063" in life.told("guest-failed")[0]["reason"]
        await end(made, life)

    story(tmp_path, tell)
