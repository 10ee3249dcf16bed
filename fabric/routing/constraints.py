"""What a protocol thinks of a link or a host: how much it counts, and whether it counts at all.

Owns: link weights and constraints. May import: routing.{definitions,spf,topology}. Stays on the
host.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from fabric.routing.definitions import Definition
from fabric.routing.spf import UNLIMITED
from fabric.routing.topology import Link, Node

COST_BITS = 48
"""Low bits of a combined weight, which hold the cost as tie-break: 2^24 hops of MAX_COST."""
LOSS_UNITS = 10**9
"""Integer steps per unit of -ln(1 - loss). Sums of floats depend on their order, and hosts that sum
the same path in opposite directions must agree on what is equal."""
REFERENCE_BPS = 10**12
"""Bit/s that count 1 with metric ``bandwidth`` (RFC 9843: the reference bandwidth)."""


def bandwidth_of(link: Link) -> int:
    """Bits per second for comparison: no limit counts as UNLIMITED."""
    return link.bandwidth_bps or UNLIMITED


def loss_weight(link: Link) -> int:
    """-ln(1 - loss): adding these multiplies the probabilities of getting through."""
    return round(-math.log1p(-link.loss) * LOSS_UNITS) if link.loss else 0


WEIGHTS: dict[str, Callable[[Link], int]] = {
    "cost": lambda link: link.cost,
    # Sums of the first part, then of costs, in one integer: the cost breaks ties.
    "latency": lambda link: (link.latency_us << COST_BITS) + link.cost,
    "loss": lambda link: (loss_weight(link) << COST_BITS) + link.cost,
    "hops": lambda link: (1 << COST_BITS) + link.cost,
    "bandwidth": lambda link: (
        (max(1, REFERENCE_BPS // bandwidth_of(link)) << COST_BITS) + link.cost
    ),
}


def link_exclusion(definition: Definition, link: Link) -> str:
    """The constraint that keeps a link out, in words; empty when none does.

    The order is that of RFC 9350 section 13, with RFC 9843's limits behind.
    """
    d, has = definition, set(link.affinities)
    if shut := has & set(d.exclude_any):
        return f"exclude_any: the link has affinity {', '.join(sorted(shut))}"
    if d.include_any and not has & set(d.include_any):
        return f"include_any: the link has none of {', '.join(d.include_any)}"
    if lacking := set(d.include_all) - has:
        return f"include_all: the link lacks {', '.join(sorted(lacking))}"
    for name, broken, unit, actual, limit in (
        ("minimum_bandwidth", bandwidth_of(link) < d.minimum_bandwidth_bps, " bit/s",
         link.bandwidth_bps, d.minimum_bandwidth_bps),
        ("maximum_latency", 0 < d.maximum_latency_us < link.latency_us, " µs",
         link.latency_us, d.maximum_latency_us),
        ("maximum_loss", 0 < d.maximum_loss < link.loss, "", link.loss, d.maximum_loss),
    ):  # fmt: skip
        if broken:
            return f"{name}: {limit:g}{unit}, the link has {actual:g}{unit}"
    return ""


def node_exclusion(definition: Definition, node: Node) -> str:
    """The constraint that keeps a host from carrying for others; empty when none does."""
    if node.id in definition.exclude_hosts:
        return "exclude_hosts: names this host"
    if shut := set(node.tags) & set(definition.exclude_tags):
        return f"exclude_tags: the host has tag {', '.join(sorted(shut))}"
    if node.region and node.region in definition.exclude_regions:
        return f"exclude_regions: the host is in {node.region}"
    return ""
