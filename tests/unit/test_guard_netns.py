"""What a guest can do, on real namespaces: send as itself to whom it may, and nothing else.

Every refusal is followed by its control: the same packet with the one lie taken out arrives.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest

from fabric.host.network.steering import NftSteering
from fabric.wire.inner import ICMP, TCP, UDP, FiveTuple, checksum
from tests.unit.guard_world import (
    BROADCAST,
    ETH_TEST,
    FAR4,
    FAR6,
    MACHINE,
    NEIGHBOUR,
    OWN4,
    OWN6,
    UNDERLAY,
    World,
    arp,
    frame,
    fresh,
    guarded_host,
    neighbour_message,
    tag,
    udp_packet,
)
from tests.unit.netns_world import GATEWAY, PORT

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
]

FLOW4 = FiveTuple(4, UDP, OWN4, 5000, FAR4, 6000)
FLOW6 = FiveTuple(6, UDP, OWN6, 5000, FAR6, 6000)
"""As this host's applications would emit them; guests deliver their answers."""


@pytest.fixture(scope="module")
def one_world() -> Iterator[World]:
    with guarded_host(tag()) as made:
        yield made


@pytest.fixture
def world(one_world: World) -> Iterator[World]:
    with fresh(one_world) as made:
        yield made


def speak(world: World, place: str, source: tuple[str, int], target: tuple[str, int]) -> None:
    """A UDP packet through the kernel of that place."""
    family = socket.AF_INET6 if ":" in target[0] else socket.AF_INET
    with world.places[place].call(socket.socket, family, socket.SOCK_DGRAM) as udp:
        udp.bind(source)
        udp.sendto(b"x", target)


# -- what is meant to work -------------------------------------------------------------------------


def test_an_honest_guest_is_never_refused_anything(world: World) -> None:
    """Through the guest's own kernel: ARP and neighbour discovery for the gateway included."""
    for flow in (FLOW4, FLOW6):
        world.steering.admit(1, flow)
        world.command("guest1", "ip", "address", "add", flow.destination, "dev", "lo")
    with (
        world.ear("neighbour", NEIGHBOUR, PORT) as neighbour,
        world.ear("host", OWN4, 5000) as application4,
        world.ear("host", OWN6, 5000) as application6,
    ):
        speak(world, "guest1", ("0.0.0.0", PORT), (NEIGHBOUR, PORT))
        assert neighbour.hears()
        speak(world, "guest1", (FAR4, 6000), (OWN4, 5000))
        assert application4.hears()
        speak(world, "guest1", (FAR6, 6000), (OWN6, 5000))
        assert application6.hears()
    neighbours = world.command("guest1", "ip", "neighbour").stdout
    assert f"{GATEWAY} dev eth0 lladdr {world.host_mac}" in neighbours
    assert f"fe80::1 dev eth0 lladdr {world.host_mac}" in neighbours
    assert world.refusals() == {}


# -- pretending to be another guest ----------------------------------------------------------------


@pytest.mark.parametrize("source", ["the other guest's", "the gateway's", "a neighbour's"])
def test_another_ipv4_source_is_refused(world: World, source: str) -> None:
    first, second = world.guests
    lie = {
        "the other guest's": second.address,
        "the gateway's": GATEWAY,
        "a neighbour's": NEIGHBOUR,
    }[source]
    with world.ear("neighbour", NEIGHBOUR, PORT) as neighbour:
        world.udp(first, (lie, PORT), (NEIGHBOUR, PORT))
        assert neighbour.silent()
        assert world.refusals() == {"address": 1}
        world.udp(first, (first.address, PORT), (NEIGHBOUR, PORT))
        assert neighbour.hears()


def test_another_ipv6_source_is_refused(world: World) -> None:
    first, second = world.guests
    for lie in (second.address6, "fe80::1", "2001:db8::1"):
        world.udp(first, (lie, 22), ("fe80::1", 9))
    assert world.refusals() == {"address": 3}
    world.udp(first, (first.address6, 22), ("fe80::1", 9))
    assert world.refusals() == {"address": 3, "host": 1}  # its own, but no service is for guests


