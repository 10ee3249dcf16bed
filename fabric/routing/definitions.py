"""What a protocol is: how paths are calculated, by which metric, over which links and hosts.

Owns: Definition, the built-in ones, their JSON form. May import: errors, routing.needs. Stays on
the host.

The terms are those of IGP Flexible Algorithm (RFC 9350): a metric type, a calculation type, and
constraints on links by their affinities; the limits on a link's bandwidth and delay are those of
RFC 9843. Definitions travel with the topology, because hosts that forward by different ones would
not agree on the way (RFC 9350). The built-in protocols are definitions like any other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from fabric.errors import ConfigError, NameUnknown
from fabric.routing.needs import (
    AVOID,
    BOUNDED,
    DEFLECT,
    DISJOINT,
    DISPERSE,
    FIRST_USER_PROTOCOL,
    FLOOD,
    LOW_LATENCY,
    MAX_PROTOCOL,
    PROTOCOL_NAMES,
    RELIABLE,
    SHORTEST,
    SOURCE,
    WIDE,
)

METRICS = {
    "cost": "sum of link costs",
    "latency": "sum of link latencies, µs",
    "loss": "-ln(probability of getting through), 1e-9",
    "hops": "number of links",
    "bandwidth": "sum of 10^12 bit/s / bandwidth of the link",
}
"""What adds up along a path, and what the number means."""

CALCULATIONS = (
    "spf",  # least sum of the metric
    "widest",  # largest bottleneck bandwidth, then least sum of the metric
    "deflect",  # the least-loaded neighbour that is nearer to the destination
    "disjoint",  # copies on two disjoint paths
    "disperse",  # packets in turn on several disjoint paths
    "flood",  # to every neighbour that may still lead there
    "source",  # the whole path chosen at the first host
    "bounded",  # like source, within bounds on latency, jitter and loss
)

MAX_PATHS = 8
"""Paths of one entry: more disjoint ones than a host has links do not exist anyway."""
MAX_SLACK = 16
"""Hops a flooded packet may go out of its way."""
DEFAULT_HOLD_US = 50_000
"""µs an egress waits for a missing packet of a dispersed flow: what disjoint paths across a
continent differ by. A missing packet delays those behind it by no more."""
AVOID_TAG = "avoid"
"""Hosts with this tag are passed by with protocol ``avoid``, unless its definition says else."""


@dataclass(frozen=True)
class Definition:
    """One protocol. Empty constraints constrain nothing; a bound of 0 is no bound."""

    id: int
    name: str
    calculation: str = "spf"
    metric: str = "cost"
    include_any: tuple[str, ...] = ()
    """Only links with at least one of these affinities."""
    include_all: tuple[str, ...] = ()
    exclude_any: tuple[str, ...] = ()
    exclude_hosts: tuple[int, ...] = ()
    """Nodes that carry nothing for others. Both ends of a path are exempt, here and below."""
    exclude_tags: tuple[str, ...] = ()
    exclude_regions: tuple[str, ...] = ()
    minimum_bandwidth_bps: int = 0
    """Of every link."""
    maximum_latency_us: int = 0
    """Of every link."""
    maximum_loss: float = 0.0
    """Of every link."""
    bound_latency_us: int = 0
    """Of the whole path, like the next two; calculation ``bounded``."""
    bound_jitter_us: int = 0
    bound_loss: float = 0.0
    paths: int = 2
    """At most so many; calculations ``disjoint`` and ``disperse``."""
    share: float = 1.0
    """Largest part of the packets any host between the ends may see; ``disperse``."""
    hold_us: int = DEFAULT_HOLD_US
    """µs the egress waits for a missing packet; ``disperse``."""
    via: tuple[int, ...] = ()
    """Nodes to pass, in this order or the reverse; ``source``."""
    slack: int = 2
    """Hops a copy may go beyond the shortest way; ``flood``."""

    def problems(self) -> Iterator[str]:
        """What is impossible about this definition by itself."""
        yield from self._identity_problems()
        if self.calculation not in CALCULATIONS:
            yield f"calculation {self.calculation!r} is none of {', '.join(CALCULATIONS)}"
        if self.metric not in METRICS:
            yield f"metric {self.metric!r} is none of {', '.join(METRICS)}"
        if not 1 <= self.paths <= MAX_PATHS:
            yield f"paths {self.paths} is not in 1 … {MAX_PATHS}"
        if not 0 < self.share <= 1:
            yield f"share {self.share} is not above 0 and at most 1"
        elif self.least_paths > self.paths:
            yield f"a share of {self.share:g} needs {self.least_paths} paths, not {self.paths}"
        if not 0 <= self.slack <= MAX_SLACK:
            yield f"slack {self.slack} is not in 0 … {MAX_SLACK}"
        for name in _PROBABILITIES:
            if not 0 <= getattr(self, name) < 1:
                yield f"{name} {getattr(self, name)} is not in 0 … 1 (1 itself excluded)"
        for name in _NOT_NEGATIVE:
            if getattr(self, name) < 0:
                yield f"{name} {getattr(self, name)} is negative"
        if len(set(self.via)) < len(self.via):
            yield "via names a host twice"

    def _identity_problems(self) -> Iterator[str]:
        built_in = PROTOCOL_NAMES.get(self.id)
        if not 0 <= self.id <= MAX_PROTOCOL:
            yield f"id {self.id} is not in 0 … {MAX_PROTOCOL}"
        elif self.id < FIRST_USER_PROTOCOL and built_in != self.name:
            yield f"ids below {FIRST_USER_PROTOCOL} are built in; {self.id} is {built_in or 'free'}"
        elif built_in and self.calculation != PROTOCOLS[self.id].calculation:
            yield f"{self.name} is built in and keeps its calculation"
        if self.id >= FIRST_USER_PROTOCOL and self.name in PROTOCOL_NAMES.values():
            yield f"{self.name} is the name of a built-in protocol"

    @property
    def least_paths(self) -> int:
        """Disjoint paths without which the share cannot be kept."""
        return int(-(-1 // self.share))

    @property
    def constraints(self) -> tuple[object, ...]:
        """What decides which links and hosts count."""
        return (
            *(self.include_any, self.include_all, self.exclude_any),
            *(self.minimum_bandwidth_bps, self.maximum_latency_us, self.maximum_loss),
            *(self.exclude_hosts, self.exclude_tags, self.exclude_regions),
        )

    @property
    def chooses_links(self) -> bool:
        """Whether any link could be kept out."""
        return bool(
            self.include_any
            or self.include_all
            or self.exclude_any
            or self.minimum_bandwidth_bps
            or self.maximum_latency_us
            or self.maximum_loss
        )

    @property
    def chooses_nodes(self) -> bool:
        """Whether any host could be kept from carrying for others."""
        return bool(self.exclude_hosts or self.exclude_tags or self.exclude_regions)

    @property
    def plain(self) -> bool:
        """Every host chooses the next one by its own table; packets carry no path."""
        return self.calculation in ("spf", "widest", "deflect")

    def to_json(self) -> dict[str, Any]:
        """Plain data; what is at its default is left out."""
        document: dict[str, Any] = {"id": self.id, "name": self.name}
        for attribute in fields(self)[2:]:
            value = getattr(self, attribute.name)
            if value != attribute.default:
                document[attribute.name] = list(value) if isinstance(value, tuple) else value
        return document

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Definition:
        """Inverse of :meth:`to_json`. Raises TypeError on unknown or missing keys."""
        values: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value
            for key, value in document.items()
        }
        return cls(**values)


_PROBABILITIES = ("maximum_loss", "bound_loss")
_NOT_NEGATIVE = (
    "minimum_bandwidth_bps",
    "maximum_latency_us",
    "bound_latency_us",
    "bound_jitter_us",
    "hold_us",
)


def _built_in(
    number: int, calculation: str = "spf", metric: str = "cost", **more: Any
) -> Definition:
    return Definition(number, PROTOCOL_NAMES[number], calculation, metric, **more)


PROTOCOLS: dict[int, Definition] = {
    definition.id: definition
    for definition in (
        _built_in(SHORTEST),
        _built_in(LOW_LATENCY, metric="latency"),
        _built_in(WIDE, "widest"),
        _built_in(RELIABLE, metric="loss"),
        _built_in(DISJOINT, "disjoint"),
        _built_in(DISPERSE, "disperse", paths=3),
        _built_in(FLOOD, "flood", "hops"),
        _built_in(SOURCE, "source"),
        _built_in(DEFLECT, "deflect"),
        _built_in(BOUNDED, "bounded"),
        _built_in(AVOID, exclude_tags=(AVOID_TAG,)),
    )
}
"""The built-in protocols by id, as they are where a topology does not define them otherwise."""


def combined(defined: tuple[Definition, ...]) -> dict[int, Definition]:
    """The built-in protocols and a topology's own, by ascending id; its own win."""
    found = PROTOCOLS | {definition.id: definition for definition in defined}
    return dict(sorted(found.items()))


def by_name(name: str, protocols: Mapping[int, Definition] = PROTOCOLS) -> Definition:
    """Raises NameUnknown, listing the known names."""
    for protocol in protocols.values():
        if protocol.name == name:
            return protocol
    known = ", ".join(protocol.name for protocol in protocols.values())
    raise NameUnknown(f"no protocol {name!r}", cure=f"protocols: {known}")


def changed(definition: Definition, **parameters: Any) -> Definition:
    """With other parameters. Raises ConfigError when they are impossible."""
    found = replace(definition, **parameters)
    if problems := tuple(found.problems()):
        raise ConfigError(f"protocol {definition.name} is not possible", problems)
    return found
