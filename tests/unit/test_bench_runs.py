"""Handling a run of packets together must not show: bytes and order are those of one by one."""

from __future__ import annotations

import random

import pytest

from fabric.routing.forwarder import Forwarder, ForwarderConfig
from fabric.routing.table import ForwardingTable, NextHop
from fabric.wire.packet import Packet


def forwarder(mtu: int) -> Forwarder:
    """The ingress engine of a connection from node 1 to node 3."""
    hop = NextHop(2, "172.31.0.1", 1, mtu, 1)
    table = ForwardingTable(1, 7, {(3, 0): (hop,)})
    config = ForwarderConfig(
        node=1, guest=1, connection=5, source_node=1, destination_node=3, protocol=0
    )
    return Forwarder(config, table)


def mixed_burst(seed: int) -> list[memoryview]:
    """IPv4, IPv6, rubbish and nothing, in lengths that repeat, as runs and interleaved."""
    rng = random.Random(seed)
    burst: list[memoryview] = []
    while len(burst) < 150:
        packet = bytearray(rng.randbytes(rng.choice((0, 1, 9, 60, 60, 512, 1400, 1401))))
        if packet:
            packet[0] = rng.choice((0x45, 0x45, 0x45, 0x60, 0x00))
        burst += [memoryview(packet)] * rng.choice((1, 1, 2, 70))
    return burst


@pytest.mark.parametrize("mtu", [1500, 9000])
@pytest.mark.parametrize("seed", range(8))
def test_a_burst_leaves_as_its_packets_would_alone(seed: int, mtu: int) -> None:
    burst = mixed_burst(seed)
    together, alone = forwarder(mtu), forwarder(mtu)
    actions = together.from_application(burst, 1_000_000, 1)
    one_by_one = [alone.from_application([each], 1_000_000, 1) for each in burst]
    sent = [datagram for batch in actions.batches for datagram in batch.datagrams()]
    assert sent == [d for each in one_by_one for batch in each.batches for d in batch.datagrams()]
    assert together.counters == alone.counters
    assert [Packet.parse(d).header.sequence for d in sent] == list(range(1, len(sent) + 1))
    for batch in actions.batches:
        # What one UDP_SEGMENT call may hold: equal sizes, the last one may be shorter.
        sizes = [len(each) for each in batch.datagrams()]
        assert set(sizes[:-1]) <= {batch.size}
        assert sizes[-1] <= batch.size
        assert len(sizes) <= 64
        assert sum(sizes) <= 65507
