"""The orchestrator's decisions, with a kernel and guests that only remember what they are told."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from fabric.errors import SpawnFailed
from fabric.host.api import build_api
from fabric.host.config import HostConfig, Limits
from fabric.host.control.announcer import Announcement
from fabric.host.control.capacity import MINIMUM_BURST
from fabric.host.control.connections import (
    CLOSING_LINGER,
    OPENING_PATIENCE,
    Connection,
    HeldPacket,
    Role,
    State,
)
from fabric.host.control.intake import Intake
from fabric.host.control.orchestrator import MAX_SPAWNS, STEADY, Orchestrator
from fabric.host.events import EventLog
from fabric.routing.policy import ApplicationFacts, Policy
from fabric.routing.protocols import compute_table
from fabric.routing.topology import Link, Node, Topology
from fabric.wire.control import AgentEvent, Configure, Ready
from fabric.wire.inner import parse_flow
from fabric.wire.packet import FLAG_REPLY, PAYLOAD_ANNOUNCE, PAYLOAD_IPV4, Header, Packet

# h1 - h2 - h3, a line
TOPOLOGY = Topology(
    nodes=tuple(Node(n, f"h{n}", (f"10.77.0.{n}/32",)) for n in (1, 2, 3)),
    links=(
        Link(1, 2, a_address="172.31.0.0", b_address="172.31.0.1"),
        Link(2, 3, a_address="172.31.0.2", b_address="172.31.0.3", a_interface=2),
    ),
)


def syn(source: str = "10.77.0.1", destination: str = "10.77.0.3", port: int = 40000) -> bytes:
    """A TCP SYN to port 80; checksums are nobody's concern here."""
    addresses = bytes(int(p) for p in f"{source}.{destination}".split("."))
    ip = bytes([0x45, 0, 0, 40, 0, 1, 0, 0, 64, 6, 0, 0]) + addresses
    tcp = port.to_bytes(2, "big") + (80).to_bytes(2, "big") + bytes(8)
    return ip + tcp + bytes([0x50, 0x02, 0xFF, 0xFF, 0, 0, 0, 0])


def data(text: bytes) -> bytes:
    """A segment of the same flow with the ACK flag and a payload."""
    segment = bytearray(syn())
    segment[33] = 0x10
    return bytes(segment) + text


class FakeClock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def unix_us(self) -> int:
        return int(self.now * 1e6)


class FakeDatapath:
    """Remembers every call in order."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []
        self.sent: list[tuple[Packet, str]] = []

    def admit(self, connection: Connection, guest_index: int) -> None:
        self.calls.append(("admit", (connection.id, guest_index)))

    def steer(self, connection: Connection, guest_index: int) -> None:
        self.calls.append(("steer", (connection.id, guest_index)))

    def unsteer(self, connection: Connection) -> None:
        self.calls.append(("unsteer", connection.id))

    def deliver(self, packets: list[HeldPacket], guest_index: int) -> None:
        self.calls.extend(("deliver", held.data) for held in packets)

    def answer(self, packet: bytes) -> None:
        self.calls.append(("answer", packet))

    def send(self, datagram: bytes, neighbour: str) -> None:
        self.sent.append((Packet.parse(datagram), neighbour))

    def names(self) -> list[str]:
        return [name for name, _ in self.calls]


class FakeGuests:
    """Spawns when told to: ``gate`` holds a spawn back, ``fail`` makes it fail."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.gate.set()
        self.fail = False
        self.configured: list[Configure] = []
        self.destroyed: list[str] = []
        self.count = 0
        self.tiers: list[str] = []
        self.memory_mib = 4096

    def alive(self) -> int:
        return self.count

    def memory_available_mib(self) -> int:
        return self.memory_mib

    async def spawn(
        self, connection: int, instruct: Callable[[Any], Configure], tier: str = ""
    ) -> Any:
        self.tiers.append(tier)
        self.count += 1
        index = self.count
        await self.gate.wait()
        if self.fail:
            raise SpawnFailed("no such luck")
        told = instruct(SimpleNamespace(index=index, address=f"100.64.0.{index}"))
        self.configured.append(told)
        ready = Ready(connection, told.protocol or 0, "shortest", "default", "default", "why", 7)
        return SimpleNamespace(
            index=index, name=f"g{index}", connection=connection, ready=ready,
            send=lambda _message: (_ for _ in ()).throw(OSError()),
        )  # fmt: skip

    async def destroy(self, guest: Any) -> None:
        self.destroyed.append(guest.name)
        self.count -= 1

    async def close(self) -> None:
        return None