def test_arp_claims_nothing_but_the_guests_own_address(world: World) -> None:
    first, second = world.guests
    for operation in (1, 2):
        for claimed in (
            (first.mac, second.address),
            (second.mac, second.address),
            (first.mac, GATEWAY),
            (second.mac, first.address),
        ):
            first.send(arp(operation, first.mac, claimed, GATEWAY))
    assert world.refusals() == {"arp": 8}
    assert neighbours_of_host(world)[second.address] == second.mac
    first.send(arp(1, first.mac, (first.mac, first.address), GATEWAY))
    assert world.refusals() == {"arp": 8}


def test_arp_asks_for_nothing_but_the_gateway(world: World) -> None:
    first, _ = world.guests
    for asked in (UNDERLAY, OWN4, MACHINE):
        first.send(arp(1, first.mac, (first.mac, first.address), asked))
    assert world.refusals() == {"arp": 3}


def test_neighbour_discovery_claims_nothing_of_others(world: World) -> None:
    first, second = world.guests
    to = world.host_mac
    for message in (
        neighbour_message(to, first.mac, 135, second.address6, "fe80::1"),
        neighbour_message(to, first.mac, 135, first.address6, OWN6),
        neighbour_message(to, first.mac, 136, first.address6, second.address6),
        neighbour_message(to, first.mac, 136, second.address6, second.address6),
    ):
        first.send(message)
    assert world.refusals() == {"nd": 4}
    assert neighbours_of_host(world)[second.address6] == second.mac
    first.send(neighbour_message(to, first.mac, 135, first.address6, "fe80::1"))
    assert world.refusals() == {"nd": 4}


# -- going where no guest may go -------------------------------------------------------------------


def test_guests_cannot_reach_each_other(world: World) -> None:
    first, second = world.guests
    here, there = (first.address, PORT), (second.address, PORT)
    with world.ear("guest2", second.address, PORT) as other:
        world.udp(first, here, there, to=second.mac)
        world.udp(first, here, there, to=BROADCAST)
        assert other.silent()
        world.udp(first, here, there)  # by way of the host, as a fabric packet
        assert other.silent()
        assert world.refusals() == {"outside": 1}
        speak(world, "host", (GATEWAY, PORT), there)
        assert other.hears()


@pytest.mark.parametrize("address", [GATEWAY, UNDERLAY, OWN4])
def test_no_service_of_the_host_is_for_guests(world: World, address: str) -> None:
    first, _ = world.guests
    with world.ear("host", address, 8080) as service:
        world.udp(first, (first.address, 22), (address, 8080))
        assert service.silent()
        assert world.refusals() == {"host": 1}
        world.nftables.run("insert rule inet fabric input udp dport 8080 accept")
        try:
            world.udp(first, (first.address, 22), (address, 8080))
            assert service.hears()
        finally:
            world.steering.install()


@pytest.mark.parametrize(
    ("source", "target"),
    [((None, PORT), ("203.0.113.9", 53)), ((None, PORT), (NEIGHBOUR, 53)), ((None, 53), None)],
)
def test_nothing_but_fabric_packets_leaves_the_host(
    world: World, source: tuple[None, int], target: tuple[str, int] | None
) -> None:
    first, _ = world.guests
    target = target or (NEIGHBOUR, PORT)
    with world.ear("neighbour", "0.0.0.0", target[1]) as outside:
        world.udp(first, (first.address, source[1]), target)
        assert outside.silent()
        assert world.refusals() == {"outside": 1}
    with world.ear("neighbour", NEIGHBOUR, PORT) as neighbour:
        world.udp(first, (first.address, PORT), (NEIGHBOUR, PORT))
        assert neighbour.hears()


def test_what_is_no_ip_is_refused(world: World) -> None:
    first, _ = world.guests
    first.send(frame(world.host_mac, first.mac, ETH_TEST, bytes(46)))
    assert world.refusals() == {"ethertype": 1}


# -- speaking for another's connection -------------------------------------------------------------


