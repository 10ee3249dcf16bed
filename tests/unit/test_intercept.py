"""The miss device and the memory of fragments."""

from __future__ import annotations

import os
import struct
import subprocess
from collections.abc import Iterator

import pytest

from fabric.errors import Conflict
from fabric.host.network.intercept import FragmentMemory, MissDevice
from fabric.host.network.netlink import Netlink
from fabric.host.network.netns import create_netns, delete_netns
from fabric.host.network.steering import MISS_DEVICE
from tests.unit.netns_world import Inside, wait_for_packets

root = pytest.mark.root
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def fragment(identification: int, offset: int, *, more: bool) -> bytes:
    body = struct.pack("!HHHH", 5000 + identification, 53, 40, 0) + bytes(8)
    header = struct.pack(
        "!BBHHHBBH", 0x45, 0, 20 + len(body), identification, more << 13 | offset, 64, 17, 0
    )
    return header + bytes((10, 77, 0, 1, 10, 77, 0, 2)) + body


def test_later_fragments_get_the_flow_of_their_first() -> None:
    memory = FragmentMemory()
    assert memory.flow_of(fragment(1, 2, more=True)) is None  # arrived before its first
    first = memory.flow_of(fragment(1, 0, more=True))
    other = memory.flow_of(fragment(2, 0, more=True))
    assert first is not None
    assert first != other
    assert memory.flow_of(fragment(1, 2, more=False)) == first
    assert memory.flow_of(fragment(2, 2, more=False)) == other
    for number in range(3, 300):
        memory.flow_of(fragment(number, 0, more=True))
    assert memory.flow_of(fragment(1, 2, more=False)) is None  # memory is bounded
    assert memory.flow_of(fragment(299, 2, more=False)) is not None


@pytest.fixture
def place() -> Iterator[tuple[str, Inside, Netlink, MissDevice]]:
    name = f"fbi{os.getpid() % 10000}"
    create_netns(name)
    inside = Inside(name)
    try:
        with Netlink(name) as net:
            net.create_veth("guests", "far", alias="")
            miss = MissDevice(
                net,
                addresses=("10.77.0.1/32", "fd77::1/128"),
                prefixes=("10.77.0.0/16", "fd77::/64"),
                guest_interface="guests",
                mtu=1400,
                alias="fabric:lab:h1",
            )
            inside.call(miss.__enter__)
            yield name, inside, net, miss
            miss.remove()
    finally:
        inside.close()
        delete_netns(name)


@root
@needs_root
def test_overlay_packets_arrive_whole_and_kernel_noise_does_not(
    place: tuple[str, Inside, Netlink, MissDevice],
) -> None:
    name, _, net, miss = place
    subprocess.run(["ip", "netns", "exec", name, "ping", "-c1", "-W1", "10.77.0.9"], check=False,
                   stdout=subprocess.DEVNULL)  # fmt: skip
    subprocess.run(["ip", "netns", "exec", name, "ping", "-c1", "-W1", "ff02::1%fabric0"],
                   check=False, stdout=subprocess.DEVNULL)  # fmt: skip
    (packet,) = wait_for_packets(miss)
    assert packet[12:20] == bytes((10, 77, 0, 1, 10, 77, 0, 9))
    assert miss.read_burst() == []
    link = next(link for link in net.list_links() if link.name == MISS_DEVICE)
    assert (link.mtu, link.alias, link.up) == (1400, "fabric:lab:h1", True)


@root
@needs_root
def test_one_reader_at_a_time_and_a_later_one_takes_over(
    place: tuple[str, Inside, Netlink, MissDevice],
) -> None:
    _, inside, net, miss = place
    second = MissDevice(
        net, addresses=("10.77.0.1/32",), prefixes=("10.77.0.0/16",), guest_interface="guests",
        mtu=1400,
    )  # fmt: skip
    with pytest.raises(Conflict, match=MISS_DEVICE):
        inside.call(second.__enter__)
    miss.close()
    assert net.exists(MISS_DEVICE)
    inside.call(second.__enter__)
    second.remove()
    assert not net.exists(MISS_DEVICE)


@root
@needs_root
def test_garbage_is_not_written(place: tuple[str, Inside, Netlink, MissDevice]) -> None:
    assert not place[3].write(b"")
    assert not place[3].write(b"\xff" * 40)