class World:
    """One orchestrator among fakes."""

    def __init__(self, node: int = 1, topology: Topology = TOPOLOGY, **changes: Any) -> None:
        self.clock = FakeClock()
        self.datapath = FakeDatapath()
        self.guests = FakeGuests()
        self.events = EventLog(f"h{node}", self.clock.unix_us)
        config = HostConfig(
            lab="t", host=f"h{node}", node=node, bridge="b", guest_interface="guests",
            overlay_addresses=(f"10.77.0.{node}/32",), overlay_prefixes=("10.77.0.0/16",),
            topology=topology.to_json(),
        )  # fmt: skip
        self.orchestrator = Orchestrator(
            replace(config, **changes), topology, compute_table(topology, node, 1), Policy(),
            datapath=self.datapath, guests=self.guests, events=self.events, clock=self.clock,
        )  # fmt: skip
        self.intake = Intake(
            self.orchestrator, lambda flow, packet: ApplicationFacts(flow=flow), first_serial=0
        )

    def miss(self, *packets: bytes) -> None:
        self.intake.on_miss([(packet, parse_flow(packet)) for packet in packets])

    def arrive(self, upstream: str, inner: bytes, **changes: Any) -> None:
        fields: dict[str, Any] = {
            "flags": 0, "protocol": 1, "hop_limit": 9, "payload_length": len(inner),
            "hop_count": 0, "payload_type": PAYLOAD_IPV4, "connection": 0x100000009,
            "source": 1, "destination": 3, "sequence": 1,
        }  # fmt: skip
        packet = Packet(Header(**{**fields, **changes}), inner)
        self.intake.on_underlay([(packet.encode(), upstream)])

    def names(self) -> list[str]:
        return [event.name for event in self.events.since(0)]

    def only(self) -> Connection:
        (connection,) = self.orchestrator.connections
        return connection


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def run(story: Any) -> None:
    asyncio.run(story)


def test_a_request_is_detected_once_and_its_packets_released_in_order() -> None:
    async def story() -> None:
        world = World()
        world.guests.gate.clear()
        first, second = data(b"first"), data(b"second")
        world.miss(first, second)
        await settle()
        assert world.names().count("request") == 1
        assert "deliver" not in world.datapath.names()
        world.guests.gate.set()
        await settle()
        # The first goes with the agent's instructions, the rest behind it.
        assert world.guests.configured[0].first == [first.hex()]
        # What the guest may deliver is settled before it has anything to deliver.
        assert world.datapath.names() == ["admit", "deliver", "steer"]
        assert world.datapath.calls[1] == ("deliver", second)
        order = [n for n in world.names() if n in ("request", "facts", "agent-ready", "released")]
        assert order == ["request", "facts", "agent-ready", "released"]

    run(story())


def test_a_syn_sent_again_replaces_the_held_one() -> None:
    async def story() -> None:
        world = World()
        world.guests.gate.clear()
        world.miss(syn() + b"old", syn() + b"new")
        world.guests.gate.set()
        await settle()
        assert world.guests.configured[0].first == [(syn() + b"new").hex()]
        assert "deliver" not in world.datapath.names()


