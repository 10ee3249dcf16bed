"""An agent becomes nobody and somebody again, with namespaces in the guests' place."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fabric.wire.contract import GATEWAY_MAC, GATEWAY_V4, GATEWAY_V6
from fabric.wire.control import (
    AgentEvent,
    Counters,
    Hello,
    Identified,
    Identify,
    Quiesce,
    Quiesced,
    Ready,
)
from tests.unit.agent_lab import AgentLab, ip

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root and network namespaces"),
]

MAC = "02:fa:00:00:04:0{}"


@pytest.fixture
def lab() -> Iterator[AgentLab]:
    with AgentLab(2, configured=False) as line:
        yield line


def uplink(lab: AgentLab, node: int) -> dict[str, Any]:
    """The kernel's own word on the guest's interface."""
    words = ["ip", "-n", lab.guest(node), "-j", "address", "show", "eth0"]
    shown = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    found: dict[str, Any] = json.loads(shown)[0]
    return found


def routes(lab: AgentLab, node: int) -> list[dict[str, Any]]:
    words = ["ip", "-n", lab.guest(node), "-j", "route", "show", "dev", "eth0"]
    shown = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    return list(json.loads(shown or "[]"))


def identify(node: int, **changes: Any) -> Identify:
    values: dict[str, Any] = {
        "mac": MAC.format(node),
        "address": "100.115.0.2",
        "mtu": 8000,
        "overlay_mtu": 1400,
        "entropy": os.urandom(32).hex(),
        "host_key": os.urandom(64).hex(),
        "host_now_us": time.time_ns() // 1000,
    }
    return Identify(**(values | changes))


def neighbours(lab: AgentLab, node: int) -> dict[str, str]:
    words = ["ip", "-n", lab.guest(node), "-j", "neighbour", "show", "dev", "eth0"]
    shown = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    return {n["dst"]: n["lladdr"] for n in json.loads(shown or "[]") if "lladdr" in n}


def test_nobody_has_no_address_and_knows_only_the_gateway(lab: AgentLab) -> None:
    assert uplink(lab, 1)["addr_info"] and routes(lab, 1)
    lab.send(1, Quiesce())
    assert lab.wait(1, Quiesced).addresses == []
    assert uplink(lab, 1)["addr_info"] == []
    (route,) = routes(lab, 1)
    assert (route["dst"], route["gateway"]) == ("default", GATEWAY_V4)


def test_nobody_answers_to_no_address(lab: AgentLab) -> None:
    lab.send(1, Quiesce())
    lab.wait(1, Quiesced)
    words = ["ip", "netns", "exec", lab.app(1), "ping", "-c", "1", "-W", "1", "100.115.0.2"]
    assert subprocess.run(words, capture_output=True, check=False).returncode == 1


def test_what_was_rehearsed_leaves_nothing(lab: AgentLab) -> None:
    lab.send(1, Quiesce())
    lab.wait(1, Quiesced)
    assert not [m for m in lab.messages[1] if not isinstance(m, Hello | Quiesced)]
    lab.send(1, identify(1))
    lab.wait(1, Identified)
    lab.send(1, lab.configure(1))
    lab.wait(1, Ready)
    assert lab.query(1, "counters", Counters).counters.get("packets_out", 0) == 0


def test_the_key_the_guest_booted_with_is_gone(lab: AgentLab) -> None:
    key = lab.run_directory(1) / "keys/host_key"
    key.parent.mkdir()
    key.write_bytes(b"secret")
    with key.open("rb") as still_open:
        lab.send(1, Quiesce())
        lab.wait(1, Quiesced)
        assert not key.exists()
        assert still_open.read() == bytes(6), "overwritten, not only unlinked"


def test_somebody_is_who_the_host_said(lab: AgentLab) -> None:
    lab.send(1, Quiesce())
    lab.wait(1, Quiesced)
    wanted = identify(1)
    lab.send(1, wanted)
    said = lab.wait(1, Identified)
    assert (said.mac, said.address) == (MAC.format(1), "100.115.0.2")
    assert said.host_key == wanted.host_key[64:]
    shown = uplink(lab, 1)
    assert (shown["address"], shown["mtu"]) == (MAC.format(1), 8000)
    (address,) = [a for a in shown["addr_info"] if a["family"] == "inet"]
    assert (address["local"], address["prefixlen"]) == ("100.115.0.2", 32)
    assert neighbours(lab, 1) == {GATEWAY_V4: GATEWAY_MAC, GATEWAY_V6: GATEWAY_MAC}


def test_a_copy_shows_the_ssh_key_it_was_given(lab: AgentLab) -> None:
    lab.send(1, Quiesce())
    lab.wait(1, Quiesced)
    key = Ed25519PrivateKey.generate()
    public = key.public_key().public_bytes_raw()
    lab.send(1, identify(1, host_key=(key.private_bytes_raw() + public).hex()))
    lab.wait(1, Identified)
    shown = lab.run(1, "ssh-keyscan", "-t", "ed25519", "-T", "20", "100.115.0.2")
    # Later versions say on standard output, too, whom they ask: in a comment.
    (line,) = [line for line in shown.splitlines() if not line.startswith("#")]
    assert base64.b64decode(line.split()[2])[-32:] == public


def test_every_identification_draws_other_random_numbers(lab: AgentLab) -> None:
    samples = []
    for node in (1, 2):
        lab.send(node, Quiesce())
        lab.wait(node, Quiesced)
        lab.send(node, identify(node, entropy="00" * 32))
        samples.append(lab.wait(node, Identified).sample)
    assert len(set(samples)) == 2
    assert all(len(sample) == 64 for sample in samples)


def test_packets_cross_guests_that_were_nobody(lab: AgentLab) -> None:
    for node in (1, 2):
        lab.send(node, Quiesce())
        lab.wait(node, Quiesced)
        # Both at once, as a copy finds them when it wakes up.
        lab.send(node, identify(node), lab.configure(node))
        lab.wait(node, Ready)
        lab.wait(node, Identified)
    assert " 0% packet loss" in lab.run(1, "ping", "-c", "3", "-i", "0.05", "10.77.0.2")
    for node in (1, 2):  # as hosts know their guests
        via = ["fe80::2", "lladdr", MAC.format(node), "dev", "eth0"]
        ip("neighbour", "replace", *via, ns=lab.app(node))
    assert " 0% packet loss" in lab.run(1, "ping", "-c", "3", "-i", "0.05", "fd77::2")


@pytest.mark.parametrize("nonsense", [{"mac": "02:fa"}, {"address": "100.115.0.x"}])
def test_an_identity_that_makes_no_sense_is_answered_with_an_error(
    lab: AgentLab, nonsense: dict[str, Any]
) -> None:
    lab.send(1, Quiesce())
    lab.wait(1, Quiesced)
    lab.send(1, identify(1, **nonsense))
    error = lab.wait(1, AgentEvent)
    assert (error.name, error.fields["message"]) == ("agent-error", "Identify")


def test_a_guest_that_is_somebody_becomes_nobody_else(lab: AgentLab) -> None:
    lab.send(1, identify(1))
    assert lab.wait(1, AgentEvent).fields["message"] == "Identify"
    assert uplink(lab, 1)["address"] != MAC.format(1)


def test_a_guest_that_serves_a_connection_becomes_no_template(lab: AgentLab) -> None:
    lab.send(1, lab.configure(1))
    lab.wait(1, Ready)
    lab.send(1, Quiesce())
    assert lab.wait(1, AgentEvent).fields["message"] == "Quiesce"
    assert "UP" in uplink(lab, 1)["flags"]
