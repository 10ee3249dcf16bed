"""The agent for real: namespaces in the guests' place, real programs at both ends."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from fabric.host.guest.bundle import build_bundle
from fabric.routing.policy import ApplicationFacts
from fabric.wire import notice
from fabric.wire.control import (
    AgentEvent,
    Counters,
    Hello,
    Identity,
    InstallTable,
    Ready,
    Traces,
)
from fabric.wire.inner import FiveTuple
from fabric.wire.packet import DEFAULT_HOP_LIMIT, FLAG_REPLY, Packet
from tests.unit.agent_lab import CONNECTION, AgentLab

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root and network namespaces"),
]


@pytest.fixture(scope="module")
def lab() -> Iterator[AgentLab]:
    with AgentLab(3) as line:
        yield line


def serve(lab: AgentLab, node: int, *argv: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        ["ip", "netns", "exec", lab.app(node), *argv],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def wait_for_port(lab: AgentLab, node: int, port: int) -> None:
    end = time.monotonic() + 10
    while f":{port} " not in lab.run(node, "ss", "-ltn") + " ":
        assert time.monotonic() < end, "server does not listen"
        time.sleep(0.05)


def test_agents_said_hello_and_are_ready(lab: AgentLab) -> None:
    for node in (1, 2, 3):
        hello, ready = lab.messages[node][:2]
        assert isinstance(hello, Hello)
        assert isinstance(ready, Ready)
        assert (ready.connection, ready.protocol) == (CONNECTION, 1)
        assert 5 <= ready.spawn_ms < 15000


@pytest.mark.parametrize("target", ["10.77.0.3", "fd77::3"])
def test_ping_crosses_in_both_families(lab: AgentLab, target: str) -> None:
    assert " 0% packet loss" in lab.run(1, "ping", "-c", "3", "-i", "0.05", "-s", "1300", target)


def test_traces_name_every_host_in_order(lab: AgentLab) -> None:
    lab.run(1, "ping", "-c", "1", "10.77.0.3")
    for node, path, reply in ((3, [1, 2, 3], 0), (1, [3, 2, 1], FLAG_REPLY)):
        newest = Packet.parse_trace(bytes.fromhex(lab.query(node, "traces", Traces).traces[-1]))
        assert [record.node for record in newest.records] == path
        assert newest.header.flags & FLAG_REPLY == reply
        assert newest.header.hop_limit == DEFAULT_HOP_LIMIT - 1
        assert {record.table_version for record in newest.records} == {7}
        times = [record.received_at_us for record in newest.records]
        # Each agent set its own clock by a message: on a busy machine they differ by milliseconds.
        assert all(b > a - 100_000 for a, b in pairwise(times))
        assert all(record.residence_us > 0 for record in newest.records)
        edges = [(r.ingress_interface, r.egress_interface) for r in newest.records]
        assert edges == ([(0, 2), (1, 3), (2, 0)] if node == 3 else [(0, 2), (3, 1), (2, 0)])


@pytest.mark.parametrize("host", ["10.77.0.3", "[fd77::3]"])
def test_a_file_arrives_byte_identical(lab: AgentLab, host: str, tmp_path: Path) -> None:
    content = os.urandom(8 * 1024 * 1024)
    (tmp_path / "file").write_bytes(content)
    bind = "fd77::3" if "fd77" in host else "10.77.0.3"
    argv = ("python3", "-m", "http.server", "8000", "--bind", bind, "--directory", str(tmp_path))
    server = serve(lab, 3, *argv)
    try:
        wait_for_port(lab, 3, 8000)
        url = f"http://{host}:8000/file"
        lab.run(1, "curl", "-sS", "--max-time", "50", "-o", str(tmp_path / "got"), url)
    finally:
        server.kill()
        server.wait()
    got = (tmp_path / "got").read_bytes()
    assert hashlib.sha256(got).digest() == hashlib.sha256(content).digest()
    counters = lab.query(2, "counters", Counters)
    assert counters.closing, "the relay saw both FINs pass"
    assert counters.counters["forwarded"] == counters.counters["packets_in"]
    drops = {name for name in counters.counters if name.startswith("drop_")}
    assert not drops


def test_udp_crosses_without_loss_at_a_modest_rate(lab: AgentLab) -> None:
    server = serve(lab, 3, "iperf3", "-s", "-B", "10.77.0.3")
    try:
        wait_for_port(lab, 3, 5201)
        argv = ("iperf3", "-c", "10.77.0.3", "-u", "-b", "5M", "-l", "1200", "-t", "2", "-J")
        report = json.loads(lab.run(1, *argv))
    finally:
        server.kill()
        server.wait()
    assert report["end"]["sum"]["lost_packets"] == 0
    assert report["end"]["sum"]["packets"] > 900


def test_first_packets_are_told_at_once(lab: AgentLab) -> None:
    lab.run(1, "ping", "-c", "1", "10.77.0.3")
    lab.query(2, "counters", Counters)
    told = [
        (m.fields["direction"], m.fields["reply"], m.fields["next_hop"])
        for m in lab.messages[2]
        if isinstance(m, AgentEvent) and m.name == "first-packet"
    ]
    assert sorted(told, key=str) == [
        ("forwarded", False, 3),
        ("forwarded", True, 1),
        ("in", False, None),
        ("in", True, None),
    ]


def test_another_table_takes_effect_and_no_route_is_told(lab: AgentLab) -> None:
    empty = lab.table(2, version=8).to_json() | {"routes": {}}
    lab.send(2, InstallTable(empty))
    with pytest.raises(AssertionError, match="100% packet loss"):
        lab.run(1, "ping", "-c", "1", "-W", "1", "10.77.0.3")
    counters = lab.query(2, "counters", Counters).counters
    assert counters["drop_no_route"] >= 1
    assert any(isinstance(m, AgentEvent) and m.name == "no-route" for m in lab.messages[2])
    lab.send(2, InstallTable(lab.table(2, version=9).to_json()))
    lab.run(1, "ping", "-c", "1", "10.77.0.3")
    newest = lab.query(3, "traces", Traces).traces[-1]
    assert [r.table_version for r in Packet.parse_trace(bytes.fromhex(newest)).records] == [7, 9, 7]


def test_no_room_in_the_mtu_is_flagged_and_the_packet_arrives() -> None:
    # 1300 + 40 + 28 fits 1400 with the first record exactly, and with no second one.
    with AgentLab(3, link_mtu=1400, overlay_mtu=1300) as lab:
        lab.run(1, "ping", "-c", "1", "-s", "1272", "-M", "do", "10.77.0.3")
        newest = Packet.parse_trace(bytes.fromhex(lab.query(3, "traces", Traces).traces[-1]))
        assert newest.header.flag_names() == ["mtu"]
        assert [record.node for record in newest.records] == [1, 3]


def test_the_pushed_zip_application_runs_and_knows_its_digest(tmp_path: Path) -> None:
    bundle = build_bundle()
    (tmp_path / "agent.pyz").write_bytes(bundle.data)
    with AgentLab(2, zipapp=tmp_path / "agent.pyz") as lab:
        hello = lab.messages[1][0]
        assert isinstance(hello, Hello)
        assert hello.digest == bundle.digest
        assert lab.query(1, "identity", Identity) == Identity(CONNECTION, 1, 7, bundle.digest)
        lab.run(1, "ping", "-c", "1", "10.77.0.2")


def test_the_ingress_selects_by_facts_and_policy(lab: AgentLab) -> None:
    flow = FiveTuple(4, 6, "10.77.0.1", 40000, "10.77.0.3", 22)
    facts = ApplicationFacts(flow=flow, executable="/usr/bin/ssh").to_json()
    policy = {"rules": [{"name": "shell", "match": {"executable": "*/ssh"}, "need": "low-latency"}]}
    lab.send(1, lab.configure(1, facts=facts, policy=policy, protocol=None))
    ready = lab.wait(1, Ready)
    assert (ready.protocol, ready.protocol_name, ready.rule) == (1, "low-latency", "shell")
    assert " 0% packet loss" in lab.run(1, "ping", "-c", "1", "10.77.0.3")


def busy_ticks(lab: AgentLab, node: int) -> int:
    """Clock ticks (10 ms) of CPU an agent used within a second."""
    argv = ["ip", "netns", "pids", lab.guest(node)]
    pids = subprocess.run(argv, capture_output=True, text=True, check=True).stdout.split()
    assert pids

    def used() -> int:
        stats = [Path(f"/proc/{pid}/stat").read_text().split()[13:15] for pid in pids]
        return sum(int(ticks) for pair in stats for ticks in pair)

    before = used()
    time.sleep(1)
    return used() - before


def test_an_idle_agent_sleeps(lab: AgentLab) -> None:
    lab.query(2, "counters", Counters)
    time.sleep(1.2)
    assert busy_ticks(lab, 2) == 0


def test_an_agent_without_its_host_forwards_and_does_not_spin(lab: AgentLab) -> None:
    lab.hang_up(2)
    assert " 0% packet loss" in lab.run(1, "ping", "-c", "2", "-i", "0.05", "10.77.0.3")
    assert busy_ticks(lab, 2) <= 5


def test_an_agent_that_serves_nobody_says_so() -> None:
    with AgentLab(1, configured=False) as lab:
        assert lab.query(1, "identity", Identity) == Identity(0, None, 0, "")


KEY = b"8 bytes!"


def notify(
    lab: AgentLab, node: int, serial: int, *down: str, key: bytes = KEY, port: int = 700
) -> None:
    """What the host's link watch sends, from the host's side of the guest's uplink."""
    data = notice.encode(notice.Notice(key, serial, down)).hex()
    program = (
        "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); "
        f"s.bind(('', {port})); "
        f"s.sendto(bytes.fromhex('{data}'), ('100.115.0.2', {notice.PORT}))"
    )
    lab.run(node, sys.executable, "-c", program)