def test_a_neighbours_packet_reaches_a_relay_only_over_the_network() -> None:
    async def story() -> None:
        world = World(node=2)
        world.guests.gate.clear()
        world.arrive("172.31.0.0", syn())
        world.guests.gate.set()
        await settle()
        assert world.guests.configured[0].first == []
        assert "deliver" in world.datapath.names()

    run(story())


def test_the_ingress_agent_gets_facts_and_policy_and_chooses_itself() -> None:
    async def story() -> None:
        world = World()
        world.miss(syn())
        await settle()
        (told,) = world.guests.configured
        assert told.protocol is None and told.facts is not None and told.policy == {}
        assert (told.source_node, told.destination_node) == (1, 3)

    run(story())


def test_packets_that_slip_past_fresh_steering_go_straight_to_the_guest() -> None:
    async def story() -> None:
        world = World()
        world.miss(syn())
        await settle()
        world.miss(syn() + b"late")
        assert world.datapath.calls[-1] == ("deliver", syn() + b"late")
        assert len(world.orchestrator.connections) == 1

    run(story())


def test_with_spawning_disabled_a_request_is_seen_and_nothing_forwarded() -> None:
    async def story() -> None:
        world = World(spawning=False)
        world.miss(syn(), syn())
        await settle()
        assert world.names().count("request") == 1
        assert world.datapath.calls == [] and world.datapath.sent == []

    run(story())


def test_an_unrouted_destination_is_refused_at_once() -> None:
    async def story() -> None:
        world = World()
        world.miss(syn(destination="10.77.0.99"))
        (name, answer) = world.datapath.calls[0]
        flow = parse_flow(answer)
        assert name == "answer" and flow is not None and flow.destination == "10.77.0.1"
        assert len(world.orchestrator.connections) == 0

    run(story())


@pytest.mark.parametrize(
    ("limits", "named"),
    [
        (Limits(guests=1), "guests"),
        (Limits(guest_memory_mib=130), "guest_memory_mib"),
    ],
)
def test_beyond_a_limit_the_application_is_refused_and_others_untouched(
    limits: Limits, named: str
) -> None:
    async def story() -> None:
        world = World(limits=limits)
        world.miss(syn(port=1))
        await settle()
        world.miss(syn(port=2))
        refused = [e for e in world.events.since(0) if e.name == "refused"]
        assert [e.fields["limit"] for e in refused] == [named]
        assert world.datapath.names()[-1] == "answer"
        assert world.only().state is State.ESTABLISHED

    run(story())


def test_without_memory_for_a_guest_the_application_is_refused() -> None:
    async def story() -> None:
        world = World(limits=Limits(memory_reserve_mib=300), guest_memory_mib=128)
        world.guests.memory_mib = 427
        world.miss(syn(port=1))
        (refused,) = [e for e in world.events.since(0) if e.name == "refused"]
        assert refused.fields["limit"] == "memory_reserve_mib"
        assert "427 MiB of memory are available" in refused.fields["why"]
        assert world.datapath.names() == ["answer"]
        world.guests.memory_mib = 428
        world.miss(syn(port=2))
        await settle()
        assert world.only().state is State.ESTABLISHED

    run(story())


def test_spawn_rate_is_limited_and_recovers_with_time() -> None:
    async def story() -> None:
        world = World(limits=Limits(guests=100, guest_memory_mib=1 << 20, spawns_per_second=1))
        burst = int(MINIMUM_BURST)
        world.miss(*(syn(port=p) for p in range(1, burst + 2)))
        refused = [e for e in world.events.since(0) if e.name == "refused"]
        assert [e.fields["limit"] for e in refused] == ["spawns_per_second"]
        world.clock.now += 1.5
        world.miss(syn(port=99))
        assert len(world.orchestrator.connections) == burst + 1

    run(story())


def test_held_packets_are_bounded_per_connection() -> None:
    async def story() -> None:
        world = World(limits=Limits(held_packets=2))
        world.guests.gate.clear()
        world.miss(data(b"1"), data(b"2"), data(b"3"), data(b"4"))
        assert len(world.only().held) == 2 and world.only().held_dropped == 2
        assert world.names().count("held-overflow") == 1

    run(story())


