"""The agent's parts that need neither root nor a network."""

from __future__ import annotations

import os
import pty
import socket
import subprocess
import sys
import tty
from pathlib import Path

from fabric.agent import channel as channel_module
from fabric.agent.channel import Channel
from fabric.agent.session import Session
from fabric.routing.table import ForwardingTable, NextHop
from fabric.wire.control import Configure, Counters, Query, encode

ROOT = Path(__file__).parent.parent.parent
# Each costs a guest under emulation a tenth of a second or more, before its first packet.
TOO_HEAVY = {"dataclasses", "inspect", "typing", "argparse", "pathlib", "hashlib", "asyncio", "ssl"}


def test_importing_the_agent_stays_cheap() -> None:
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import fabric.agent.main; "
    code += "print(*sys.modules)"
    argv = [sys.executable, "-I", "-S", "-c", code]
    loaded = subprocess.run(argv, capture_output=True, text=True, check=True).stdout.split()
    assert not TOO_HEAVY & set(loaded)
    assert not [name for name in loaded if name.startswith("fabric.host")]


def test_a_channel_on_a_terminal_line_carries_messages_both_ways() -> None:
    host, guest = pty.openpty()
    tty.setraw(guest)
    channel = Channel(os.ttyname(guest))
    os.write(host, encode(Query("counters"))[:-5])
    assert channel.receive() == ([], True)
    os.write(host, encode(Query("counters"))[-5:] + b"nonsense\n" + encode(Query("traces")))
    assert channel.receive() == ([Query("counters"), Query("traces")], True)
    channel.send(Counters({"packets_in": 1}, 5, False))
    assert os.read(host, 1000) == encode(Counters({"packets_in": 1}, 5, False))
    for fd in (host, guest):
        os.close(fd)


def test_a_host_that_does_not_read_costs_news_not_memory() -> None:
    ours, theirs = socket.socketpair()
    channel = Channel(f"fd:{theirs.fileno()}")
    news = Counters({"x" * 1000: 1}, 5, False)
    for _ in range(3000):
        channel.send(news)
    assert channel.wants_to_write
    ours.settimeout(5)
    whole = b""
    while not whole.endswith(b"}\n") or channel.wants_to_write:
        whole += ours.recv(1 << 20)
        channel.flush()
    assert 0 < len(whole) - channel_module.MAX_PENDING < 1 << 20
    assert set(whole.splitlines(keepends=True)) == {encode(news)}, "no line is cut"
    ours.close()
    assert channel.receive() == ([], False)
    theirs.close()


def configure(**changes: object) -> Configure:
    hop = NextHop(2, "172.31.0.1", 1, 1500, 10)
    values = {
        "connection": 1,
        "lab": "t",
        "host": "h1",
        "node": 1,
        "guest": 1,
        "role": "ingress",
        "source_node": 1,
        "destination_node": 4,
        "table": ForwardingTable(1, 3, {(4, 0): (hop,)}).to_json(),
        "interfaces": {},
        "port": 7704,
        "overlay_mtu": 1400,
        "requested_at_us": 1_000_000,
        "host_now_us": 1_100_000,
    }
    return Configure(**(values | changes))  # type: ignore[arg-type]


def test_a_host_on_the_way_takes_the_protocol_it_is_told() -> None:
    ready = Session.begin(configure(node=2, protocol=2), 1_105_000).ready()
    assert (ready.protocol, ready.protocol_name, ready.rule) == (2, "wide", "carried in packet")
    assert ready.spawn_ms == 105
    unknown = Session.begin(configure(node=2), 1_105_000).ready()
    assert (unknown.protocol, unknown.protocol_name) == (None, "")
    user = Session.begin(configure(node=2, protocol=200), 1_105_000).ready()
    assert user.protocol_name == "protocol 200"
