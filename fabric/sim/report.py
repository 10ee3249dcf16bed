"""What came of a simulation, in figures.

Owns: the figures and their meaning; see docs/simulation.md. May import: routing, sim.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from fabric.routing.definitions import Definition
from fabric.routing.protocols import compute_table
from fabric.sim.failures import Failure
from fabric.sim.maps import Map
from fabric.sim.network import Network
from fabric.sim.settings import Settings
from fabric.sim.streams import Stream, optimum, stretch, worth

SIZED_HOSTS = 3
"""Hosts whose tables are weighed: the one with the most links, one in the middle, one with the
fewest."""
SEARCH_PER_ROW = ("disjoint", "disperse", "bounded")
"""Calculations that search the network anew for each row."""
SIZED_UP_TO = 1000
"""Hosts of a network whose tables by these calculations are weighed."""


@dataclass
class Look:
    """One packet of every stream, while nothing changes."""

    reachable: int = 0
    """Pairs with a way by the protocol's rules."""
    delivered: int = 0
    stretches: list[float] = field(default_factory=list)
    hops: list[int] = field(default_factory=list)
    latencies_us: list[int] = field(default_factory=list)

    def to_json(self, pairs: int) -> dict[str, Any]:
        """Plain data."""
        return {
            "pairs": pairs,
            "reachable": self.reachable,
            "delivered": self.delivered,
            "stretch": _summary(self.stretches, 4),
            "hops": _summary(self.hops, 2),
            "latency_ms": _summary([each / 1000 for each in self.latencies_us], 3),
        }


@dataclass
class Course:
    """All that happened."""

    network: Network
    settings: Settings
    streams: Sequence[Stream]
    failures: tuple[Failure, ...]
    before: dict[int, Look] = field(default_factory=dict)
    """By protocol id."""
    after: dict[int, Look] | None = None
    origin_us: int = 0
    """When the failures' clock began."""

    def look(self, known: Map) -> dict[int, Look]:
        """The newest packet of every stream. ``known``: the network as it is."""
        links = self.network.topology.links
        found = {definition.id: Look() for definition in self.settings.protocols}
        for stream in self.streams:
            look, ends = found[stream.definition.id], stream.ends
            best = optimum(stream.definition, known, ends.source, ends.destination)
            newest = len(stream.sent_us) - 1
            look.reachable += best is not None
            if newest not in stream.delivered:
                continue
            path = stream.arrived[newest]
            look.delivered += 1
            look.hops.append(len(path))
            look.latencies_us.append(sum(links[at].latency_us for at in path))
            if best is not None:
                actual = worth(stream.definition, links, path)
                look.stretches.append(stretch(stream.definition, actual, best))
        return found


def report(course: Course) -> dict[str, Any]:
    """Everything, as plain data."""
    network = course.network
    hosts = network.hosts.values()
    return {
        "hosts": len(network.topology.nodes),
        "links": len(network.topology.links),
        "settings": course.settings.to_json(),
        "events": _events(course),
        "messages": {
            "published": network.control.published,
            "delivered": network.control.delivered,
        },
        "protocols": [_protocol(course, each) for each in course.settings.protocols],
        "work": {
            "events": network.clock.events,
            "datagrams": network.datagrams,
            "guests": sum(len(host.engines) for host in hosts),
            "hosts_with_tables": sum(host.tables > 0 for host in hosts),
            "tables": sum(host.tables for host in hosts),
            "searches": network.maps.whole.commons.tally.searches,
            "updated_searches": network.maps.whole.commons.tally.updates,
        },
    }


def _events(course: Course) -> list[dict[str, Any]]:
    """Every change, when somebody noticed, and when the last host had a new table."""
    control, origin = course.network.control, course.origin_us
    moments: dict[tuple[int, str], list[str]] = {}
    for failure in course.failures:
        moments.setdefault((failure.begin_us, "down"), []).append(failure.label)
        if failure.end_us is not None:
            moments.setdefault((failure.end_us, "up"), []).append(failure.label)
    found = []
    for (moment, what), labels in sorted(moments.items()):
        begin = origin + moment
        later = (origin + other for other, _ in moments if other > moment)
        end = min(later, default=begin + (1 << 62))
        noticed = [at for at in control.detected if begin <= at < end]
        installed = [at for at in control.installed if begin <= at < end]
        found.append(
            {
                "what": f"{', '.join(labels)} {what}",
                "at_ms": moment / 1000,
                "noticed_after_ms": _after(min(noticed, default=None), begin),
                "converged_after_ms": _after(max(installed, default=None), begin),
                "new_tables": len(installed),
            }
        )
    return found


