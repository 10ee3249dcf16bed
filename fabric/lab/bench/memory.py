"""The memory benchmark: what each guest's QEMU has for itself, and what guests share.

Owns: Footprint, the order of measurements. May import: errors, host, lab. By the kernel's account
of the emulators (/proc/PID/smaps_rollup, proc(5)), with that many connections open on one host.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from fabric.errors import GuestFault, UserError
from fabric.host.config import Limits
from fabric.lab.bench.bed import Bed, emulator_pid
from fabric.lab.bench.capture import Capture
from fabric.lab.bench.rounds import Outcome, Rounds, watched
from fabric.lab.builder import Progress
from fabric.lab.spec import Options
from fabric.routing.rules import TIERS

GUESTS = (1, 10, 50)
MAX_GUESTS = Limits().guests
BATCH = 4
"""Connections opened at once, and guests kept ready for them."""
MISSES = 6
"""Guests of one figure that may come from another tier, or fail, before the tier cannot be had. A
copy fails now and then on a machine under load."""
_KIB_PER_MIB = 1024


@dataclass(frozen=True)
class Footprint:
    """Memory of one process or more, KiB."""

    private: int = 0
    """Pages nobody else maps. That includes pages of a template that nobody else touched so far."""
    shared: int = 0
    """Its parts of pages that others map too: all parts together are all such pages, once."""
    anonymous: int = 0
    """Pages of no file: QEMU's own, and the guest's as far as it wrote to them."""

    @classmethod
    def parse(cls, rollup: str) -> Self:
        """From the text of /proc/PID/smaps_rollup. Raises ValueError."""
        lines = (line.split() for line in rollup.splitlines()[1:])
        kib = {words[0].rstrip(":"): int(words[1]) for words in lines}
        try:
            private = kib["Private_Clean"] + kib["Private_Dirty"]
            return cls(private, max(0, kib["Pss"] - private), kib["Anonymous"])
        except KeyError as exc:
            raise ValueError(f"smaps_rollup has no {exc}") from exc

    def __add__(self, other: Footprint) -> Footprint:
        return Footprint(
            self.private + other.private,
            self.shared + other.shared,
            self.anonymous + other.anonymous,
        )


def figure(tier: str, footprints: Sequence[Footprint]) -> dict[str, Any]:
    """The document of so many guests; sums, and the mean of one."""
    total = sum(footprints, Footprint())
    private, shared, anonymous = (
        round(kib / _KIB_PER_MIB, 1) for kib in (total.private, total.shared, total.anonymous)
    )
    whole = (total.private + total.shared) / _KIB_PER_MIB
    return {
        "kind": "memory", "tier": tier, "guests": len(footprints),
        "private_mib": private, "shared_mib": shared, "anonymous_mib": anonymous,
        "per_guest_mib": round(whole / len(footprints), 1) if footprints else None,
        "load": round(os.getloadavg()[0], 1),
    }  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """What to measure. Raises UserError for what makes no sense."""

    tiers: tuple[str, ...] = ("prepared",)
    guests: tuple[int, ...] = GUESTS
    name: str = "bench"
    """Of the labs."""

    def __post_init__(self) -> None:
        if unknown := set(self.tiers) - set(TIERS):
            raise UserError(
                f"there is no tier {', '.join(unknown)}", cure=f"tiers are: {', '.join(TIERS)}"
            )
        if not self.guests or not all(1 <= n <= MAX_GUESTS for n in self.guests):
            raise UserError(f"guests must be 1 to {MAX_GUESTS}", cure="for example --guests 1,10")


def run(plan: Plan, options: Options, progress: Progress, found: list[dict[str, Any]]) -> None:
    """Measure; ``found`` gets one document per tier and number of guests. Raises what bringing up
    a lab raises, and GuestFault when the tier cannot be had."""
    for tier in plan.tiers:
        progress(f"{tier}: bringing up a lab")
        wanted = replace(options, tier=tier)
        with Bed(0, plan.name, wanted, lambda _line: None, aside=True, pool=BATCH) as bed:
            first, target = bed.hosts[0], bed.hosts[-1]
            capture = Capture(bed.namespace(first), list(watched(bed, first)), first.port)
            with capture:
                rounds = Rounds(bed, capture, tier)
                there = 0
                for number in sorted(set(plan.guests)):
                    misses = 0
                    while there < number:
                        rounds.await_tier()
                        outcome = rounds.open(min(BATCH, number - there), target, tcp=False)
                        there += sum(sample.tier == tier for sample in outcome.samples)
                        misses += _let_others_go(rounds, outcome, tier)
                        if misses > MISSES:
                            why = (*outcome.failures, *outcome.fallbacks, "no reason is known")[0]
                            raise GuestFault(f"{misses} guests of tier {tier} were not had: {why}")
                    found.append(figure(tier, _footprints(bed)))
                    progress(f"{tier}: {number} guests, {found[-1]['per_guest_mib']} MiB each")
                rounds.end()


def _let_others_go(rounds: Rounds, outcome: Outcome, tier: str) -> int:
    """End connections whose guests came from another tier; how many did, or did not come at all."""
    pairs = zip(outcome.samples, outcome.seen, strict=True)
    others = [seen.connection or 0 for sample, seen in pairs if sample.tier != tier]
    rounds.drop(others)
    return len(others) + len(outcome.failures)


def _footprints(bed: Bed) -> list[Footprint]:
    """Of the guests of all connections on the first host. Raises GuestFault when one is gone."""
    found = []
    for view in bed.client(bed.hosts[0]).get("/v1/connections", live=True):
        try:
            pid = emulator_pid(view["guest"])
            found.append(Footprint.parse(Path(f"/proc/{pid}/smaps_rollup").read_text()))
        except OSError as exc:
            raise GuestFault(f"{view['guest']}: its QEMU is gone: {exc.strerror}") from exc
    return found
