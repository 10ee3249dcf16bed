"""From what the link watch measures to what this host tells the others.

Owns: LinkState: which changes are worth telling. May import: routing, host.links. Pure: the clock
is passed in.

That a link is down is told at once. What is measured is damped (see fabric.routing.damping), and
starts from what the topology says: as long as the truth agrees with it, nothing is told at all, so
two paths that are meant to be equal stay equal.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from fabric.routing.damping import JITTER, LATENCY, LOAD, LOSS, Damped, Damping, damped
from fabric.routing.link_state import LinkReport, NodeReport
from fabric.routing.topology import Topology

METRICS: dict[str, Damping] = {"latency_us": LATENCY, "jitter_us": JITTER, "loss": LOSS}
MAX_LOSS = 0.99
"""A link that loses more is told as this: a topology knows no certain loss."""


class LinkState:
    """This host's own links."""

    def __init__(self, topology: Topology, node: int) -> None:
        self._node = node
        self._configured = {end.interface: end.link for end in topology.neighbours(node)}
        self._up = dict.fromkeys(self._configured, True)
        self._metrics: dict[tuple[int, str], Damped] = {}
        self._load: Damped | None = None
        self.report = NodeReport(node)
        """What the others are to know."""

    def measure(self, links: Iterable[Mapping[str, Any]], load: float, now_us: int) -> bool:
        """Take in a line of the watch (see :class:`fabric.host.links.prober.Standing`) and this
        host's load, 0 … 1; whether there is something new to tell."""
        for link in links:
            interface = link["interface"]
            if interface not in self._configured:
                continue
            self._up[interface] = link["up"] is not False
            if link["up"]:
                self._sample(interface, link, now_us)
        self._load = damped(self._load or Damped(load, 0.0, 0), load, now_us, LOAD)
        report = NodeReport(
            self._node,
            {at: self._link_report(at) for at in self._configured},
            self._load.published,
        )
        news, self.report = report != self.report, report
        return news

    def _sample(self, interface: int, link: Mapping[str, Any], now_us: int) -> None:
        samples = {
            "latency_us": link["least_us"],
            "jitter_us": link["jitter_us"],
            "loss": None if link["loss"] is None else min(MAX_LOSS, link["loss"]),
        }
        for name, sample in samples.items():
            if sample is None:
                continue
            key = (interface, name)
            before = self._metrics.get(key)
            if before is None:
                configured = getattr(self._configured[interface], name)
                # The first sample is an average already; whether it is news, the band decides.
                before = Damped(sample, configured, 0)
            self._metrics[key] = damped(before, sample, now_us, METRICS[name])

    def _link_report(self, interface: int) -> LinkReport:
        configured = self._configured[interface]
        told: dict[str, Any] = {}
        for name in METRICS:
            metric = self._metrics.get((interface, name))
            if metric is not None and metric.published != getattr(configured, name):
                whole = name != "loss"
                told[name] = round(metric.published) if whole else round(metric.published, 4)
        return LinkReport(up=self._up[interface], **told)
