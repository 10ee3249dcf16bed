"""The rate benchmark: connections offered at a constant rate, and how many of them are served.

Owns: the order of measurements, the figures. May import: errors, host, lab. The same client asks
the same server over the same hosts and links, once through guests and once without them, routed by
the hosts' kernels; for each rate both in turn.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from fabric.errors import UserError
from fabric.host.network.nftables import Nftables
from fabric.lab.bench import opener, pacer
from fabric.lab.bench.bed import PORT, Bed, Program
from fabric.lab.bench.kernel_path import EVERYTHING, address
from fabric.lab.bench.readiness import Readiness
from fabric.lab.bench.report import Row, markdown
from fabric.lab.bench.samples import Spread, ratio
from fabric.lab.builder import Progress
from fabric.lab.spec import Options
from fabric.routing.rules import TIERS

RATES = (0.5, 1.0, 2.0)
SECONDS = 60.0
MAX_SECONDS = 120.0
"""A program of the benchmark is taken for dead after 200 s of silence."""
POOL = 16
SUSTAINED = 0.95
"""Share of what was offered that must be served in time for a rate to count as sustained."""
NETWORK = 9
"""Of the reference's addresses."""
COLUMNS = (
    "TIER", "HOPS", "OFFERED/S", "SERVED/S", "OPENED", "SERVED", "REFUSED", "FAILED",
    "CONNECT P50 MS", "P90 MS", "P99 MS", "WITHOUT P50 MS", "GUESTS BY TIER", "SUSTAINED", "LOAD",
)  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """What to measure. Raises UserError for what makes no sense."""

    tier: str = "prepared"
    rates: tuple[float, ...] = RATES
    """Connections/s."""
    seconds: float = SECONDS
    hops: int = 1
    pool: int = POOL
    name: str = "bench"

    def __post_init__(self) -> None:
        if self.tier not in TIERS:
            cure = f"tiers are: {', '.join(TIERS)}"
            raise UserError(f"there is no tier {self.tier}", cure=cure)
        if not self.rates or not all(0.05 <= rate <= 100 for rate in self.rates):
            raise UserError("rates must be 0.05 to 100 connections/s", cure="--rate 0.5,1,2")
        if not 1 <= self.seconds <= MAX_SECONDS:
            raise UserError(f"seconds must be 1 to {MAX_SECONDS:g}", cure="--seconds 60")
        if not 1 <= self.hops <= 4 or not 0 <= self.pool <= 64:
            raise UserError("hops must be 1 to 4, the pool 0 to 64", cure="--hops 1 --pool 16")


def run(plan: Plan, options: Options, progress: Progress, found: list[dict[str, Any]]) -> None:
    """Measure; ``found`` gets one document per rate. Raises what bringing up a lab raises."""
    progress(f"{plan.tier}, {plan.hops} hops: bringing up a lab")
    made = replace(options, tier=plan.tier)
    with Bed(plan.hops, plan.name, made, lambda _line: None, pool=plan.pool) as bed:
        open_reference(bed)
        first, last = bed.hosts[0], bed.hosts[-1]
        bed.program(last, "answer", str(PORT), module=opener)
        client = bed.program(first, module=pacer)
        readiness = Readiness(bed, plan.tier)
        bare_ends = address(NETWORK, first.node), address(NETWORK, last.node)
        for rate in plan.rates:
            readiness.wait()
            bare = _offer(client, bare_ends, rate, plan)
            since = _newest(bed)
            ours = _offer(client, (bed.overlay[0], bed.overlay[-1]), rate, plan)
            events = list(bed.client(first).lines("/v1/events", since=since))
            found.append(figure(plan, rate, ours, bare, events, os.getloadavg()[0]))
            served, sustained = found[-1]["served_per_s"], found[-1]["sustained"]
            progress(f"{rate:g}/s offered: {served:g}/s served, sustained: {sustained}")


def _offer(client: Program, ends: tuple[str, str], rate: float, plan: Plan) -> list[dict[str, Any]]:
    source, target = ends
    answer = client.ask(source=source, target=(target, PORT), rate=rate, seconds=plan.seconds)
    attempts: list[dict[str, Any]] = answer["attempts"]
    return attempts


def _newest(bed: Bed) -> int:
    """Number of the first host's newest event."""
    events = bed.client(bed.hosts[0]).lines("/v1/events", since=0)
    return max((int(event["seq"]) for event in events), default=0)


def figure(
    plan: Plan,
    rate: float,
    ours: Sequence[dict[str, Any]],
    bare: Sequence[dict[str, Any]],
    events: Sequence[dict[str, Any]],
    load: float,
) -> dict[str, Any]:
    """The document of one rate. ``events``: of the first host meanwhile."""
    served = [a for a in ours if a["done_ms"] is not None]
    in_time = [a for a in served if a["done_ms"] <= plan.seconds * 1e3]
    errors = Counter(a["error"] for a in ours if a["error"])
    refused = errors.pop("ECONNREFUSED", 0)
    connect = Spread.of([a["connect_ms"] for a in served])
    without = Spread.of([a["connect_ms"] for a in bare if a["done_ms"] is not None])
    tiers = Counter(str(e["tier"]) for e in events if e["name"] == "guest-ready")
    why = Counter(str(e.get("limit") or e["cause"]) for e in events if e["name"] == "refused")
    return {
        "kind": "rate", "tier": plan.tier, "hops": plan.hops, "pool": plan.pool,
        "seconds": plan.seconds, "offered_per_s": rate,
        "served_per_s": round(len(in_time) / plan.seconds, 3),
        "opened": len(ours), "served": len(served), "refused": refused,
        "refused_why": dict(why), "errors": dict(errors),
        "sustained": len(in_time) >= SUSTAINED * len(ours),
        **connect.to_json("connect_"), **without.to_json("reference_connect_"),
        "ratio": ratio(connect.p50_ms, without.p50_ms),
        "guests_by_tier": dict(tiers), "load": round(load, 1),
        "series": list(ours), "reference_series": list(bare),
    }  # fmt: skip


def open_reference(bed: Bed) -> None:
    """Addresses and routes of the hosts for packets no guest carries. Undone with the lab."""
    for place, host in enumerate(bed.hosts):
        commands = [f"address add {address(NETWORK, host.node)}/32 dev lo"]
        for _own, far, _link in bed.spec.links_of(host.host):
            behind = bed.hosts[:place] if far.node < host.node else bed.hosts[place + 1 :]
            commands += [
                f"route add {address(NETWORK, other.node)} via {far.address}" for other in behind
            ]
        bed.ip(host, commands)
        bed.on_host(host, _let_pass)


def _let_pass() -> None:
    with Nftables() as nftables:
        for chain in ("forward", "input"):
            nftables.run(f"insert rule inet fabric {chain} ip daddr {EVERYTHING} accept")


def rows(results: Sequence[dict[str, Any]]) -> list[Row]:
    """One row per rate."""
    return [
        (
            each["tier"], each["hops"], f"{each['offered_per_s']:g}", f"{each['served_per_s']:g}",
            each["opened"], each["served"], each["refused"], sum(each["errors"].values()),
            *(_cell(each[f"connect_{p}_ms"]) for p in ("p50", "p90", "p99")),
            _cell(each["reference_connect_p50_ms"]),
            ", ".join(f"{name} {n}" for name, n in sorted(each["guests_by_tier"].items())),
            "yes" if each["sustained"] else "no", each["load"],
        )
        for each in results
    ]  # fmt: skip


def page(results: Sequence[dict[str, Any]]) -> str:
    """The table as Markdown."""
    return "### Connection rate\n\n" + markdown(COLUMNS, rows(results))


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"
