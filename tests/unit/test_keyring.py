"""Each guest's key is its own, and the same in every life of its host."""

from __future__ import annotations

from fabric.host.control.keyring import Keyring
from fabric.wire.notice import KEY_SIZE


def test_no_two_guests_have_one_key() -> None:
    rings = [Keyring(bytes(32)), Keyring(bytes(31) + b"1")]
    whose = [(number, f"100.64.0.{at}") for number in (1, 2) for at in (4, 5)]
    keys = {ring.key(*who) for ring in rings for who in whose}
    assert len(keys) == 8
    assert {len(key) for key in keys} == {KEY_SIZE}


def test_a_later_life_of_the_host_knows_it_again() -> None:
    assert Keyring(b"secret").key(7, "100.64.0.4") == Keyring(b"secret").key(7, "100.64.0.4")


def test_a_host_without_a_secret_has_no_keys() -> None:
    assert Keyring().key(7, "100.64.0.4") == b""
    assert Keyring().name == ""


def test_a_host_is_told_by_its_secret() -> None:
    assert Keyring(b"one").name == Keyring(b"one").name != Keyring(b"other").name
