"""The bridge ports of guests, on real namespaces: who is behind one is who it says, and the machine
the bridge is on is no party there.

Every refusal is followed by its control: the same frame with the one lie taken out, or the one
switch turned, arrives.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import pytest

from fabric.errors import SpawnFailed
from tests.unit.guard_world import (
    BROADCAST,
    ETH_ARP,
    ETH_TEST,
    MACHINE,
    NEIGHBOUR,
    World,
    arp,
    frame,
    fresh,
    guarded_host,
    tag,
)
from tests.unit.netns_world import PORT

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
]

STRANGER = "02:fa:00:ff:ff:ff"
LINK_LOCAL_GROUP = "01:80:c2:00:00:0e"
"""Where bridges listen (IEEE 802.1D); frames to it are not forwarded."""


@pytest.fixture(scope="module")
def one_world() -> Iterator[World]:
    with guarded_host(tag()) as made:
        yield made


@pytest.fixture
def world(one_world: World) -> Iterator[World]:
    with fresh(one_world) as made:
        yield made


def test_the_host_reaches_both_guests_at_once(world: World) -> None:
    for guest in world.guests:
        assert world.command("host", "ping", "-c1", "-W2", guest.address).returncode == 0


@pytest.mark.parametrize("whose", ["the other guest's", "nobody's", "the host's"])
def test_a_frame_with_another_mac_goes_nowhere(world: World, whose: str) -> None:
    first, second = world.guests
    mac = {"the other guest's": second.mac, "nobody's": STRANGER, "the host's": world.host_mac}
    with world.ear("neighbour", NEIGHBOUR, PORT) as neighbour:
        for source in (first.address, second.address):
            world.udp(first, (source, PORT), (NEIGHBOUR, PORT), mac=mac[whose])
        assert neighbour.silent()
        world.udp(first, (first.address, PORT), (NEIGHBOUR, PORT))
        assert neighbour.hears()
    # The bridge was not led to believe that the other MAC has moved.
    assert world.command("host", "ping", "-c1", "-W2", second.address).returncode == 0
    assert port_of(world, second.mac) == "tap2"


@pytest.mark.parametrize("to", ["the bridge's MAC", "everybody", "a bridge group address"])
def test_the_machine_itself_is_out_of_reach(world: World, to: str) -> None:
    """A bridge hands frames for itself to the machine's own IP stack, and so do its ports with
    frames for bridges."""
    first, _ = world.guests
    mac = {
        "the bridge's MAC": world.bridge_mac,
        "everybody": BROADCAST,
        "a bridge group address": LINK_LOCAL_GROUP,
    }[to]
    heard_on = "tap1" if mac == LINK_LOCAL_GROUP else "bridge"
    with world.ear("machine", "0.0.0.0", 9000) as service:
        world.udp(first, (first.address, PORT), (MACHINE, 9000), to=mac)
        assert service.silent()
        with switched(world, f"ipv4/conf/{heard_on}/rp_filter", 0, 1):
            world.udp(first, (first.address, PORT), (MACHINE, 9000), to=mac)
            assert service.hears()


def test_the_machine_tells_no_guest_its_addresses(world: World) -> None:
    first, _ = world.guests
    question = arp(1, first.mac, (first.mac, "0.0.0.0"), MACHINE)
    first.send(question)
    assert first.silent(ETH_ARP)
    with switched(world, "ipv4/conf/bridge/arp_ignore", 0, 8):
        first.send(question)
        assert first.hears(ETH_ARP)


@contextlib.contextmanager
def switched(world: World, switch: str, value: int, back: int) -> Iterator[None]:
    """A switch of the machine's, the other way for a while."""
    world.machine.sysctl(switch, value)
    try:
        yield
    finally:
        world.machine.sysctl(switch, back)


@pytest.mark.parametrize("to", [STRANGER, BROADCAST, "33:33:00:00:00:01", "01:00:5e:00:00:fb"])
def test_a_guest_hears_what_is_for_it_alone(world: World, to: str) -> None:
    first, second = world.guests
    word = frame(to, world.host_mac, ETH_TEST, bytes(46))
    world.host_wire.send(word)
    assert first.silent(ETH_TEST)
    assert second.silent(ETH_TEST)
    world.host_wire.send(frame(first.mac, world.host_mac, ETH_TEST, bytes(46)))
    assert first.hears(ETH_TEST)
    assert second.silent(ETH_TEST)


def test_a_port_and_all_it_was_told_go_with_its_tap(world: World) -> None:
    machine = world.machine
    machine.create_veth("tap3", "end3", alias="", master="bridge")
    assert world.ports.secure("tap3", STRANGER)
    assert world.ports.secure("tap3", STRANGER), "idempotent"
    shown = world.command("machine", "bridge", "-d", "link", "show", "dev", "tap3").stdout
    for word in ("learning off", "locked on", "isolated on", "flood off", "mcast_router 0"):
        assert word in shown
    assert port_of(world, STRANGER) == "tap3"
    machine.delete_link("tap3")
    assert port_of(world, STRANGER) == ""


def test_a_tap_that_is_not_there_cannot_be_secured(world: World) -> None:
    with pytest.raises(SpawnFailed, match="tap9"):
        world.ports.secure("tap9", STRANGER)


def port_of(world: World, mac: str) -> str:
    """Behind which port the bridge has a MAC; empty: nowhere."""
    shown = world.command("machine", "bridge", "fdb", "show", "br", "bridge").stdout
    found = [line.split() for line in shown.splitlines() if line.startswith(mac)]
    return found[0][2] if found else ""