def avoided(lab: AgentLab, node: int) -> list[list[str]]:
    """What the agent says it avoids, one entry per change."""
    lab.query(node, "counters", Counters)
    return [
        m.fields["addresses"]
        for m in lab.messages[node]
        if isinstance(m, AgentEvent) and m.name == "neighbours-avoided"
    ]


def test_a_notice_takes_effect_at_once_and_only_the_hosts_own_newest_one() -> None:
    with AgentLab(3) as lab:
        neighbour = "172.31.2.3"
        for forged in (b"", bytes(8)):  # who was given no key takes no notice
            notify(lab, 2, 9, neighbour, key=forged)
        assert avoided(lab, 2) == []
        lab.send(2, lab.configure(2, notice_key=KEY.hex()))
        lab.wait(2, Ready)
        for wrong in (
            {"key": b"guessed!"},
            {"port": 40_000},  # any program of the host may have it
        ):
            notify(lab, 2, 9, neighbour, **wrong)
        assert avoided(lab, 2) == []
        notify(lab, 2, 2, neighbour)
        assert avoided(lab, 2) == [[neighbour]]
        with pytest.raises(AssertionError, match="100% packet loss"):
            lab.run(1, "ping", "-c", "1", "-W", "1", "10.77.0.3")
        notify(lab, 2, 1)  # older: it was overtaken
        notify(lab, 2, 2)
        assert avoided(lab, 2) == [[neighbour]]
        notify(lab, 2, 3)
        assert avoided(lab, 2) == [[neighbour], []]
        lab.run(1, "ping", "-c", "1", "10.77.0.3")
