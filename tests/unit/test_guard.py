"""What can be said of the guard without a kernel; what it does is in test_guard_netns."""

from __future__ import annotations

import re

import pytest

from fabric.host.network.guard import CAUSES, COUNTER, SETS, admission, binding, link_local
from fabric.host.network.steering import SteeringConfig, ruleset
from fabric.wire.inner import ICMPV6, TCP, FiveTuple

MAC = "02:fa:71:00:04:01"
CONFIG = SteeringConfig(
    "guests", "100.115.0.0/22", ("10.77.0.1",), ("10.77.0.0/16",), {"to-h2": "172.31.0.0"}
)


@pytest.mark.parametrize(
    ("mac", "address"),
    [
        (MAC, "fe80::fa:71ff:fe00:401"),
        ("34:56:78:9a:bc:de", "fe80::3656:78ff:fe9a:bcde"),  # RFC 2464, section 4
    ],
)
def test_the_guests_ipv6_address_follows_from_its_mac(mac: str, address: str) -> None:
    assert link_local(mac) == address


def test_what_a_guest_is_granted_is_all_under_its_mac() -> None:
    flow = FiveTuple(4, TCP, "10.77.0.2", 80, "10.77.0.1", 40000)
    echo = FiveTuple(6, ICMPV6, "fd77::2", 7, "fd77::1", 7)
    granted = binding(MAC, "100.115.0.2") | admission(MAC, flow) | admission(MAC, echo)
    assert {name for name, _ in granted} == set(SETS)
    assert all(key.startswith(f"{MAC} . ") for _, key in granted)
    assert ("ports", f"{MAC} . 6 . 80 . 40000") in granted
    assert ("peers4", f"{MAC} . 10.77.0.2 . 10.77.0.1") in granted


def test_every_cause_is_declared_and_counted() -> None:
    text = ruleset(CONFIG)
    declared = re.findall(rf"^  counter {COUNTER}(\w+) ", text, flags=re.MULTILINE)
    assert sorted(declared) == sorted(CAUSES)
    assert set(re.findall(rf"counter name {COUNTER}(\w+) drop", text)) == set(CAUSES)


def test_a_host_without_ipv6_in_its_overlay_has_no_empty_sets() -> None:
    assert "{  }" not in ruleset(CONFIG)
    assert "ip6 saddr {" not in ruleset(CONFIG)