@pytest.mark.parametrize(
    ("flow", "own", "far"), [(FLOW4, OWN4, FAR4), (FLOW6, OWN6, FAR6)], ids=["IPv4", "IPv6"]
)
def test_a_guest_delivers_packets_of_its_own_connection_only(
    world: World, flow: FiveTuple, own: str, far: str
) -> None:
    first, second = world.guests
    world.steering.admit(1, flow)
    world.steering.admit(2, FiveTuple(flow.version, UDP, own, 5001, far, 6001))
    third = "10.77.0.3" if flow.version == 4 else "fd77::3"
    with world.ear("host", own, 5000) as mine, world.ear("host", own, 5001) as others:
        world.udp(first, (far, 6001), (own, 5001))  # the other guest's connection
        world.udp(first, (far, 6000), (own, 5001))  # another service
        world.udp(first, (third, 6000), (own, 5000))  # another host's name
        assert mine.silent()
        assert others.silent()
        assert world.refusals() == {"delivery": 3}
        world.udp(first, (far, 6000), (own, 5000))
        assert mine.hears()
        world.udp(second, (far, 6001), (own, 5001))
        assert others.hears()
    assert world.refusals() == {"delivery": 3}


def test_a_guest_on_the_way_delivers_nothing(world: World) -> None:
    first, _ = world.guests
    with world.ear("host", OWN4, 5000) as application:
        world.udp(first, (FAR4, 6000), (OWN4, 5000))
        assert application.silent()
        assert world.refusals() == {"delivery": 1}
        world.steering.admit(1, FLOW4)
        world.udp(first, (FAR4, 6000), (OWN4, 5000))
        assert application.hears()


def test_fragments_of_its_connection_come_together(world: World) -> None:
    """Later fragments have no ports; they pass between the two addresses, and nothing else does."""
    first, _ = world.guests
    world.steering.admit(1, FLOW4)
    kind, packet = udp_packet((FAR4, 6000), (OWN4, 5000))
    with world.ear("host", OWN4, 5000) as application:
        for fragment in fragments(packet):
            first.send(frame(world.host_mac, first.mac, kind, fragment))
        assert application.hears()
        _, stranger = udp_packet(("10.77.0.3", 6000), (OWN4, 5000))
        for fragment in fragments(stranger):
            first.send(frame(world.host_mac, first.mac, kind, fragment))
        assert application.silent()
    assert world.refusals() == {"delivery": 2}


def fragments(packet: bytes) -> list[bytes]:
    """An IPv4 packet in two: 16 bytes of payload, and the rest."""
    found = []
    for more, offset, payload in ((0x2000, 0, packet[20:36]), (0, 2, packet[36:])):
        head = bytearray(packet[:20])
        head[2:4] = (20 + len(payload)).to_bytes(2, "big")
        head[4:8] = (77).to_bytes(2, "big") + (more | offset).to_bytes(2, "big")
        head[10:12] = bytes(2)
        head[10:12] = checksum(bytes(head)).to_bytes(2, "big")
        found.append(bytes(head) + payload)
    return found


# -- nothing is left, nothing is lost --------------------------------------------------------------


def test_a_removed_guest_may_send_nothing_and_leaves_nothing(world: World) -> None:
    first, _ = world.guests
    world.steering.admit(1, FLOW4)
    world.steering.admit(1, FiveTuple(4, ICMP, OWN4, 7, FAR4, 7))
    world.steering.remove_guest(1)
    assert first.mac not in world.nftables.run("list ruleset")
    assert first.mac not in neighbours_of_host(world).values()
    with world.ear("neighbour", NEIGHBOUR, PORT) as neighbour:
        world.udp(first, (first.address, PORT), (NEIGHBOUR, PORT))
        assert neighbour.silent()
    assert world.refusals() == {"address": 1}


def test_grants_survive_the_orchestrator(world: World) -> None:
    """Also one that died: the next one knows from the kernel whom it let do what."""
    first, _ = world.guests
    flows = (
        FLOW4,
        FLOW6,
        FiveTuple(4, ICMP, OWN4, 7, FAR4, 7),
        FiveTuple(6, TCP, OWN6, 1, FAR6, 2),
    )
    for flow in flows:
        world.steering.admit(1, flow)
    successor = NftSteering(world.config, world.nftables, world.host_net)
    successor.install()
    with world.ear("host", OWN4, 5000) as application:
        world.udp(first, (FAR4, 6000), (OWN4, 5000))
        assert application.hears()
    for flow in flows:
        successor.admit(1, flow)  # nothing new
    successor.remove_guest(1)
    assert first.mac not in world.nftables.run("list ruleset")
    world.steering.install()  # the fixture's own knows it, too


def neighbours_of_host(world: World) -> dict[str, str]:
    return world.host_net.list_neighbours("guests")
