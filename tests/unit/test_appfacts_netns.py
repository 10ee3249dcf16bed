"""Application facts of real, unmodified programs, found in a namespace of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import pytest

from fabric.host.network import appfacts
from fabric.host.network.appfacts import find_facts, unit_of
from fabric.host.network.intercept import MissDevice
from fabric.host.network.netlink import Netlink
from fabric.host.network.netns import create_netns, delete_netns
from fabric.host.network.sockdiag import find_socket
from fabric.routing.policy import ApplicationFacts
from fabric.wire.inner import FiveTuple, parse_flow
from tests.unit.netns_world import Inside, wait_for_packets

UNPRIVILEGED = 65534
"""nobody"""

TCP_CLIENT = "import socket,sys; socket.create_connection((sys.argv[1], 80), 9)"
UDP_CLIENT = """
import socket, sys, time
s = socket.socket(socket.AF_INET6 if ':' in sys.argv[1] else socket.AF_INET, socket.SOCK_DGRAM)
s.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, 46 << 2)
s.sendto(b'x', (sys.argv[1], 53))
time.sleep(9)
"""
RAW_PING = """
import os, socket, struct, sys, time
s = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
head = struct.pack('!BBHHH', 8, 0, 0, os.getpid() & 0xffff, 1)
s.sendto(head[:2] + struct.pack('!H', 0xffff - 0x0800 - (os.getpid() & 0xffff) - 1 & 0xffff)
         + head[4:], (sys.argv[1], 0))
