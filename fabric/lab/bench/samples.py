"""From events and captured packets to figures of spawning.

Owns: percentile, Spread, Sample, the phases of a spawn, spawn_figure. May import: nothing. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import ceil
from typing import Any

REQUIRED = "guest-ready"
"""The event without which a connection had no guest."""
MILESTONES = (
    ("request_seen", ("request",)),
    ("facts", ("facts",)),
    ("slot", ("guest-spawning", "guest-claimed")),
    ("domain", ("guest-started",)),
    ("booted", ("booted",)),
    ("pushed", ("pushed",)),
    ("hello", ("hello",)),
    ("armed", ("armed",)),
    ("resumed", ("guest-resumed",)),
)
"""(phase, the events that end it), in order. A tier has some of them. What happened before the
request, as in a tier that works ahead, was not waited for and has no phase."""
FIRST_PACKET = "first_packet_out"
"""The last phase: until the packet leaves the host as a fabric packet."""
STEERING = "steering"
"""Beside the others, behind the first packet: from the agent's readiness to kernel steering."""
AGENT_READY = "agent_ready"
"""Beside the others, behind the first packet: from that to the host knowing the agent ready."""


def percentile(values: Sequence[float], share: float) -> float:
    """Nearest rank: the smallest value that at least ``share`` (0 … 1) of all do not exceed, so
    always one that was measured. With fewer than 100 values the 99th is the largest."""
    ordered = sorted(values)
    return ordered[max(1, ceil(share * len(ordered))) - 1]


def ratio(ours: float | None, reference: float | None) -> float | None:
    """``ours`` in units of the reference."""
    return round(ours / reference, 3) if ours is not None and reference else None


@dataclass(frozen=True)
class Spread:
    """What is told of a series, ms; None where nothing was measured."""

    n: int
    p50_ms: float | None = None
    p90_ms: float | None = None
    p99_ms: float | None = None

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        if not values:
            return cls(0)
        return cls(len(values), *(round(percentile(values, p), 2) for p in (0.5, 0.9, 0.99)))

    def to_json(self, prefix: str = "") -> dict[str, Any]:
        """The percentiles, their names behind ``prefix``."""
        names = ("p50_ms", "p90_ms", "p99_ms")
        return {f"{prefix}{name}": getattr(self, name) for name in names}


@dataclass(frozen=True)
class Sample:
    """One spawn."""

    total_ms: float
    """From the connection's first packet to the first fabric packet of it, both by the kernel's
    time stamps; of a reference from the moment that stands for the request."""
    phases: dict[str, float] = field(default_factory=dict)
    """ms each, in order."""
    tier: str = ""
    """Where the guest came from in the end."""
    connect_ms: float | None = None
    """What connect() took, of a TCP program."""

    def to_json(self) -> dict[str, Any]:
        document = {"total_ms": self.total_ms, "tier": self.tier, "phases": self.phases}
        return document if self.connect_ms is None else {**document, "connect_ms": self.connect_ms}


def spawn_sample(
    arrival_us: float,
    departure_us: float,
    events: Iterable[dict[str, Any]],
    connect_ms: float | None = None,
) -> Sample | None:
    """One spawn by the capture's two moments and the events of its connection on its host; None
    when those tell of no guest."""
    at = {str(event["name"]): event for event in sorted(events, key=lambda e: int(e["at_us"]))}
    ready = at.get(REQUIRED)  # an event's last one counts: an earlier guest may have failed
    if ready is None:
        return None
    moments = {name: float(event["at_us"]) for name, event in at.items()}
    moments |= _inner_moments(ready, moments)
    phases = {}
    before = arrival_us
    for phase, names in MILESTONES:
        found = [moments[name] for name in names if name in moments]
        moment = max(found, default=before)
        # An event is told when its cause is over, and the packet may have been faster.
        if before < moment <= departure_us:
            phases[phase] = _ms(moment - before)
            before = moment
    phases[FIRST_PACKET] = _ms(departure_us - before)
    phases[AGENT_READY] = _ms(max(0.0, moments[REQUIRED] - departure_us))
    if "steering-installed" in moments:
        phases[STEERING] = _ms(moments["steering-installed"] - moments[REQUIRED])
    return Sample(_ms(departure_us - arrival_us), phases, str(ready["tier"]), connect_ms)


