"""An agent becomes nobody and somebody again, with namespaces in the guests' place."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import pytest

from fabric.wire.control import AgentEvent, Identified, Identify, Quiesce, Quiesced, Ready
from tests.unit.agent_lab import AgentLab

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
        "address": "100.115.0.2/22",
        "gateway": "100.115.0.1",
        "mtu": 8000,
        "entropy": os.urandom(32).hex(),
        "host_now_us": time.time_ns() // 1000,
    }
    return Identify(**(values | changes))


def test_nobody_has_no_link_no_address_no_route(lab: AgentLab) -> None:
    assert uplink(lab, 1)["addr_info"] and routes(lab, 1)
    lab.send(1, Quiesce())
    assert lab.wait(1, Quiesced).addresses == []
    shown = uplink(lab, 1)
    assert "UP" not in shown["flags"]
    assert shown["addr_info"] == []
    assert routes(lab, 1) == []


def test_somebody_is_who_the_host_said(lab: AgentLab) -> None:
    lab.send(1, Quiesce())
    lab.wait(1, Quiesced)
    lab.send(1, identify(1))
    said = lab.wait(1, Identified)
    assert (said.mac, said.address) == (MAC.format(1), "100.115.0.2/22")
    shown = uplink(lab, 1)
    assert "UP" in shown["flags"]
    assert (shown["address"], shown["mtu"]) == (MAC.format(1), 8000)
    (address,) = [a for a in shown["addr_info"] if a["family"] == "inet"]
    assert (address["local"], address["prefixlen"]) == ("100.115.0.2", 22)
    assert address["broadcast"] == "100.115.3.255"
    defaults = [route for route in routes(lab, 1) if route["dst"] == "default"]
    assert [route["gateway"] for route in defaults] == ["100.115.0.1"]


def test_every_identification_draws_other_random_numbers(lab: AgentLab) -> None:
    samples = []
    for _ in range(2):
        lab.send(1, Quiesce())
        lab.wait(1, Quiesced)
        lab.send(1, identify(1, entropy="00" * 32))
        samples.append(lab.wait(1, Identified).sample)
    assert len(set(samples)) == 2
    assert all(len(sample) == 64 for sample in samples)


def test_packets_cross_guests_that_were_nobody(lab: AgentLab) -> None:
    for node in (1, 2):
        lab.send(node, Quiesce())
        lab.wait(node, Quiesced)
        lab.send(node, identify(node))
        lab.wait(node, Identified)
        lab.send(node, lab.configure(node))
        lab.wait(node, Ready)
    assert " 0% packet loss" in lab.run(1, "ping", "-c", "3", "-i", "0.05", "10.77.0.2")


@pytest.mark.parametrize(
    "nonsense", [{"mac": "02:fa"}, {"address": "100.115.0.2/99"}, {"gateway": "x"}]
)
def test_an_identity_that_makes_no_sense_is_answered_with_an_error(
    lab: AgentLab, nonsense: dict[str, Any]
) -> None:
    lab.send(1, identify(1, **nonsense))
    error = lab.wait(1, AgentEvent)
    assert (error.name, error.fields["message"]) == ("agent-error", "Identify")


def test_a_guest_that_serves_a_connection_becomes_no_template(lab: AgentLab) -> None:
    lab.send(1, lab.configure(1))
    lab.wait(1, Ready)
    lab.send(1, Quiesce())
    assert lab.wait(1, AgentEvent).fields["message"] == "Quiesce"
    assert "UP" in uplink(lab, 1)["flags"]
