"""The self-test of copies fails for whatever is the same, and for what could not be read."""

from __future__ import annotations

from typing import Any, cast

import pytest

from fabric.errors import EnvironmentFault
from fabric.lab import selftest
from fabric.lab.bench.bed import Seat
from fabric.lab.selftest import Comparison


@pytest.mark.parametrize(
    ("first", "second", "differs"),
    [("a", "b", True), ("a", "a", False), ("", "", False), ("a", "", False)],
)
def test_only_two_different_things_differ(first: str, second: str, differs: bool) -> None:
    assert Comparison("key", first, second).to_json()["differs"] is differs


class TwoGuests:
    """Answers as two guests would that share what is named."""

    def __init__(self, shared: str = "") -> None:
        self._shared = shared

    def in_guest(self, seat: Seat, argv: list[str]) -> str:
        which = "same" if self._shared and self._shared in " ".join(argv) else seat.domain
        if "address" in argv:
            return f"2: eth0    inet 10.0.0.{which}/22 scope global eth0\n"
        return f"{which}  -\n"


SEATS = [cast(Any, type("Seat", (), {"domain": name})()) for name in ("g1", "g2")]
EVENTS: list[dict[str, Any]] = [
    {"name": "guest-identified", "guest": name, "sample": f"sample of {name}"}
    for name in ("g1", "g2")
]


def same(shared: str) -> list[str]:
    found = selftest._compare(cast(Any, TwoGuests(shared)), SEATS, EVENTS)
    return [each.what for each in found if not each.differs]


@pytest.mark.parametrize(
    ("shared", "told"),
    [
        ("", []),
        ("class/net", ["MAC"]),
        ("ip -o", ["address"]),
        ("host_key", ["SSH host key"]),
        ("urandom", ["random stream"]),
    ],
)
def test_what_two_copies_share_is_told(shared: str, told: list[str]) -> None:
    assert same(shared) == told


def test_guests_that_booted_prove_nothing_about_copies() -> None:
    events = [
        {"name": "tier-fallback", "reason": "the template is being made"},
        *({"name": "guest-ready", "guest": name, "tier": "cold"} for name in ("g1", "g2")),
    ]
    with pytest.raises(EnvironmentFault, match=r"cold, cold \(the template is being made"):
        selftest._require_copies(events, SEATS, "template")


class Host:
    """An orchestrator that has asked one of its agents after another."""

    def __init__(self, *answers: dict[str, str | None]) -> None:
        self.hosts = (self,)
        self._answers = list(answers)

    def client(self, _host: object) -> Host:
        return self

    def get(self, _path: str) -> list[dict[str, Any]]:
        now = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        return [{"guest": name, "guest_key_digest": digest} for name, digest in now.items()]


def test_keys_are_waited_for_and_missing_ones_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selftest, "DEADLINE", 0.5)
    both = Host({"g1": None}, {"g1": "a", "g2": None}, {"g1": "a", "g2": "b"})
    assert selftest._keys(cast(Any, both), SEATS) == ["a", "b"]
    assert selftest._keys(cast(Any, Host({"g1": "a", "g2": None})), SEATS) == ["a", ""]