def test_a_failed_spawn_becomes_a_refusal_not_a_silence() -> None:
    async def story() -> None:
        world = World()
        world.guests.fail = True
        world.miss(syn())
        await settle()
        assert "answer" in world.datapath.names()
        assert len(world.orchestrator.connections) == 0

    run(story())


def test_the_request_is_announced_to_the_next_host() -> None:
    async def story() -> None:
        world = World()
        world.miss(syn())
        ((packet, neighbour),) = world.datapath.sent
        assert packet.header.payload_type == PAYLOAD_ANNOUNCE and neighbour == "172.31.0.1"
        assert packet.header.destination == 3

    run(story())


def test_a_transit_host_spawns_on_announcement_and_passes_it_on() -> None:
    async def story() -> None:
        ingress, transit = World(1), World(2)
        ingress.miss(syn())
        packet, _ = ingress.datapath.sent[0]
        for _ in range(2):
            transit.intake.on_underlay([(packet.encode(), "172.31.0.0")])
        await settle()
        assert transit.only().role is Role.TRANSIT and len(transit.guests.configured) == 1
        ((onward, neighbour),) = transit.datapath.sent
        assert neighbour == "172.31.0.3" and onward.header.hop_limit < packet.header.hop_limit

    run(story())


def test_without_announcements_the_first_packet_makes_the_guest() -> None:
    async def story() -> None:
        world = World(2)
        world.arrive("172.31.0.0", syn())
        await settle()
        assert world.only().role is Role.TRANSIT and world.only().protocol == 1
        assert world.datapath.names() == ["admit", "deliver", "steer"]
        assert world.guests.configured[0].facts is None

    run(story())


def test_the_egress_host_steers_the_replies_of_its_own_applications() -> None:
    async def story() -> None:
        world = World(3)
        world.arrive("172.31.0.2", syn())
        await settle()
        connection = world.only()
        assert connection.role is Role.EGRESS
        reply = parse_flow(syn())
        assert reply is not None and connection.local_flow == reply.reversed()
        world.miss(syn("10.77.0.3", "10.77.0.1"))
        await settle()

    run(story())


def test_datagrams_of_strangers_and_garbage_change_nothing() -> None:
    async def story() -> None:
        world = World(2)
        world.arrive("192.0.2.1", syn())
        world.intake.on_underlay([(b"\x10garbage", "172.31.0.0"), (b"", "172.31.0.0")])
        assert len(world.orchestrator.connections) == 0
        assert world.events.counts["foreign-datagram"] == 1
        assert world.events.counts["malformed-datagram"] == 2

    run(story())


def test_a_transit_host_without_room_answers_the_source_in_the_far_ends_name() -> None:
    async def story() -> None:
        world = World(2, limits=Limits(guests=0))
        world.arrive("172.31.0.0", syn())
        ((packet, neighbour),) = world.datapath.sent
        assert neighbour == "172.31.0.0" and packet.header.flags & FLAG_REPLY
        assert packet.header.destination == 1
        flow = parse_flow(packet.payload)
        assert flow is not None and (flow.source, flow.destination) == ("10.77.0.3", "10.77.0.1")

    run(story())


def test_a_lost_guest_is_replaced_and_the_connection_stays() -> None:
    async def story() -> None:
        world = World()
        world.miss(syn())
        await settle()
        connection = world.only()
        world.orchestrator.on_guest_lost(connection.guest)  # type: ignore[arg-type]
        assert world.orchestrator.connections.held_packets() == 0
        assert str(connection.state) == "State.HELD"
        world.miss(syn() + b"meanwhile")
        await settle()
        assert connection.state is State.ESTABLISHED and connection.guest is not None
        assert connection.guest.name == "g2"
        assert world.guests.configured[-1].first == [(syn() + b"meanwhile").hex()]

    run(story())


