"""A guest that lies, for real: frames from inside a guest, and what becomes of them."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.vm.conftest import lab
from tests.vm.lab import Capture, Lab, wait_for
from tests.vm.test_template import MADE, named

TOPOLOGY = """
name: guard
hosts:
  h1: {}
  h2: {}
links: [h1-h2]
"""

LIAR = """
import socket, struct, sys
mine, other, gateway_mac, address, others, gateway, target = sys.argv[1:]
wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
wire.bind(("eth0", 0))
mac = lambda text: bytes.fromhex(text.replace(":", ""))
def total(data):
    found = sum(struct.unpack("!%dH" % (len(data) // 2), data))
    while found >> 16:
        found = (found & 0xFFFF) + (found >> 16)
    return ~found & 0xFFFF
def udp(source_mac, source, word, to=target, to_mac=gateway_mac):
    ends = socket.inet_aton(source) + socket.inet_aton(to)
    body = struct.pack("!HHHH", 7704, 7704, 8 + len(word), 0) + word
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(body), 0, 0, 64, 17, 0)
    head = head[:10] + struct.pack("!H", total(head + ends)) + ends
    wire.send(mac(to_mac) + mac(source_mac) + b"\\x08\\x00" + head + body)
def arp(operation, sender_mac, sender):
    packet = struct.pack("!HHBBH", 1, 0x0800, 6, 4, operation) + mac(sender_mac)
    packet += socket.inet_aton(sender) + bytes(6) + socket.inet_aton(gateway)
    wire.send(b"\\xff" * 6 + mac(mine) + b"\\x08\\x06" + packet)
for turn in range(3):
    udp(other, others, b"lie: all of the other guest's")
    udp(other, address, b"lie: another's MAC")
    udp(mine, others, b"lie: another's address")
    udp(mine, gateway, b"lie: the host's address")
    udp(mine, address, b"lie: to another guest", others, other)
    udp(mine, address, b"lie: to another guest, by way of the host", others)
    arp(2, mine, others)
    arp(1, mine, gateway)
udp(mine, address, b"truth")
"""


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    directory = tmp_path_factory.mktemp("guard")
    with lab("guard", TOPOLOGY, directory, "--tier", "template", "--idle-timeout", "300") as made:
        wait_for("the templates", lambda: len(named(made, "template-ready")) == 2, MADE)
        yield made


def refused(made: Lab, host: str) -> dict[str, int]:
    """Causes that were counted on a host."""
    (found,) = [each for each in made.json("inspect")["hosts"] if each["host"] == host]
    return {cause: count for cause, count in found["refused_packets"].items() if count}


def here(made: Lab, connection: str, host: str) -> dict[str, Any]:
    views = [v for v in made.connections() if (v["id"], v["host"]) == (connection, host)]
    return views[0]


def ip(namespace: str, *words: str) -> str:
    inside = ["-n", namespace] if namespace else []
    done = subprocess.run(["ip", *inside, *words], capture_output=True, text=True, check=True)
    return done.stdout


def words_in(capture: Capture) -> set[bytes]:
    """First words of the payloads in a capture."""
    command = ["tshark", "-r", str(capture.path), "-T", "fields", "-e", "udp.payload"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {bytes.fromhex(line)[:5] for line in shown.split() if line}


def ping(made: Lab) -> str:
    """The connection of one ping."""
    done = made.run("h1", "ping", "-c", "1", "-W", "120", "h2")
    assert done.returncode == 0, done.stdout + done.stderr
    return str(made.json("connections")[0]["id"])


def test_a_guest_that_lies_is_heard_by_nobody(guarded: Lab, tmp_path: Path) -> None:
    connections = ping(guarded), ping(guarded)
    assert refused(guarded, "h1") == refused(guarded, "h2") == {}, "honest guests, so far"
    liar, other = (here(guarded, connection, "h1") for connection in connections)
    namespace = guarded.namespace("h1")
    gateway_mac = ip(namespace, "-o", "link", "show", "guests").split("link/ether ")[1].split()[0]
    (link,) = guarded.json("inspect")["links"]
    told = [liar["guest_mac"], other["guest_mac"], gateway_mac]
    told += [liar["guest_address"], other["guest_address"], "100.115.0.1", link["b_address"]]
    with Capture(guarded.namespace("h2"), tmp_path / "h2.pcap") as far:
        guarded.fabric("exec", f"{connections[0]}@h1", "--", "python3", "-c", LIAR, *told)
    heard = words_in(far)
    assert b"truth" in heard, "the guest can speak"
    assert not [word for word in heard if word.startswith(b"lie")]
    # Three turns; what bears another's MAC ended in the bridge, which keeps no count.
    assert refused(guarded, "h1") == {"address": 6, "outside": 3, "arp": 6}
    fdb = subprocess.run(
        ["bridge", "fdb", "show", "dev", other["tap"]], capture_output=True, text=True, check=True
    ).stdout
    assert other["guest_mac"] in fdb, "the bridge still knows where the other guest is"
    # And the host reaches it: under its own address, which was claimed by another.
    mac = guarded.fabric("exec", f"{connections[1]}@h1", "--", "cat", "/sys/class/net/eth0/address")
    assert mac.stdout.strip() == other["guest_mac"]
