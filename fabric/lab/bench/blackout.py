"""The blackout benchmark: what a constant stream loses when a link on its path dies silently.

Owns: the square it happens in, cuts, the order of measurements. May import: errors, lab. Loss
derived, as RFC 6413 section 5 has it: packets lost times their interval. Both directions of the
link are cut at one moment and its carrier stays, so only liveness can notice. The fabric on real
guests first, then others' daemons on the very same namespaces and links.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from fabric.errors import EnvironmentFault, UserError
from fabric.lab import names
from fabric.lab.bench import peers, stream
from fabric.lab.bench.bed import Bed
from fabric.lab.bench.samples import Spread, percentile
from fabric.lab.builder import Progress
from fabric.lab.control import Control
from fabric.lab.spec import Options
from fabric.lab.standing import SILENT

FABRIC = "fabric"
RATE = 200.0
"""Packets/s: a blackout is known to within 5 ms."""
PORT = 5301
WINDOW = 2.0
"""Seconds after a cut in which everybody but Babel is over it."""
BACK_DEADLINE = 90.0
"""Seconds until a stream flows again, or a path is what it was."""
FLOWING = 0.5
"""Seconds without loss after which a stream counts as flowing."""
REST = {"bird-ospf": 6.0, "frr-ospf": 6.0}
"""Seconds between a path's return and the next cut: OSPF does not tell the same within 5 (RFC 2328,
MinLSInterval)."""
REST_OF_OTHERS = 2.0
"""Seconds: as long as a link must be steady until the fabric probes it fast again."""
CUTS = {"adjacent": "h1-h2", "remote": "h2-h4"}
"""Which link is cut: the sender's own, or one it only hears of. Packets go h1 - h2 - h4."""


def topology(name: str) -> str:
    """A square; the way over h2 is the better one."""
    return (
        f"name: {name}\n"
        "defaults: {hosts: {protect: true}, links: {latency: 2ms}}\n"
        "hosts: {h1: , h2: , h3: , h4: }\n"
        "links:\n"
        "  - {endpoints: [h1, h2], cost: 1}\n"
        "  - {endpoints: [h2, h4], cost: 1}\n"
        "  - {endpoints: [h1, h3], cost: 2}\n"
        "  - {endpoints: [h3, h4], cost: 2}\n"
    )


@dataclass(frozen=True)
class Plan:
    """What to measure. Raises UserError for what makes no sense."""

    count: int = 20
    """Cuts per figure."""
    systems: tuple[str, ...] = (FABRIC,)
    cuts: tuple[str, ...] = tuple(CUTS)
    name: str = "bench"

    def __post_init__(self) -> None:
        known = (FABRIC, *peers.PEERS)
        if unknown := set(self.systems) - set(known):
            raise UserError(f"there is no system {', '.join(unknown)}", cure=", ".join(known))
        if unknown := set(self.cuts) - set(CUTS):
            raise UserError(f"there is no cut {', '.join(unknown)}", cure=", ".join(CUTS))
        if self.count < 1:
            raise UserError("at least one cut must be measured")


@dataclass
class Figure:
    """The blackouts of one system with one kind of cut."""

    system: str
    cut: str
    series_ms: list[float] = field(default_factory=list)

    def to_json(self, others: list[Figure]) -> dict[str, Any]:
        """``others``: figures to be related to; the ratio is that of medians, ours to theirs."""
        median = percentile(self.series_ms, 0.5)
        ratios = {
            other.system: round(median / percentile(other.series_ms, 0.5), 3)
            for other in others
            if other.cut == self.cut and other is not self and any(other.series_ms)
        }
        return {
            "kind": "blackout",
            "system": self.system,
            "cut": self.cut,
            "rate": RATE,
            "n": len(self.series_ms),
            **Spread.of(self.series_ms).to_json(),
            "max_ms": max(self.series_ms),
            "series_ms": self.series_ms,
            "ratio": ratios,
        }


def systems() -> tuple[str, ...]:
    """The fabric, and those of its peers with BFD that are installed."""
    return (FABRIC, *(name for name in peers.available() if name != "bird-babel"))


def run(plan: Plan, options: Options, progress: Progress, found: list[dict[str, Any]]) -> None:
    """Measure; ``found`` gets one document per system and cut. Raises what bringing up a lab
    raises, ToolMissing, and EnvironmentFault when a stream does not come back."""
    figures: list[Figure] = []
    try:
        _measure(plan, options, progress, figures)
    finally:
        whole = [figure for figure in figures if figure.series_ms]
        found += [figure.to_json(whole) for figure in whole]