def test_guests_lost_in_a_row_end_a_connection_and_others_do_not() -> None:
    async def story() -> None:
        world = World()
        world.miss(syn())
        await settle()
        connection = world.only()
        for _ in range(3 * MAX_SPAWNS):
            world.clock.now += STEADY
            world.orchestrator.on_guest_lost(connection.guest)  # type: ignore[arg-type]
            await settle()
        assert connection.state is State.ESTABLISHED
        for _ in range(MAX_SPAWNS):
            world.orchestrator.on_guest_lost(connection.guest)  # type: ignore[arg-type]
            await settle()
        assert len(world.orchestrator.connections) == 0

    run(story())


def test_idle_connections_end_steering_first() -> None:
    async def story() -> None:
        world = World(idle_timeout=10)
        world.miss(syn())
        await settle()
        world.only().counters = {"packets_in": 1}
        world.clock.now += 9
        world.orchestrator.sweep()
        assert len(world.orchestrator.connections) == 1
        world.clock.now += 1
        world.orchestrator.sweep()
        await settle()
        assert len(world.orchestrator.connections) == 0
        assert world.datapath.names()[-1] == "unsteer" and world.guests.destroyed == ["g1"]

    run(story())


def test_an_unanswered_connection_waits_for_guests_further_on() -> None:
    async def story() -> None:
        world = World(idle_timeout=10)
        world.miss(syn())
        await settle()
        world.clock.now += OPENING_PATIENCE - 1
        world.orchestrator.sweep()
        assert len(world.orchestrator.connections) == 1
        world.clock.now += 1
        world.orchestrator.sweep()
        await settle()
        assert len(world.orchestrator.connections) == 0

    run(story())


def test_late_segments_of_a_closed_connection_boot_no_guest() -> None:
    async def story() -> None:
        world = World(idle_timeout=30)
        world.miss(syn())
        await settle()
        world.only().closing = True
        world.clock.now += CLOSING_LINGER
        world.orchestrator.sweep()
        await settle()
        fin = bytearray(syn())
        fin[33] = 0x11
        world.miss(bytes(fin))
        assert len(world.orchestrator.connections) == 0
        assert world.events.counts["late-packet"] == 1
        world.miss(syn())
        assert len(world.orchestrator.connections) == 1, "a SYN begins anew on the same ports"

    run(story())


def test_an_announcement_behind_its_connections_end_boots_no_guest() -> None:
    """A host further up announces again when paths change, and may not know of the end yet."""

    async def story() -> None:
        ingress, world = World(1), World(2, idle_timeout=30)
        ingress.miss(syn())
        packet, _ = ingress.datapath.sent[0]
        world.intake.on_underlay([(packet.encode(), "172.31.0.0")])
        await settle()
        world.only().closing = True
        world.clock.now += CLOSING_LINGER
        world.orchestrator.sweep()
        await settle()
        passed_on = len(world.datapath.sent)
        world.intake.on_underlay([(packet.encode(), "172.31.0.0")])
        assert len(world.orchestrator.connections) == 0
        assert len(world.datapath.sent) == passed_on
        assert world.events.counts["late-packet"] == 1

    run(story())


def test_only_packets_keep_a_connection_from_being_idle() -> None:
    """Not what its agent tells of the network: in a storm of link changes idle guests would stay
    for ever."""

    async def story() -> None:
        world = World(idle_timeout=2 * OPENING_PATIENCE)
        world.miss(syn())
        await settle()
        guest = world.only().guest
        assert guest is not None
        world.clock.now += 2 * OPENING_PATIENCE - 1
        avoided = AgentEvent("neighbours-avoided", {}, 0)
        world.orchestrator.messages.on_message(guest, avoided)
        assert "neighbours-avoided" in world.names()
        world.clock.now += 1
        world.orchestrator.sweep()
        await settle()
        assert len(world.orchestrator.connections) == 0

    run(story())


