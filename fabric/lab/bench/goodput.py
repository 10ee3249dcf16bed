"""The goodput benchmark: one stream dispersed over three paths, beside the best single path.

Owns: the topology it happens in, the order of measurements, the figures. May import: errors, lab.
One lab, two TCP connections that stay open, in turns: the ratio is that of streams which had the
same links, the same machine and nearly the same minute.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from fabric.errors import UserError
from fabric.lab.bench.bed import PORT, Bed, Program
from fabric.lab.bench.measure import stream_figure
from fabric.lab.bench.report import Row, markdown
from fabric.lab.bench.samples import percentile, ratio
from fabric.lab.builder import Progress
from fabric.lab.spec import Options

BANDWIDTHS = (4.0, 100.0)
"""Mb/s of every link: little enough that links are what limits, and more than guests carry."""
RELAYS = ("a", "b", "c")
PROTOCOLS = {"wide": PORT, "disperse": PORT + 1}
"""What carries a stream, and the port that says so. All three paths are equally wide: wide takes
one of them, and none is better."""
SHARE = 0.34
SOURCE_PORT = 40000
COLUMNS = (
    "LINKS MB/S", "SINGLE PATH P50 MB/S", "DISPERSE P50 MB/S", "RATIO", "ROUNDS", "LOAD",
)  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """What to measure. Raises UserError for what makes no sense."""

    bandwidths: tuple[float, ...] = BANDWIDTHS
    """Mb/s of the links, one figure each."""
    rounds: int = 10
    seconds: float = 3.0
    """Of one stream."""
    name: str = "bench"

    def __post_init__(self) -> None:
        if not self.bandwidths or not all(0.1 <= each <= 10_000 for each in self.bandwidths):
            raise UserError("bandwidths must be 0.1 to 10000 Mb/s", cure="--bandwidth 4,100")
        if self.rounds < 1 or not 1 <= self.seconds <= 60:
            raise UserError("at least one round, of 1 to 60 s", cure="--rounds 10 --seconds 3")


def topology(name: str, bandwidth: float) -> str:
    """Two hosts, and three relays between them that are alike."""
    ports = "".join(
        f"    - {{name: {protocol}, match: {{destination_port: {port}}}, "
        f"protocol: {protocol}, reply: {protocol}}}\n"
        for protocol, port in PROTOCOLS.items()
    )
    links = "".join(f"  - first-{relay}\n  - {relay}-last\n" for relay in RELAYS)
    return (
        f"name: {name}\n"
        "defaults:\n"
        f"  links: {{latency: 2ms, bandwidth: {bandwidth * 1000:.0f}kbit}}\n"
        f"protocols: {{disperse: {{share: {SHARE:.0%}}}}}\n"
        f"policy:\n  rules:\n{ports}"
        f"hosts: {{first: , {', '.join(f'{relay}: ' for relay in RELAYS)}, last: }}\n"
        f"links:\n{links}"
    )


def run(plan: Plan, options: Options, progress: Progress, found: list[dict[str, Any]]) -> None:
    """Measure; ``found`` gets one document per bandwidth. Raises what bringing up a lab raises."""
    for bandwidth in plan.bandwidths:
        found.append(_measure(plan, bandwidth, options, progress))


def _measure(plan: Plan, bandwidth: float, options: Options, progress: Progress) -> dict[str, Any]:
    progress(f"links of {bandwidth:g} Mb/s: bringing up a lab")
    text = topology(plan.name, bandwidth)
    with Bed(0, plan.name, replace(options), lambda _line: None, text=text) as bed:
        first, last = bed.hosts[0], bed.hosts[-1]
        sender = bed.program(first, "send")
        streams = {
            protocol: _Stream(bed, sender, bed.program(last, "receive", str(port)), port)
            for protocol, port in PROTOCOLS.items()
        }
        series: dict[str, list[float]] = {protocol: [] for protocol in PROTOCOLS}
        for stream in streams.values():
            stream.mbit_s(1.0)  # guests appear, windows open
        for number in range(1, plan.rounds + 1):
            for protocol, stream in streams.items():
                series[protocol].append(stream.mbit_s(plan.seconds))
            told = ", ".join(f"{protocol} {each[-1]:g} Mb/s" for protocol, each in series.items())
            progress(f"links of {bandwidth:g} Mb/s: {number}/{plan.rounds}: {told}")
    return figure(plan, bandwidth, series, os.getloadavg()[0])


class _Stream:
    """One TCP connection, used again and again."""

    def __init__(self, bed: Bed, sender: Program, receiver: Program, port: int) -> None:
        self._sender, self._receiver = sender, receiver
        self._source = bed.overlay[0], SOURCE_PORT + port - PORT
        self._target = bed.overlay[-1], port

    def mbit_s(self, seconds: float) -> float:
        """What arrived of it, Mb/s."""
        self._sender.ask(do="tcp", source=self._source, target=self._target, seconds=seconds)
        got = self._receiver.ask(do="stream")
        return stream_figure(2, "fabric", got, 0.0).mbit_s


def figure(
    plan: Plan, bandwidth: float, series: dict[str, list[float]], load: float
) -> dict[str, Any]:
    """The document of one bandwidth; the ratio is that of medians."""
    single, spread = (percentile(series[protocol], 0.5) for protocol in PROTOCOLS)
    return {
        "kind": "goodput", "links_mbit_s": bandwidth, "rounds": plan.rounds,
        "seconds": plan.seconds, "paths": len(RELAYS), "share": SHARE,
        "single_p50_mbit_s": single, "disperse_p50_mbit_s": spread,
        "ratio": ratio(spread, single), "load": round(load, 1), "series_mbit_s": series,
    }  # fmt: skip


def rows(results: Sequence[dict[str, Any]]) -> list[Row]:
    """One row per bandwidth."""
    return [
        (
            f"{each['links_mbit_s']:g}", each["single_p50_mbit_s"], each["disperse_p50_mbit_s"],
            each["ratio"], each["rounds"], each["load"],
        )
        for each in results
    ]  # fmt: skip


def page(results: Sequence[dict[str, Any]]) -> str:
    """The table, and the raw series."""
    lines = ["### Goodput", "", markdown(COLUMNS, rows(results)), "", "Raw series, Mb/s:", ""]
    lines += [
        f"- links of {each['links_mbit_s']:g}, {protocol}: {', '.join(f'{x:g}' for x in series)}"
        for each in results
        for protocol, series in each["series_mbit_s"].items()
    ]
    return "\n".join(lines) + "\n"
