"""Identity is derived, unique, and fits the kernel's limits."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fabric.errors import CapacityExceeded
from fabric.host.identity import MAX_GUEST_INDEX, MAX_INTERFACE_NAME, GuestIdentity, tap_name
from tests.unit.guest_samples import CONFIG


def test_the_same_slot_is_always_the_same_guest() -> None:
    first, second = GuestIdentity.derive(CONFIG, 3), GuestIdentity.derive(CONFIG, 3)
    assert first == second
    assert first.domain == "fabric-demo-h1-g3"
    assert first.address == "100.115.0.4"
    assert first.gateway == "100.115.0.1"
    assert first.prefix_length == 22


def test_no_two_slots_share_a_name_or_an_address() -> None:
    seen: set[str] = set()
    count = 0
    for lab in ("demo", "other"):
        for node in (1, 2, 300):
            config = replace(CONFIG, lab=lab, node=node, host=f"h{node}")
            for index in (1, 2, 255, 256, 1000):
                guest = GuestIdentity.derive(config, index)
                seen |= {guest.domain, guest.tap, guest.mac, str(guest.channel)}
                count += 4
    assert len(seen) == count


@pytest.mark.parametrize("node", [1, 99, 65_535, 2**32 - 1])
def test_interface_names_fit_the_kernel(node: int) -> None:
    names = {tap_name("demo", node, index) for index in range(1, MAX_GUEST_INDEX + 1)}
    assert len(names) == MAX_GUEST_INDEX
    assert all(len(name) <= MAX_INTERFACE_NAME for name in names)


def test_mac_addresses_are_local_and_not_multicast() -> None:
    first = int(GuestIdentity.derive(CONFIG, 1).mac[:2], 16)
    assert first & 0b10
    assert not first & 0b01


@pytest.mark.parametrize("index", [0, -1, MAX_GUEST_INDEX + 1])
def test_a_slot_that_does_not_exist_is_refused(index: int) -> None:
    with pytest.raises(CapacityExceeded, match="slot"):
        GuestIdentity.derive(CONFIG, index)


def test_a_small_subnet_has_few_slots() -> None:
    config = replace(CONFIG, guest_subnet="192.0.2.0/29")
    assert GuestIdentity.derive(config, 5).address == "192.0.2.6"
    with pytest.raises(CapacityExceeded, match="1 to 5"):
        GuestIdentity.derive(config, 6)


def test_a_run_directory_too_deep_for_a_socket_is_refused() -> None:
    with pytest.raises(CapacityExceeded, match="socket"):
        GuestIdentity.derive(replace(CONFIG, run_dir="/run/" + "x" * 100), 1)