def test_closing_ends_everything_even_a_spawn_under_way() -> None:
    async def story() -> None:
        world = World()
        world.miss(syn(port=1))
        await settle()
        world.guests.gate.clear()
        world.miss(syn(port=2))
        await settle()
        closing = asyncio.create_task(world.orchestrator.close())
        await settle()
        world.guests.gate.set()
        await closing
        assert sorted(world.guests.destroyed) == ["g1", "g2"]
        assert len(world.orchestrator.connections) == 0

    run(story())


async def waiting_for_a_guest() -> tuple[World, int]:
    """A connection whose guest does not come, and how long it may wait, s."""
    world = World()
    world.guests.gate.clear()
    world.miss(syn(port=1))
    await settle()
    return world, world.orchestrator.config.limits.held_seconds


def test_a_client_that_gave_up_gets_no_guest() -> None:
    async def story() -> None:
        world, limit = await waiting_for_a_guest()
        world.clock.now += limit - 1
        world.miss(syn(port=2))
        world.orchestrator.sweep()
        assert len(world.orchestrator.connections) == 2
        world.clock.now += 1
        world.orchestrator.sweep()
        await settle()
        (left,) = world.orchestrator.connections
        assert left.flow is not None and left.flow.source_port == 2
        refused = [e.fields for e in world.events.since(0) if e.name == "refused"]
        assert [fields["cause"] for fields in refused] == ["abandoned"]
        world.guests.gate.set()
        await settle()
        assert [told.connection for told in world.guests.configured] == [left.id]
        world.clock.now += limit  # with a guest it is idleness that ends it
        world.orchestrator.config = replace(world.orchestrator.config, idle_timeout=10 * limit)
        world.orchestrator.sweep()
        await settle()
        assert len(world.orchestrator.connections) == 1

    run(story())


def test_nobody_waits_for_a_first_guest_for_ever() -> None:
    async def story() -> None:
        world, limit = await waiting_for_a_guest()
        for _ in range(limit - 1):
            world.clock.now += 1
            world.miss(syn(port=1))  # it goes on asking
            world.orchestrator.sweep()
        assert len(world.orchestrator.connections) == 1
        world.clock.now += 1
        world.orchestrator.sweep()
        await settle()
        (refused,) = [e.fields for e in world.events.since(0) if e.name == "refused"]
        assert refused["cause"] == "abandoned" and "no guest within 120 s" in str(refused)
        assert len(world.orchestrator.connections) == 0

    run(story())


# -- a network that changes ------------------------------------------------------------------------


def square_world(node: int = 1, **changes: Any) -> World:
    """1 - 2 - 4 and 1 - 3 - 4; the second is longer."""
    links = (
        Link(1, 2, a_address="172.31.0.0", b_address="172.31.0.1"),
        Link(2, 4, a_address="172.31.0.2", b_address="172.31.0.3", a_interface=2),
        Link(1, 3, a_address="172.31.0.4", b_address="172.31.0.5", a_interface=2, cost=2),
        Link(3, 4, a_address="172.31.0.6", b_address="172.31.0.7", a_interface=2, b_interface=2),
    )
    nodes = tuple(Node(n, f"h{n}", (f"10.77.0.{n}/32",)) for n in (1, 2, 3, 4))
    return World(node, topology=Topology(nodes, links), **changes)


def spoken(world: World) -> list[tuple[str, dict[str, Any]]]:
    """(to whom, what) of every announcement so far."""
    return [
        (neighbour, json.loads(bytes(packet.payload)))
        for packet, neighbour in world.datapath.sent
        if packet.header.payload_type == PAYLOAD_ANNOUNCE
    ]


def to_four() -> bytes:
    return syn(destination="10.77.0.4")


def test_a_protected_connection_is_announced_on_its_alternate_too() -> None:
    async def story() -> None:
        for protect, expected in ((False, ["172.31.0.1"]), (True, ["172.31.0.1", "172.31.0.5"])):
            world = square_world(protect=protect)
            world.miss(to_four())
            await settle()
            assert [neighbour for neighbour, _ in spoken(world)] == expected
            if protect:
                first, aside = (said for _, said in spoken(world))
                assert first.get("protect") is True
                assert "protect" not in aside  # one detour is enough

    run(story())


