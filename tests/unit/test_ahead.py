"""A copy's first packet: a frame made by hand, before the kernel has an address."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric.agent.ahead import headers
from fabric.routing.table import ForwardingTable, NextHop
from fabric.wire.control import Identified, Quiesce, Quiesced, Ready
from fabric.wire.inner import UDP, FiveTuple, parse_flow
from fabric.wire.packet import Packet
from tests.unit.agent_lab import AgentLab
from tests.unit.inner_packets import slow_sum, udp_packet
from tests.unit.test_agent_identity_netns import MAC, identify

octets4 = st.binary(min_size=4, max_size=4)


@given(octets4, octets4, st.integers(0, 1472), st.integers(1, 255))
def test_headers_are_what_a_kernel_writes(
    source: bytes, destination: bytes, size: int, hops: int
) -> None:
    made = bytes(headers(b"gatewy", b"itself", source, destination, 7704, hops, size))
    assert made[:14] == b"gatewyitself\x08\x00"
    network = made[14:]
    assert slow_sum(network[:20]) == 0xFFFF  # RFC 791
    assert (network[2:4], network[8]) == ((size + 28).to_bytes(2, "big"), hops)
    assert network[20:] == bytes.fromhex("1e181e18") + (size + 8).to_bytes(2, "big") + b"\0\0"
    dotted = [".".join(map(str, address)) for address in (source, destination)]
    assert parse_flow(network + bytes(size)) == FiveTuple(4, UDP, dotted[0], 7704, dotted[1], 7704)


LISTEN = """
import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(("100.115.0.1", 7704))
s.settimeout(20)
wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.ntohs(0x0800))
wire.bind(("eth0", 0x0800))
wire.settimeout(20)
print("listening", flush=True)
for _ in range(int(sys.argv[1])):
    data, sender = s.recvfrom(65536)
    print(data.hex(), *sender, flush=True)
print(wire.recv(65536)[:42].hex(), flush=True)
"""


@pytest.fixture
def lab() -> Iterator[AgentLab]:
    with AgentLab(2, configured=False) as line:
        yield line


def first_packets(
    lab: AgentLab, first: list[bytes], **identity: Any
) -> tuple[list[tuple[bytes, str]], bytes]:
    """What reaches the gateway of a copy that is given its identity and these packets at once:
    datagrams and their sender; the headers of the first frame."""
    listener = ["ip", "netns", "exec", lab.app(1), sys.executable, "-c", LISTEN, str(len(first))]
    with subprocess.Popen(listener, stdout=subprocess.PIPE, text=True) as gateway:
        assert gateway.stdout is not None
        gateway.stdout.readline()
        hop = NextHop(2, "100.115.0.1", 2, 9000, 1)
        table = ForwardingTable(1, 7, {(2, 1): (hop,)}).to_json()
        configure = lab.configure(1, table=table, first=[packet.hex() for packet in first])
        lab.send(1, identify(1, **identity), configure)
        lab.wait(1, Ready)
        *lines, frame = gateway.stdout.read().splitlines()
    found = [line.split() for line in lines]
    came = [(bytes.fromhex(data), f"{address}:{port}") for data, address, port in found]
    return came, bytes.fromhex(frame)


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root and network namespaces")
@pytest.mark.parametrize(
    ("sizes", "ahead"), [([100], True), ([100, 100], False), ([100, 300], False), ([8500], False)]
)
def test_first_packets_leave_a_copy_whatever_way_they_take(
    lab: AgentLab, sizes: list[int], ahead: bool
) -> None:
    """One goes ahead of the address; several, or what is more than a frame, when it is there."""
    lab.send(1, Quiesce())
    lab.wait(1, Quiesced)
    first = [udp_packet(bytes([n] * size)) for n, size in enumerate(sizes)]
    came, frame = first_packets(lab, first, address="100.115.0.9", mtu=4000)
    assert {sender for _, sender in came} == {"100.115.0.9:7704"}
    assert [Packet.parse(datagram).payload for datagram, _ in came] == first
    assert frame[6:12].hex(":") == MAC.format(1)
    assert (frame[40:42] == bytes(2)) is ahead, "the kernel's own has a checksum"
    said = lab.wait(1, Identified)
    assert (said.mac, said.address) == (MAC.format(1), "100.115.0.9")