time.sleep(9)
"""


class Place:
    """A namespace whose overlay traffic ends in a miss device, and the programs started in it."""

    def __init__(self, inside: Inside, miss: MissDevice) -> None:
        self.inside = inside
        self.miss = miss
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self, *argv: str, **options: object) -> subprocess.Popen[bytes]:
        def spawn() -> subprocess.Popen[bytes]:
            return subprocess.Popen(argv, stderr=subprocess.DEVNULL, **options)  # type: ignore[call-overload, no-any-return]

        process = self.inside.call(spawn)
        self.processes.append(process)
        return process

    def facts(self) -> ApplicationFacts:
        """Facts about whoever sent the next packet with a flow."""
        flows = [(parse_flow(packet), packet) for packet in wait_for_packets(self.miss)]
        flow, packet = next(pair for pair in flows if pair[0] is not None)
        assert flow is not None
        return self.inside.call(find_facts, flow, packet)


@pytest.fixture
def place() -> Iterator[Place]:
    name = f"fbf{os.getpid() % 10000}"
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
            )
            inside.call(miss.__enter__)
            there = Place(inside, miss)
            yield there
            for process in there.processes:
                process.kill()
                process.wait()
            miss.remove()
    finally:
        inside.close()
        delete_netns(name)


root = pytest.mark.root
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@root
@needs_root
@pytest.mark.parametrize("host", ["10.77.0.2", "[fd77::2]", "[::ffff:10.77.0.2]"])
def test_curl_is_recognised_with_its_declared_need(place: Place, host: str) -> None:
    environment = {**os.environ, "FABRIC_NEED": "low-latency", "FABRIC_PROTOCOL": "wide"}
    curl = place.start("curl", "-sS", f"http://{host}:8000/x", env=environment)
    facts = place.facts()
    assert facts.pid == curl.pid
    assert facts.executable == "/usr/bin/curl"
    assert facts.arguments[:2] == ("curl", "-sS")
    assert (facts.uid, facts.user) == (0, "root")
    assert (facts.declared_need, facts.declared_protocol) == ("low-latency", "wide")
    assert facts.cgroup == own_cgroup()
    assert facts.unit == unit_of(own_cgroup())
    assert facts.flow.destination_port == 8000


@root
@needs_root
def test_another_user_is_told_apart(place: Place) -> None:
    client = place.start(sys.executable, "-c", TCP_CLIENT, "10.77.0.2", user=UNPRIVILEGED)
    facts = place.facts()
    assert (facts.pid, facts.uid, facts.user) == (client.pid, UNPRIVILEGED, "nobody")
    assert facts.executable == str(Path(sys.executable).resolve())
    assert facts.declared_need is None


@root
@needs_root
@pytest.mark.parametrize("target", ["10.77.0.2", "fd77::2"])
def test_an_unconnected_udp_socket_is_found_and_its_dscp_read(place: Place, target: str) -> None:
    client = place.start(sys.executable, "-c", UDP_CLIENT, target)
    facts = place.facts()
    assert facts.pid == client.pid
    assert facts.dscp == (46 if "." in target else 0)


@root
@needs_root
@pytest.mark.parametrize("target", ["10.77.0.2", "fd77::2"])
@pytest.mark.parametrize("group", ["0 2147483647", "1 0"])
def test_ping_is_found_by_ping_socket_or_raw_socket(place: Place, target: str, group: str) -> None:
    place.inside.call(lambda: Path("/proc/sys/net/ipv4/ping_group_range").write_text(group))
    ping = place.start("ping", "-c", "1", "-W", "3", target, stdout=subprocess.DEVNULL)
    facts = place.facts()
    assert facts.pid == ping.pid
    assert facts.executable is not None
    assert facts.executable.endswith("/ping")


@root
@needs_root
def test_of_two_raw_sockets_the_identifier_decides(place: Place) -> None:
    first = place.start(sys.executable, "-c", RAW_PING, "10.77.0.2")
    assert place.facts().pid == first.pid
    second = place.start(sys.executable, "-c", RAW_PING, "10.77.0.2")
    assert place.facts().pid == second.pid
    flow = FiveTuple(4, 1, "10.77.0.1", first.pid & 0xFFFF, "10.77.0.2", first.pid & 0xFFFF)
    assert place.inside.call(find_facts, flow, b"").pid == first.pid


@root
@needs_root
def test_who_asked_lately_is_found_without_a_search(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = place.start(sys.executable, "-c", UDP_CLIENT, "10.77.0.2")
    flow = parse_flow(wait_for_packets(place.miss)[0])
    assert flow is not None
    lately: deque[int] = deque([client.pid - 1], maxlen=2)
    assert place.inside.call(find_facts, flow, b"", lately).pid == client.pid
    assert list(lately) == [client.pid, client.pid - 1]
    monkeypatch.setattr(appfacts, "_pids_here", lambda: iter(()))
    assert place.inside.call(find_facts, flow, b"", lately).pid == client.pid
    client.kill()
    client.wait()
    assert place.inside.call(find_facts, flow, b"", lately).pid is None


@root
@needs_root
def test_a_vanished_program_leaves_facts_of_none(place: Place) -> None:
    client = place.start(sys.executable, "-c", UDP_CLIENT, "10.77.0.2")
    packet = wait_for_packets(place.miss)[0]
    flow = parse_flow(packet)
    assert flow is not None
    assert place.inside.call(find_socket, flow)
    client.kill()
    client.wait()
    facts = place.inside.call(find_facts, flow, packet)
    assert (facts.pid, facts.executable, facts.user, facts.cgroup) == (None,) * 4
    assert facts.dscp == 46


@root
@needs_root
def test_the_same_flow_of_another_namespace_is_nobodys(place: Place) -> None:
    place.start(sys.executable, "-c", UDP_CLIENT, "10.77.0.2")
    flow = parse_flow(wait_for_packets(place.miss)[0])
    assert flow is not None
    assert find_facts(flow, b"").pid is None


def test_the_innermost_service_or_scope_is_the_unit() -> None:
    assert unit_of("/system.slice/nginx.service") == "nginx.service"
    assert unit_of("/user.slice/user@0.service/app.slice/run-1.scope/sub") == "run-1.scope"
    assert unit_of("/") is None
    assert unit_of(None) is None


def own_cgroup() -> str | None:
    lines = Path("/proc/self/cgroup").read_text().splitlines()
    paths = dict(line.split(":", 2)[1:] for line in lines)
    unified = paths.get("")
    return paths.get("name=systemd", unified) if unified in (None, "/") else unified