def _measure(plan: Plan, options: Options, progress: Progress, figures: list[Figure]) -> None:
    progress("bringing up a lab")
    text = topology(plan.name)
    with (
        Bed(0, plan.name, options, lambda _line: None, text=text) as bed,
        bed.machine.world() as world,
    ):
        control = Control(options.run_dir, plan.name, world)
        for system in plan.systems:
            if system == FABRIC:
                _Run(bed, control, system, plan, progress).all(figures)
                continue
            progress(f"{system}: waiting for its routes")
            with peers.running(system, bed):
                _Run(bed, control, system, plan, progress).all(figures)


class _Run:
    """One system."""

    def __init__(
        self, bed: Bed, control: Control, system: str, plan: Plan, progress: Progress
    ) -> None:
        self._bed, self._control = bed, control
        self._system, self._plan, self._progress = system, plan, progress
        self._ends = bed.hosts[0], bed.hosts[3]
        overlay = bed.overlay[0], bed.overlay[3]
        own = tuple(peers.address(host.node) for host in self._ends)
        self._here, self._there = overlay if system == FABRIC else own

    def all(self, figures: list[Figure]) -> None:
        """The kinds of cuts in turns; a figure of each is added at once, and filled."""
        own = [Figure(self._system, cut) for cut in self._plan.cuts]
        figures += own
        bed, (first, last) = self._bed, self._ends
        self._receiver = bed.program(last, "receive", self._there, str(PORT), module=stream)
        sender = bed.program(first, "send", self._here, module=stream)
        sender.ask(do="start", to=self._there, port=PORT, rate=RATE)
        try:
            for round_number in range(1, self._plan.count + 1):
                for figure in own:
                    figure.series_ms.append(self._cut(figure.cut))
                told = ", ".join(f"{each.cut} {each.series_ms[-1]:.0f} ms" for each in own)
                self._progress(f"{self._system}: {round_number}/{self._plan.count}: {told}")
        finally:
            sender.ask(do="stop")
            sender.close()
            self._receiver.close()

    def _cut(self, which: str) -> float:
        """One cut; the blackout it made, ms."""
        self._until("the stream takes the better way", self._on_best_path)
        time.sleep(REST.get(self._system, REST_OF_OTHERS))
        flowing: set[int] = set()
        self._until("the stream flows", lambda: self._flows(flowing))
        before = max(flowing)
        with self._control.cut(CUTS[which], SILENT) as make:
            make()
            time.sleep(WINDOW)
            arrived: set[int] = set()
            self._until("the stream comes back", lambda: self._flows(arrived))
        last = max(arrived)
        missing = set(range(before + 1, last + 1)) - arrived
        return len(missing) * 1000 / RATE

    def _collect(self) -> list[int]:
        found: list[int] = self._receiver.ask(do="collect")["arrived"]
        return found

    def _flows(self, seen: set[int]) -> bool:
        """Whether nothing is lost for a while; what arrives is added to ``seen``."""
        first = self._collect()
        time.sleep(FLOWING)
        second = self._collect()
        seen.update(first, second)
        whole = len(second) >= 0.9 * FLOWING * RATE
        return whole and max(second) - min(second) < len(second) + 1

    def _on_best_path(self) -> bool:
        if self._system != FABRIC:
            wanted = {
                "h1": (peers.address(4), "h2"), "h2": (peers.address(4), "h4"),
                "h4": (peers.address(1), "h2"),
            }  # fmt: skip
            return all(
                peers.route(self._namespace(host), to) == self._interface(host, neighbour)
                for host, (to, neighbour) in wanted.items()
            )
        last = self._ends[1]
        traces = self._bed.client(last).get("/v1/traces?last=1")
        return bool(traces) and [hop["host"] for hop in traces[-1]["hops"]] == ["h1", "h2", "h4"]

    def _namespace(self, host: str) -> str:
        return names.namespace_name(self._plan.name, host)

    def _interface(self, host: str, neighbour: str) -> str:
        return next(
            own.interface for own, far, _ in self._bed.spec.links_of(host) if far.host == neighbour
        )

    def _until(self, what: str, happens: Callable[[], bool]) -> None:
        deadline = time.monotonic() + BACK_DEADLINE
        while not happens():
            if time.monotonic() > deadline:
                raise EnvironmentFault(f"{self._system}: {what}: not within {BACK_DEADLINE:g} s")
            time.sleep(0.1)