def _inner_moments(ready: dict[str, Any], at: dict[str, float]) -> dict[str, float]:
    """Moments without an event of their own, from the durations a guest's readiness is told
    with (see fabric.host.guest.guest): they follow each other without a gap."""
    took = {name: float(ms) * 1e3 for name, ms in ready["phases"].items()}
    moments = {}
    if "state_ms" in took and "guest-resumed" in at:
        moments["armed"] = at["guest-resumed"] - took["state_ms"]
    if {"ready_ms", "agent_ms", "ssh_ms"} <= took.keys():
        moments["hello"] = ready["at_us"] - took["ready_ms"]
        moments["pushed"] = moments["hello"] - took["agent_ms"]
        moments["booted"] = moments["pushed"] - took["ssh_ms"]
    return moments


def _ms(us: float) -> float:
    return round(us / 1e3, 3)


def median_phases(samples: Sequence[Sample]) -> dict[str, float]:
    """The median of each phase over those that have it, in order. Medians do not add up to the
    median of the whole, but nearly."""
    names = dict.fromkeys(name for sample in samples for name in sample.phases)
    order = [*(phase for phase, _ in MILESTONES), "configured", FIRST_PACKET, AGENT_READY, STEERING]
    known = sorted(names, key=lambda name: order.index(name) if name in order else len(order))
    return {
        name: round(percentile([s.phases[name] for s in samples if name in s.phases], 0.5), 2)
        for name in known
    }


@dataclass
class Series:
    """What was measured of one tier, burst and number of hops."""

    tier: str
    burst: int
    hops: int
    compared: str = ""
    """What the reference did, for people."""
    ours: list[Sample] = field(default_factory=list)
    reference: list[Sample] = field(default_factory=list)
    one_host: list[Sample] = field(default_factory=list)
    """Spawns with one host on the path, in turns with those over ``hops``."""
    failures: list[str] = field(default_factory=list)
    """Connections that had no guest, and why."""
    fallbacks: list[str] = field(default_factory=list)
    """Why guests came from another tier."""
    load: float = 0.0
    """Load average of the machine at the end."""

    def to_json(self) -> dict[str, Any]:
        """The document of this figure."""
        ours = Spread.of([sample.total_ms for sample in self.ours])
        reference = Spread.of([sample.total_ms for sample in self.reference])
        return {
            "kind": "spawn", "tier": self.tier, "burst": self.burst, "hops": self.hops,
            "n": ours.n, **ours.to_json(), **reference.to_json("reference_"),
            "ratio": ratio(ours.p50_ms, reference.p50_ms),
            "reference": self.compared, "reference_n": reference.n,
            "connect": self._connect(),
            "fallbacks": sum(sample.tier != self.tier for sample in self.ours),
            "fallback_reasons": self.fallbacks,
            "failures": self.failures,
            "phases": median_phases(self.ours),
            "reference_phases": median_phases(self.reference),
            "load": self.load,
            "series": [sample.to_json() for sample in self.ours],
            "reference_series": [sample.to_json() for sample in self.reference],
        }  # fmt: skip

    def _connect(self) -> dict[str, Any] | None:
        """connect() over the whole path, in units of one host's spawn in the same minutes."""
        took = [sample.connect_ms for sample in self.ours if sample.connect_ms is not None]
        if not took:
            return None
        connect = Spread.of(took)
        alone = Spread.of([sample.total_ms for sample in self.one_host])
        return {
            **connect.to_json(),
            **alone.to_json("one_host_"),
            "ratio_to_one_host": ratio(connect.p50_ms, alone.p50_ms),
            "one_host_series": [sample.total_ms for sample in self.one_host],
        }
