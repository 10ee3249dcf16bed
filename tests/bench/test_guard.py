"""What the guard costs per packet: guests' packets with it and without it, in turns.

Run with ``-s`` to see the figures. Only that packets got through is tested: how fast a machine is,
no test can know.
"""

from __future__ import annotations

import os
import socket
import time

import pytest

from fabric.wire.inner import UDP, FiveTuple
from tests.unit.guard_world import FAR4, NEIGHBOUR, OWN4, World, guarded_host, tag
from tests.unit.netns_world import PORT

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
]

ROUNDS = 9
PACKETS = 10_000
"""Per round: a tenth of a second, longer than a scheduler's turn."""
OTHERS = 200
"""Other guests, each with its connection: a look-up must not care."""


def test_what_the_guard_costs() -> None:
    with guarded_host(tag()) as world:
        world.steering.admit(1, FiveTuple(4, UDP, OWN4, 5000, FAR4, 6000))
        world.command("guest1", "ip", "address", "add", FAR4, "dev", "lo")
        for index in range(3, 3 + OTHERS):
            world.steering.add_guest(index, f"02:fa:00:00:01:{index:02x}")
            flow = FiveTuple(4, UDP, OWN4, 5000 + index, FAR4, 6000 + index)
            world.steering.admit(index, flow)
        ways = {
            "fabric packet to a neighbour": (("0.0.0.0", PORT), "neighbour", (NEIGHBOUR, PORT)),
            "inner packet to an application": ((FAR4, 6000), "host", (OWN4, 5000)),
        }
        for name, (source, place, target) in ways.items():
            with world.ear(place, *target) as ear:
                guarded, bare = measure(world, source, target)
                assert ear.hears()
            print(
                f"\n{name}: {guarded:.0f} ns guarded, {bare:.0f} ns bare, "
                f"ratio {bare / guarded:.2f}"
            )


def measure(world: World, source: tuple[str, int], target: tuple[str, int]) -> tuple[float, float]:
    """Best ns per packet of some rounds, with and without the guard's rules at the interface.

    Between namespaces a packet travels on its sender's time, to the receiver's socket.
    """
    with world.places["guest1"].call(socket.socket, socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.bind(source)
        udp.connect(target)
        series: dict[bool, list[float]] = {True: [], False: []}
        for turn in range(2 * ROUNDS):
            guarded = turn % 2 == 0
            world.steering.install()
            if not guarded:
                world.nftables.run("insert rule netdev fabric guests accept")
            series[guarded].append(ns_per_packet(udp))
        return min(series[True]), min(series[False])


def ns_per_packet(udp: socket.socket) -> float:
    send, word = udp.send, bytes(64)
    begun = time.perf_counter_ns()
    for _ in range(PACKETS):
        send(word)
    return (time.perf_counter_ns() - begun) / PACKETS