def test_a_policy_rule_protects_its_own_connections() -> None:
    async def story() -> None:
        rule = {"match": {"destination_port": 80}, "need": "reliable", "protect": True}
        world = square_world()
        world.orchestrator.policy = Policy.from_json({"rules": [rule]})
        world.miss(to_four())
        await settle()
        assert len(spoken(world)) == 2
        assert world.only().protect

    run(story())


def test_guests_on_alternates_are_told_that_their_connection_lives() -> None:
    async def story() -> None:
        world = square_world(protect=True, idle_timeout=30.0)
        world.miss(to_four())
        await settle()
        before = len(spoken(world))
        world.clock.now += 11
        world.only().last_active = world.clock.now
        world.orchestrator.sweep()
        again = spoken(world)[before:]
        assert [said.get("again") for _, said in again] == [True, True]
        relay = square_world(3, idle_timeout=30.0)
        for packet, neighbour in world.datapath.sent:
            if neighbour == "172.31.0.5":
                relay.clock.now += 5
                relay.intake.on_underlay([(packet.encode(), "172.31.0.4")])
        await settle()
        assert relay.only().last_active == relay.clock.now
        # It tells those behind it as well.
        assert [said.get("again", False) for _, said in spoken(relay)] == [False, True]

    run(story())


def test_a_new_table_goes_to_guests_whose_rows_changed_and_ahead_of_their_packets() -> None:
    async def story() -> None:
        world = square_world()
        told: list[Any] = []
        world.miss(to_four())
        await settle()
        connection = world.only()
        assert connection.guest is not None
        connection.guest.send = told.append  # type: ignore[method-assign,assignment]
        before = len(spoken(world))
        topology = world.orchestrator.topology
        world.orchestrator.install(topology, compute_table(topology, 1, 2))
        assert told == []  # another version of the same
        assert world.orchestrator.table.version == 2
        topology = topology.without([1])
        world.orchestrator.install(topology, compute_table(topology, 1, 3))
        assert [message.table["version"] for message in told] == [3]
        assert [neighbour for neighbour, _ in spoken(world)[before:]] == ["172.31.0.5"]
        assert world.names()[-2:] == ["table-installed", "announced"]

    run(story())


def test_an_announcement_follows_the_path_it_names() -> None:
    async def story() -> None:
        relay = square_world(2)
        told = Announcement(parse_flow(to_four()), path=(1, 3, 4))
        made = Connection(
            id=0x100000007, role=Role.INGRESS, source_node=1, destination_node=4,
            requested_at_us=0, protocol=1,
        )  # fmt: skip
        relay.intake.on_underlay([(told.encode(made, 9), "172.31.0.0")])
        await settle()
        assert [(to, said["path"]) for to, said in spoken(relay)] == [("172.31.0.0", [3, 4])]

    run(story())


def test_a_connection_that_late_packets_brought_back_can_be_ended_again() -> None:
    async def story() -> None:
        world = World(node=2)
        world.arrive("172.31.0.0", syn())
        await settle()
        nothing: Any = None
        app = build_api(world.orchestrator, nothing, nothing, nothing, nothing)
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://host") as client:
            first = world.only()
            url = f"/v1/connections/{first.label}"
            assert (await client.delete(url)).status_code == 202
            assert first.state is State.CLOSED
            world.arrive("172.31.0.0", syn())
            await settle()
            second = world.only()
            assert second is not first and second.id == first.id
            world.orchestrator.connections.remove(first)
            assert world.only() is second, "the former one's end is not this one's"
            assert (await client.delete(url)).status_code == 202
            assert not list(world.orchestrator.connections)
            assert len(world.guests.destroyed) == 2

    run(story())
