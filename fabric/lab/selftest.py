"""The self-test of copies: two guests of one template, and everything that must tell them apart.

Owns: what is compared, and the small lab in which it is. May import: errors, host, lab. What is
compared is what the guests have, read inside them, not what they were told.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from fabric.errors import EnvironmentFault
from fabric.lab.bench import opener
from fabric.lab.bench.bed import PORT, Bed, Seat
from fabric.lab.bench.readiness import Readiness
from fabric.lab.builder import Progress
from fabric.lab.spec import Options

PORTS = (20_001, 20_002)
DEADLINE = 30.0
"""Seconds until a guest that carries packets has told its host who it is."""
TOPOLOGY = """\
name: {name}
defaults: {{hosts: {{pool: {{minimum: 2, maximum: 2}}}}}}
hosts: {{h1: , h2: }}
links: [h1-h2]
"""
TIERS = ("template", "prepared")

INSIDE: dict[str, tuple[str, ...]] = {
    "MAC": ("cat", "/sys/class/net/eth0/address"),
    "address": ("busybox", "ip", "-o", "-4", "address", "show", "dev", "eth0"),
    "SSH host key": ("busybox", "sha256sum", "/run/keys/host_key"),
    "random stream": ("busybox", "head", "-c", "16", "/dev/urandom"),
}
"""What two copies must not share → how to read it inside a guest."""


@dataclass(frozen=True)
class Comparison:
    """One thing of two guests."""

    what: str
    first: str
    second: str

    @property
    def differs(self) -> bool:
        """False also when there is nothing to compare: that proves nothing."""
        return bool(self.first and self.second) and self.first != self.second

    def to_json(self) -> dict[str, Any]:
        return {
            "what": self.what, "first": self.first, "second": self.second, "differs": self.differs,
        }  # fmt: skip


def run(options: Options, name: str, tier: str, progress: Progress) -> list[Comparison]:
    """Bring up a lab, open two connections through copies of one template, and compare them.

    Raises what bringing up a lab raises, GuestFault, and EnvironmentFault when the guests are no
    copies.
    """
    progress("bringing up two hosts")
    text = TOPOLOGY.format(name=name)
    with Bed(1, name, replace(options, tier=tier), lambda _line: None, text=text) as bed:
        Readiness(bed, tier).wait()
        first, last = bed.hosts
        bed.program(last, "answer", str(PORT), module=opener)
        client = bed.program(first, "open", module=opener)
        target = (bed.overlay[-1], PORT)
        client.ask(do="tcp", source=bed.overlay[0], ports=PORTS, target=target)
        seats = [bed.seats((bed.overlay[0], port), target)[0] for port in PORTS]
        progress(f"two guests: {', '.join(seat.domain for seat in seats)}")
        events = _identified(bed, seats)
        _require_copies(events, seats, tier)
        progress("asking their agents for what only they know")
        keys = _keys(bed, seats)
        return [*_compare(bed, seats, events), Comparison("connection key", *keys)]


def _identified(bed: Bed, seats: list[Seat]) -> list[dict[str, Any]]:
    """Events of the first host, once both guests have shown who they are."""
    wanted = {seat.domain for seat in seats}
    end = time.monotonic() + DEADLINE
    while True:
        events = list(bed.client(bed.hosts[0]).lines("/v1/events", since=0))
        seen = {e["guest"] for e in events if e["name"] == "guest-identified"}
        if wanted <= seen:
            return events
        if time.monotonic() > end:
            raise EnvironmentFault(
                f"{', '.join(sorted(wanted - seen))} did not show who it is in {DEADLINE:g} s",
                cure="`fabric events` and the orchestrators' logs say why",
            )
        time.sleep(0.1)


def _keys(bed: Bed, seats: list[Seat]) -> list[str]:
    """Digests of the connections' keys, as the agents have them. Quiet ones are asked by their host
    sooner or later; empty where that did not happen."""
    client, found = bed.client(bed.hosts[0]), dict[str, str]()
    end = time.monotonic() + DEADLINE
    while time.monotonic() < end and not all(found.get(seat.domain) for seat in seats):
        time.sleep(0.2)
        views = client.get("/v1/connections")
        found = {view["guest"]: view["guest_key_digest"] or "" for view in views}
    return [found.get(seat.domain, "") for seat in seats]


def _require_copies(events: list[dict[str, Any]], seats: list[Seat], tier: str) -> None:
    ready = {e["guest"]: e["tier"] for e in events if e["name"] == "guest-ready"}
    got = [ready.get(seat.domain, "none") for seat in seats]
    if not set(got) <= set(TIERS):
        reasons = {e["reason"] for e in events if e["name"] == "tier-fallback"}
        raise EnvironmentFault(
            f"guests of tier {tier} were wanted, there are: {', '.join(got)} "
            f"({'; '.join(sorted(reasons)) or 'no word of why'})",
            cure="`fabric doctor` says what this machine lacks for templates",
        )


def _compare(bed: Bed, seats: list[Seat], events: list[dict[str, Any]]) -> Iterator[Comparison]:
    for what, command in INSIDE.items():
        yield Comparison(what, *(_read(bed, seat, what, command) for seat in seats))
    samples = {e["guest"]: str(e["sample"]) for e in events if e["name"] == "guest-identified"}
    yield Comparison("randomness at waking up", *(samples[seat.domain] for seat in seats))


def _read(bed: Bed, seat: Seat, what: str, command: tuple[str, ...]) -> str:
    argv = list(command)
    if what == "random stream":
        argv = ["busybox", "sh", "-c", f"{' '.join(command)} | busybox sha256sum"]
    words = bed.in_guest(seat, argv).split()
    return words[words.index("inet") + 1] if "inet" in words else (words or [""])[0]