def _after(at: int | None, begin: int) -> float | None:
    return None if at is None else round((at - begin) / 1000, 3)


def _protocol(course: Course, definition: Definition) -> dict[str, Any]:
    streams = [s for s in course.streams if s.definition.id == definition.id]
    network = course.network
    found: dict[str, Any] = {
        "protocol": definition.name,
        "before": course.before[definition.id].to_json(len(streams)),
        "table": _table_sizes(network, definition),
    }
    if course.after is not None:
        drops = network.drops(frozenset(stream.ends.id for stream in streams))
        found["during"] = _during(course, streams)
        found["after"] = course.after[definition.id].to_json(len(streams))
        found["drops"] = drops
        found["microloops"] = sum(stream.loops for stream in streams)
        found["arrivals"] = _arrivals(course, streams)
    return found


def _during(course: Course, streams: Sequence[Stream]) -> dict[str, Any]:
    interval_ms = course.settings.interval_us / 1000
    reached = [stream for stream in streams if stream.reached]
    possible = [stream for stream in reached if not stream.out_of_reach]
    counted = [stream for stream in possible if stream.restored]
    blackouts = [stream.lost * interval_ms for stream in counted if stream.lost]
    return {
        "sent": sum(len(stream.sent_us) for stream in reached),
        "lost": sum(stream.lost for stream in reached),
        "streams_never_reached": len(streams) - len(reached),
        "streams_out_of_reach": len(reached) - len(possible),
        "streams_not_restored": len(possible) - len(counted),
        "streams_hit": len(blackouts),
        "blackout_ms": _summary(blackouts, 3),
    }


def _arrivals(course: Course, streams: Sequence[Stream]) -> list[list[float]]:
    """[ms, part of the packets sent in this interval that arrived], for drawing."""
    interval = course.settings.interval_us
    sent, arrived = Counter[int](), Counter[int]()
    for stream in streams:
        for number, at in enumerate(stream.sent_us[1:-1], 1):
            slot = (at - course.origin_us) // interval
            sent[slot] += 1
            arrived[slot] += number in stream.delivered
    return [[slot * interval / 1000, round(arrived[slot] / sent[slot], 4)] for slot in sorted(sent)]


def _table_sizes(network: Network, definition: Definition) -> dict[str, Any] | None:
    """Rows and bytes (JSON, as guests get them) of whole tables; None where they would take hours
    and nobody ever computes them whole."""
    known = network.maps.whole
    if definition.calculation in SEARCH_PER_ROW and len(known.topology.nodes) > SIZED_UP_TO:
        return None
    degree = Counter(end for link in known.topology.links for end in (link.a, link.b))
    ordered = [node for node, _ in degree.most_common()]
    middle = len(ordered) // 2
    chosen = dict.fromkeys((ordered[0], ordered[middle], ordered[-1]))
    one = {definition.id: definition}
    sizes: list[dict[str, Any]] = []
    for node in chosen:
        table = compute_table(known.topology, node, 1, one, commons=known.commons)
        document = table.to_json()
        rows = len(document["routes"][str(definition.id)])
        size = len(json.dumps(document, separators=(",", ":")))
        name = known.topology.name_of(node)
        sizes.append({"host": name, "links": degree[node], "rows": rows, "bytes": size})
    return {
        "of": sizes,
        "rows": max(s["rows"] for s in sizes),
        "bytes": max(s["bytes"] for s in sizes),
    }


def _summary(values: Sequence[float], digits: int) -> dict[str, float] | None:
    """Mean, median, 90th percentile (nearest rank) and the largest; None of nothing."""
    if not values:
        return None
    ordered = sorted(values)
    rank = [ordered[max(0, -(-part * len(ordered) // 100) - 1)] for part in (50, 90)]
    found = {
        "mean": sum(ordered) / len(ordered),
        "p50": rank[0],
        "p90": rank[1],
        "max": ordered[-1],
    }
    return {name: round(value, digits) for name, value in found.items()}
