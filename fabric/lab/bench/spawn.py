"""The spawn benchmark: from a connection's first packet to its first fabric packet, by tier.

Owns: the order of measurements. May import: errors, wire, routing, host, lab. One round of the
fabric's guests, one of the reference's, and so on: a slow minute of the machine meets both.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from math import ceil
from typing import Any

from fabric.errors import EnvironmentFault, GuestFault, UserError
from fabric.host.config import HostConfig
from fabric.host.control.connections import Connection, Role
from fabric.host.control.instructions import instructions
from fabric.host.guest.bundle import build_bundle
from fabric.host.guest.guest import underlay_mtu
from fabric.lab.bench import opener
from fabric.lab.bench.bed import PORT, Bed
from fabric.lab.bench.capture import Capture
from fabric.lab.bench.raw_command import template_of
from fabric.lab.bench.raw_guest import Setting
from fabric.lab.bench.reference import WAYS, Reference
from fabric.lab.bench.rounds import Outcome, Rounds, watched
from fabric.lab.bench.samples import Series, Spread
from fabric.lab.builder import Progress
from fabric.lab.spec import Options
from fabric.routing.facts import ApplicationFacts
from fabric.routing.protocols import compute_table
from fabric.routing.rules import TIERS
from fabric.routing.topology import Topology
from fabric.wire.control import Configure

BURSTS = (1, 4, 16)
HOPS = (0, 1, 3)
COUNT = 30
MAX_HOPS = 4
MAX_BURST = 16
"""Connections at once: what a host that has been quiet admits, see Limits.spawns_per_second."""
WARM_UPS = 3
"""Connections that may come to a guest of another tier before that is taken for an error."""
_TABLE_VERSION = 1


@dataclass(frozen=True)
class Plan:
    """What to measure. Raises UserError for what makes no sense."""

    tiers: tuple[str, ...] = TIERS
    bursts: tuple[int, ...] = BURSTS
    hops: tuple[int, ...] = HOPS
    """Links to the destination; 0: a neighbour that spawns nothing, so one guest in all."""
    count: int = COUNT
    """Spawns per figure, at least."""
    name: str = "bench"
    """Of the labs."""

    def __post_init__(self) -> None:
        if unknown := set(self.tiers) - set(TIERS):
            raise UserError(
                f"there is no tier {', '.join(unknown)}", cure=f"tiers are: {', '.join(TIERS)}"
            )
        if not self.hops or not all(0 <= hops <= MAX_HOPS for hops in self.hops):
            raise UserError(f"hops must be 0 to {MAX_HOPS}", cure="for example --hops 0,1,3")
        if not self.bursts or not all(1 <= burst <= MAX_BURST for burst in self.bursts):
            raise UserError(f"bursts must be 1 to {MAX_BURST}", cure="for example --burst 1,4,16")
        if self.count < 1:
            raise UserError("at least one spawn must be measured")

    def bursts_at(self, hops: int) -> tuple[int, ...]:
        """Bursts are of one host: over several, one connection at a time tells about the path."""
        return self.bursts if hops == min(self.hops) else self.bursts[:1]


def run(plan: Plan, options: Options, progress: Progress, found: list[dict[str, Any]]) -> None:
    """Measure; ``found`` gets one document per figure. Raises what bringing up a lab raises, and
    EnvironmentFault when a tier cannot be had."""
    for tier in plan.tiers:
        for hops in plan.hops:
            progress(f"{tier}, {hops} hops: bringing up a lab")
            bed = Bed(
                hops,
                plan.name,
                replace(options, tier=tier),
                lambda _line: None,
                aside=True,
                pool=max(plan.bursts_at(hops)),
            )
            with bed, ExitStack() as stack:
                found += _Run(bed, tier, hops, plan, stack, progress).all()


class _Run:
    """One tier and number of hops."""

    def __init__(
        self, bed: Bed, tier: str, hops: int, plan: Plan, stack: ExitStack, progress: Progress
    ) -> None:
        self.bed, self.tier, self.hops, self.plan = bed, tier, hops, plan
        self.stack, self.progress = stack, progress
        self.first, self.aside = bed.hosts[0], bed.hosts[-1]
        self.target = bed.hosts[hops] if hops else self.aside
        interfaces = list(watched(bed, self.first))
        capture = Capture(bed.namespace(self.first), interfaces, self.first.port)
        self.rounds = Rounds(bed, stack.enter_context(capture), tier)
        if hops:
            bed.program(self.target, "answer", str(PORT), module=opener)

    def all(self) -> list[dict[str, Any]]:
        """Warm up with a connection, get the reference ready, then every burst."""
        for left in reversed(range(WARM_UPS)):
            try:
                self._round(1, self.target, before_end=self._begin_reference)
                break
            except EnvironmentFault as exc:
                if not left:
                    raise
                self.progress(f"once more: {exc}")
                self.rounds.end()
        return [self._series(burst).to_json() for burst in self.plan.bursts_at(self.hops)]

    def _series(self, burst: int) -> Series:
        series = Series(self.tier, burst, self.hops, WAYS[self.tier].compared)
        for _ in range(ceil(self.plan.count / burst)):
            try:
                self._pair(series)
            except GuestFault as exc:
                self.progress(f"{self.tier}: the reference failed: {exc}")
        series.load = round(os.getloadavg()[0], 1)
        self._note(series)
        return series

    def _pair(self, series: Series) -> None:
        """A round of the fabric's guests and one of the reference's. What is kept ready for either
        has been there for a while. Raises GuestFault when the reference fails."""
        # As many guests at once as our connections have on all their hosts.
        number = series.burst * (self.hops + 1)
        with self.reference.guests(self.tier, number) as guests:
            outcome = self._round(series.burst, self.target)
            series.ours += outcome.samples
            series.failures += outcome.failures
            series.fallbacks += outcome.fallbacks
            if self.hops:
                series.one_host += self._round(1, self.aside).samples
            self.rounds.await_tier()  # nothing is being made while the reference is measured
            series.reference += self.reference.round(self.tier, guests)

    def _round(
        self, burst: int, target: HostConfig, before_end: Callable[[Outcome], None] | None = None
    ) -> Outcome:
        # To the neighbour that spawns nothing, TCP would only send its SYN again and again.
        self.rounds.await_tier()
        outcome = self.rounds.open(burst, target, tcp=target is not self.aside)
        if before_end is not None:
            before_end(outcome)
        self.rounds.end()
        return outcome

    def _begin_reference(self, outcome: Outcome) -> None:
        """Reference guests like the one that is there now, and with its first packet."""
        if [sample.tier for sample in outcome.samples] != [self.tier]:
            raise EnvironmentFault(
                f"tier {self.tier} cannot be had: "
                f"{'; '.join([*outcome.fallbacks, *outcome.failures]) or 'no word of why'}",
                cure="`fabric events` of a lab of that tier says why",
            )
        argv = self.rounds.emulator_command()
        setting = Setting(
            template=template_of(argv),
            keys=self.bed.keys,
            bundle=build_bundle().data,
            mtu=underlay_mtu(self.first),
            overlay_mtu=self.first.overlay_mtu,
            instructions=_instructions(
                self.first, self.target, outcome.facts[0], outcome.seen[0].packet
            ),
        )
        seats = max(burst * (self.hops + 1) for burst in self.plan.bursts_at(self.hops))
        self.reference = self.stack.enter_context(
            Reference(self.bed, self.first, argv, setting, seats)
        )

    def _note(self, series: Series) -> None:
        ours, raw = (
            Spread.of([sample.total_ms for sample in some]).p50_ms
            for some in (series.ours, series.reference)
        )
        self.progress(
            f"{self.tier}, {self.hops} hops, burst {series.burst}: {len(series.ours)} spawns, "
            f"p50 {ours} ms, by hand {raw} ms, {len(series.failures)} failed"
        )


def _instructions(
    host: HostConfig, target: HostConfig, facts: dict[str, Any], first: bytes
) -> Callable[[int, int], Configure]:
    """What the orchestrator of ``host`` would tell the agent of any connection with these facts,
    and with this first packet."""
    topology = Topology.from_json(host.topology)
    table = compute_table(topology, host.node, _TABLE_VERSION)
    known = ApplicationFacts.from_json(facts)

    def configure(connection: int, guest: int) -> Configure:
        now_us = time.time_ns() // 1000
        record = Connection(
            connection, Role.INGRESS, host.node, target.node, now_us, known.flow, known
        )
        return instructions(host, topology, table, record, guest, now_us, (first,))

    return configure
