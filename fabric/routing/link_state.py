"""What hosts report of their links, and the topology that follows from all reports.

Owns: LinkReport, NodeReport, Observatory. May import: errors, routing.topology. Pure; stays on the
host.

Every host knows how the network is meant to be; a report says how it is at the links of one host.
A link counts when neither of its ends says that it is down. Of what both ends measured, each in the
direction towards itself, the mean holds for the delay and the worse one for loss and jitter, since
a link's attributes are those of both directions. Of what nobody reports, the topology's word holds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from fabric.errors import ConfigError
from fabric.routing.topology import Link, Node, Topology


@dataclass(frozen=True)
class LinkReport:
    """One end's word on its link; None: what the topology says holds."""

    up: bool = True
    latency_us: int | None = None
    """One way, towards the reporter, µs."""
    jitter_us: int | None = None
    loss: float | None = None
    """Probability, 0 … below 1."""

    def to_json(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if value is not None}


@dataclass(frozen=True)
class NodeReport:
    """One host's word."""

    node: int
    links: Mapping[int, LinkReport] = field(default_factory=dict)
    """By the host's interface id."""
    load: float | None = None
    """How busy the host is, 0 … 1."""

    def to_json(self) -> dict[str, Any]:
        links = {str(interface): link.to_json() for interface, link in sorted(self.links.items())}
        return {"node": self.node, "load": self.load, "links": links}

    @classmethod
    def from_json(cls, document: Any) -> NodeReport:
        """Raises ConfigError: other hosts' words are not to be trusted with anything else."""
        try:
            links = {int(at): _link_report(link) for at, link in document["links"].items()}
            load = document.get("load")
            return cls(int(document["node"]), links, None if load is None else float(load))
        except (KeyError, TypeError, ValueError, AttributeError) as exc:
            raise ConfigError(
                f"report of a host: {type(exc).__name__} {exc}",
                cure="run the same version of fabric on all hosts",
            ) from exc


def _link_report(document: Any) -> LinkReport:
    up, loss = document.get("up", True), document.get("loss")
    if not isinstance(up, bool):
        raise TypeError(f"up is {up!r}")
    if loss is not None and not 0 <= float(loss) < 1:
        raise ValueError(f"loss is {loss}")
    times = [document.get(name) for name in ("latency_us", "jitter_us")]
    known = [None if value is None else int(value) for value in times]
    if any(value is not None and value < 0 for value in known):
        raise ValueError(f"a time is negative: {times}")
    latency_us, jitter_us = known
    return LinkReport(up, latency_us, jitter_us, None if loss is None else float(loss))


class Observatory:
    """The topology as reported. Links and nodes that did not change stay the same objects, by which
    searches know what they need not do again."""

    def __init__(self, base: Topology) -> None:
        self.base = base
        self._links: dict[int, Link] = {}
        """Those that differ from the base, by position."""
        self._nodes: dict[int, Node] = {}

    def observe(self, reports: Iterable[NodeReport]) -> Topology:
        """The topology by these reports; the base itself when they say nothing new. What a report
        says of links or hosts that do not exist is ignored."""
        known = {report.node: report for report in reports}
        links: dict[int, Link] = {}
        down = set()
        for at, link in enumerate(self.base.links):
            ends = [
                report.links[interface]
                for node, interface in ((link.a, link.a_interface), (link.b, link.b_interface))
                if (report := known.get(node)) is not None and interface in report.links
            ]
            if not all(end.up for end in ends):
                down.add(at)
            elif (seen := _seen(link, ends)) != link:
                before = self._links.get(at)
                links[at] = before if before == seen else seen
        nodes: dict[int, Node] = {}
        for node in self.base.nodes:
            report = known.get(node.id)
            if report is not None and report.load is not None and report.load != node.load:
                loaded = replace(node, load=min(1.0, max(0.0, report.load)))
                seen_before = self._nodes.get(node.id)
                nodes[node.id] = seen_before if seen_before == loaded else loaded
        self._links, self._nodes = links, nodes
        topology = self.base
        if links or nodes:
            topology = topology.changed(links, nodes)
        return topology.without(down) if down else topology


def _seen(link: Link, ends: list[LinkReport]) -> Link:
    latencies = [end.latency_us for end in ends if end.latency_us is not None]
    jitters = [end.jitter_us for end in ends if end.jitter_us is not None]
    losses = [end.loss for end in ends if end.loss is not None]
    return replace(
        link,
        latency_us=round(sum(latencies) / len(latencies)) if latencies else link.latency_us,
        jitter_us=max(jitters, default=link.jitter_us),
        loss=max(losses, default=link.loss),
    )
