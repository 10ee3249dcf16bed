"""The topology as this host sees it now, and the table that follows from it.

Owns: everybody's reports, when a new table is computed, the versions of both. May import: errors,
routing, host.control.link_state, and of host config, events, promptness. No I/O: what to publish is
handed to a callable, and others' reports are handed in.

When a link of this host dies, its agents take the alternates at once (fabric.host.links), the
others are told at once, and this host's own table follows a moment later: a host that sends packets
back the way they came, to hosts that do not know why yet, makes a loop (RFC 8333). As long as
nothing can be shared with the others (no store, or it is lost), tables stay as they are, for the
same reason, and agents still repair.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from fabric.host.config import HostConfig
from fabric.host.control.link_state import LinkState
from fabric.host.control.ports import Clock
from fabric.host.events import EventLog
from fabric.host.promptness import undisturbed
from fabric.routing.link_state import LinkReport, NodeReport, Observatory
from fabric.routing.protocols import compute_table
from fabric.routing.table import ForwardingTable
from fabric.routing.topology import Topology

SETTLE = 0.02
"""Seconds between two tables at least: reports of one event come in a row (RFC 8405)."""

CONVERGENCE = 1.0
"""Seconds in which the others have new tables (RFC 8333: ULOOP_DELAY_DOWN_TIMER)."""

Install = Callable[[Topology, ForwardingTable], None]
Publish = Callable[[NodeReport], None]


class TopologyKeeper:
    """One per host. All methods run on the event loop's thread."""

    def __init__(
        self,
        config: HostConfig,
        topology: Topology,
        table: ForwardingTable,
        *,
        install: Install,
        events: EventLog,
        clock: Clock,
    ) -> None:
        self._node = config.node
        self._far = {
            end.interface: (end.node, far)
            for end in topology.neighbours(config.node)
            for far in [end.link.b_interface if end.link.a == config.node else end.link.a_interface]
        }
        """Own interface → (neighbour, its interface) of the same link."""
        self._observatory = Observatory(topology)
        self._links = LinkState(topology, config.node)
        self._reports: dict[int, NodeReport] = {}
        self._install = install
        self._events = events
        self._clock = clock
        self._due: asyncio.TimerHandle | None = None
        self._up: dict[int, bool | None] = {}
        self._repaired: dict[int, asyncio.TimerHandle] = {}
        """Own links that died just now, by interface: in the table they are still there. It does
        not matter which end was the first to say so."""
        self._sharing = False
        self.topology = topology
        self.table = table
        self.standings: list[dict[str, Any]] = []
        """The watch's newest word on each link; see fabric.host.links.prober.Standing."""
        self.watched = False
        """Whether there is a watch to listen to."""
        self.publish: Publish = lambda _report: None
        """Told this host's report whenever there is news in it."""

    @property
    def report(self) -> NodeReport:
        """This host's own."""
        return self._links.report

    @property
    def reports(self) -> Mapping[int, NodeReport]:
        """By node id, this host's own included."""
        return self._reports

    # -- what is heard ----------------------------------------------------------------------------

    def on_links(self, document: Mapping[str, Any], load: float) -> None:
        """A line of the link watch; ``load``: of this host, 0 … 1."""
        self.watched = True
        self.standings = list(document["links"])
        for link in self.standings:
            self._note_turn(link)
        if self._links.measure(self.standings, load, self._clock.unix_us()):
            self._reports[self._node] = self._links.report
            self.publish(self._links.report)
            self._recompute_soon()

    def share(self, sharing: bool) -> None:
        """Whether the others hear this host and it hears them."""
        if sharing is self._sharing:
            return
        self._sharing = sharing
        self._events.emit("store-connected" if sharing else "store-lost")
        if sharing:
            self.publish(self._links.report)
            self._recompute_soon()

    def on_silence(self) -> None:
        """The link watch is gone: what it said last holds, and agents repair nothing."""
        self.watched = False
        self._events.emit("links-unwatched")

    def on_reports(self, reports: Iterable[NodeReport], gone: Iterable[int] = ()) -> None:
        """Others' reports are new, or ``gone``: a host that had something to say and is silent now
        opens no connections, whatever its links are like. Of oneself nobody else knows better."""
        changed = False
        for report in reports:
            before = self._reports.get(report.node)
            if report.node != self._node and before != report:
                self._reports[report.node] = report
                self._note_far(report, before)
                changed = True
        for node in gone:
            before = self._reports.get(node)
            if node != self._node and before is not None and before != (left := _left(before)):
                self._reports[node] = left
                self._note_far(left, before)
                changed = True
        if changed:
            self._recompute_soon()

    @property
    def down(self) -> tuple[str, ...]:
        """Far ends of this host's links that must not be used, as addresses."""
        return tuple(link["address"] for link in self.standings if link["up"] is False)

    def _note_turn(self, link: Mapping[str, Any]) -> None:
        """See whether a link went down, or came back."""
        interface, up = int(link["interface"]), link["up"]
        before = self._up.get(interface)
        self._up[interface] = up
        if up is before or (before is None and up):
            return
        self._events.emit(
            "link-up" if up else "link-down",
            neighbour=self.topology.name_of(int(link["neighbour"])),
            interface=interface,
            why=link["diagnostic"],
        )
        self._repair(interface, dead=up is False)

    def _note_far(self, report: NodeReport, before: NodeReport | None) -> None:
        """See whether a neighbour lost the link to here."""
        for interface, (node, far) in self._far.items():
            if node != report.node or far not in report.links:
                continue
            was_up = before is None or far not in before.links or before.links[far].up
            if was_up and not report.links[far].up:
                self._repair(interface, dead=True)

    def _repair(self, interface: int, *, dead: bool) -> None:
        if (waiting := self._repaired.pop(interface, None)) is not None:
            waiting.cancel()
        if dead:
            loop = asyncio.get_running_loop()
            self._repaired[interface] = loop.call_later(CONVERGENCE, self._converged, interface)

    def _converged(self, interface: int) -> None:
        self._repaired.pop(interface, None)
        self._recompute_soon()

    # -- what follows -----------------------------------------------------------------------------

    def _recompute_soon(self) -> None:
        """At once, but not once per report of an event that many hosts report."""
        if self._due is None:
            self._due = asyncio.get_running_loop().call_later(SETTLE, self._settled)
            self._recompute()

    def _settled(self) -> None:
        self._due = None
        self._recompute()

    def _recompute(self) -> None:
        if not self._sharing:
            return
        topology = self._observatory.observe([*self._reports.values(), *self._spared()])
        version = table_version(topology)
        if version == self.table.version:
            return
        self.topology = topology
        with undisturbed():
            self.table = compute_table(topology, self._node, version, previous=self.table)
            self._install(topology, self.table)

    def _spared(self) -> Iterator[NodeReport]:
        """What both ends say of links that are being repaired, as if they were up."""
        spared: dict[int, dict[int, LinkReport]] = {}
        for interface in self._repaired:
            for node, at in ((self._node, interface), self._far[interface]):
                report = self._reports.get(node)
                if report is not None and at in report.links:
                    links = spared.setdefault(node, dict(report.links))
                    links[at] = replace(links[at], up=True)
        return (replace(self._reports[node], links=links) for node, links in spared.items())

    def close(self) -> None:
        """No table comes any more."""
        for timer in (self._due, *self._repaired.values()):
            if timer is not None:
                timer.cancel()


def _left(report: NodeReport) -> NodeReport:
    """What is to be thought of a host that said this, and then left."""
    return NodeReport(report.node, dict.fromkeys(report.links, LinkReport(up=False)))


def table_version(topology: Topology) -> int:
    """Names a topology: 32 bits of its content's digest. Hosts that see the same have the same."""
    text = json.dumps(topology.to_json(), sort_keys=True).encode()
    return int.from_bytes(hashlib.blake2s(text, digest_size=4).digest(), "big")
