"""Several paths, dead links and dead relays on real guests: what applications notice of them."""

from __future__ import annotations

import hashlib
import os
import re
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.vm.conftest import lab
from tests.vm.lab import ROOT, Capture, Lab, qemu_pid, wait_for

RELAYS = ("a", "b", "c")
SHARE = 0.34
"""Of disperse in examples/three-ways.yaml."""
MIB = 1024 * 1024


@pytest.fixture(scope="module")
def ways(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    text = (ROOT / "examples/three-ways.yaml").read_text()
    text = text.replace("  links: {latency", "  hosts: {protect: true}\n  links: {latency")
    text = text.replace("loss: 0.5%", "loss: 0%")  # what is lost below, the fabric has lost
    assert "protect" in text
    with lab("ways", text, tmp_path_factory.mktemp("ways"), "--idle-timeout", "60") as made:
        made.wait_for_guests_kept_ready("prepared")
        yield made


@pytest.fixture(scope="module")
def content(ways: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[bytes]:
    """What the web server on host work has as /data."""
    directory = tmp_path_factory.mktemp("content")
    data = os.urandom(2 * MIB)
    (directory / "data").write_bytes(data)
    server = ["python3", "-m", "http.server", "8000", "--directory", str(directory)]
    with ways.server("work", *server, ready=ways.listens("work", 8000)):
        yield data


def connection_of(where: Lab, port: int) -> dict[str, Any]:
    """The connection to that port with the newest request."""
    return next(c for c in where.json("connections") if c["flow"]["destination_port"] == port)


def test_disperse_shows_no_relay_more_than_its_share(
    ways: Lab, content: bytes, tmp_path: Path
) -> None:
    with ExitStack() as stack:
        captures = {
            host: stack.enter_context(Capture(ways.namespace(host), tmp_path / f"{host}.pcap"))
            for host in RELAYS
        }
        fetched = ways.run(
            "home", "curl", "-sS", "--max-time", "120", "http://work:8000/data", protocol="disperse"
        )
        assert fetched.returncode == 0, fetched.stderr
    assert hashlib.sha256(fetched.stdout).digest() == hashlib.sha256(content).digest()
    connection = connection_of(ways, 8000)["id"]
    seen = {
        host: {
            (packet.is_reply, packet.sequence)
            for packet in capture.packets()
            if packet.connection == connection and packet.is_data
        }
        for host, capture in captures.items()
    }
    for reply in (False, True):
        counts = {host: sum(way is reply for way, _ in found) for host, found in seen.items()}
        total = sum(counts.values())
        assert total > 50, counts
        assert all(count <= SHARE * total + 1 for count in counts.values()), counts
        assert min(counts.values()) > 0, counts
    every = [packet for found in seen.values() for packet in found]
    assert len(every) == len(set(every)), "a packet was shown to two relays"


@pytest.mark.parametrize("which", [0, 1])
def test_disjoint_loses_no_packet_when_a_relay_is_killed(ways: Lab, which: int) -> None:
    count = 50
    # Not faster: while guests appear a host holds 64 packets, and a machine may take its time.
    words = ["ping", "-n", "-i", "0.2", "-c", str(count), "-W", "30", "work"]
    with ways.start("home", *words, protocol="disjoint", bufsize=0) as ping:
        first = wait_for("its first answer", lambda: answer(ping), 60)
        connection = next(c for c in ways.json("connections") if c["flow"]["protocol"] == 1)["id"]
        relays = wait_for("guests on both paths", lambda: relays_of(ways, connection, 2))
        relay = sorted(relays)[which]
        os.kill(qemu_pid(relays[relay]), signal.SIGKILL)
        out, err = ping.communicate(timeout=120)
    assert ping.returncode == 0, err
    assert answered(first + out) == set(range(1, count + 1))
    assert any(
        (e["name"], e["host"], e["connection"]) == ("guest-lost", relay, connection)
        for e in ways.events()
    )


def relays_of(where: Lab, connection: str, count: int) -> dict[str, str]:
    """Relay → domain of its guest, once there are so many that serve; else nothing."""
    (found,) = [c for c in where.json("connections") if c["id"] == connection]
    serving = {
        view["host"]: view["guest"]
        for view in found["hosts"]
        if view["host"] in RELAYS and view["state"] == "established"
    }
    return serving if len(serving) == count else {}


def answer(ping: Any) -> bytes:
    """The next line of a ping, if it is an answer. Of one without a buffer here: lines that came
    with this one would be in it, and not be found by who reads the rest."""
    line = bytes(ping.stdout.readline())
    return line if b"time=" in line else b""


def answered(text: bytes) -> set[int]:
    return {int(number) for number in re.findall(rb"icmp_seq=(\d+)", text)}


def test_a_link_that_dies_silently_costs_a_stream_some_packets_and_nothing_else(ways: Lab) -> None:
    count = 600
    words = ["ping", "-n", "-i", "0.02", "-c", str(count), "work"]
    with ways.start("home", *words, bufsize=0) as ping:
        first = wait_for("its first answer", lambda: answer(ping), 60)
        connection = next(c for c in ways.json("connections") if c["flow"]["protocol"] == 1)["id"]
        relay = wait_for("a trace", lambda: ways.traces(connection))[-1]["hops"][1]["host"]
        time.sleep(1)
        cut_at = time.time()
        ways.fabric("link", "set", f"home-{relay}", "--down", "--silent")
        try:
            out, err = ping.communicate(timeout=120)
        finally:
            ways.fabric("link", "set", f"home-{relay}", "--up")
    assert ping.returncode == 0, err
    lost = set(range(1, count + 1)) - answered(first + out)
    assert lost, "the cut was felt"
    assert max(lost) - min(lost) + 1 == len(lost), "once, and then no more"
    assert max(lost) < count
    events = [e for e in ways.events() if e["at_us"] > cut_at * 1e6]
    told = earliest(events, "link-down", "home")
    # Since one end noticed: a measured metric installs a table, too, and may have before that.
    noticed = next(e for e in events if e["name"] == "link-down")
    installed = earliest(events[events.index(told) :], "table-installed", "home")["at_us"]
    # The agents first, this host's own table when the others had time to have theirs (RFC 8333).
    assert earliest(events, "neighbours-avoided", "home")["at_us"] < installed
    assert earliest(events[events.index(noticed) :], "table-installed", "work")["at_us"] < installed
    assert told["neighbour"] == relay
    assert told["why"] in ("detection time expired", "the neighbour says so")
    newest = [t for t in ways.traces(connection) if not t["reply"]][-1]
    assert relay not in [hop["host"] for hop in newest["hops"]]
    wait_for("the link is back", lambda: all(is_back(ways, host) for host in ("home", relay)))


def earliest(events: list[dict[str, Any]], name: str, host: str) -> dict[str, Any]:
    return next(e for e in events if (e["name"], e["host"]) == (name, host))


def is_back(where: Lab, host: str) -> bool:
    turns = [e["name"] for e in where.events() if e["host"] == host and "link-" in e["name"]]
    return bool(turns[-1] == "link-up")
