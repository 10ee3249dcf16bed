"""What can be said of steering without a kernel, and that the fake behaves like the real one."""

from __future__ import annotations

import re

import pytest

from fabric.errors import NameUnknown
from fabric.host.config import HostConfig
from fabric.host.network.steering import Steering, SteeringConfig, next_hop_v6, ruleset
from fabric.host.network.steering_fake import FakeSteering
from fabric.wire.inner import FiveTuple

FLOW = FiveTuple(4, 6, "10.77.0.1", 4000, "10.77.0.2", 80)


def config() -> SteeringConfig:
    host = HostConfig(
        lab="lab",
        host="h1",
        node=1,
        bridge="fb",
        guest_interface="guests",
        overlay_addresses=("10.77.0.1/32", "fd77::1/128"),
        overlay_prefixes=("10.77.0.0/16", "fd77::/64"),
        topology={},
    )
    return SteeringConfig.of(host, {"to-h2": "172.31.0.0"})


def test_guest_addresses_and_indices_are_inverse() -> None:
    for index in (1, 254, 255, 1000):
        assert config().guest_index(config().guest_address(index)) == index
    assert config().guest_address(1) == "100.115.0.2"
    assert len({next_hop_v6(index) for index in range(1, 1023)}) == 1022


def test_the_configured_addresses_are_in_the_rules() -> None:
    text = ruleset(config())
    assert "{ 10.77.0.1 } accept" in text
    assert 'oifname "to-h2"' in text
    assert "ip saddr set 172.31.0.0" in text
    declared, emptied = (
        sorted(re.findall(pattern, text, flags=re.MULTILINE))
        for pattern in (r"^  chain (\w+)", r"^flush chain \w+ fabric (\w+)")
    )
    assert declared == emptied


def test_a_host_without_neighbours_still_has_rules() -> None:
    alone = SteeringConfig("guests", "100.115.0.0/22", ("10.77.0.1",), ("10.77.0.0/16",), {})
    assert "ip saddr set" not in ruleset(alone)
    assert "oifname { }" not in ruleset(alone)


def test_the_fake_keeps_the_contract() -> None:
    steering: Steering = FakeSteering()
    steering.install()
    with pytest.raises(NameUnknown):
        steering.steer(1, flows=[FLOW], connections=[])
    steering.add_guest(1, "02:fa:00:00:00:01")
    steering.add_guest(2, "02:fa:00:00:00:02")
    steering.steer(1, flows=[FLOW], connections=[7, 8])
    steering.steer(2, flows=[], connections=[8])
    assert steering.entries().flows == {FLOW: 1}
    assert steering.entries().connections == {7: 1, 8: 2}
    steering.unsteer(flows=[FLOW], connections=[9])
    steering.remove_guest(2)
    assert steering.entries().flows == {}
    assert steering.entries().connections == {7: 1}
