"""Liveness and link state: who notices a change when, and what of it hosts know.

Owns: Control. May import: routing, sim.

A link's end notices its death as BFD does (RFC 5880): a detection time, interval times multiplier,
after the last packet that came through. It tells its guests at once, and publishes it; every other
host hears of it after the store's delay and computes a new table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from random import Random

from fabric.routing.topology import Link, Topology
from fabric.sim.clock import Clock
from fabric.sim.failures import Failure
from fabric.sim.hosts import Host
from fabric.sim.settings import Settings

HANDSHAKE = 3
"""One-way latencies until a BFD session is up again: Down, Init, Up."""


class Control:
    """See the module docstring. ``down`` is the truth: links that carry nothing now."""

    def __init__(
        self,
        topology: Topology,
        hosts: Mapping[int, Host],
        settings: Settings,
        clock: Clock,
        rng: Random,
    ) -> None:
        self.down: frozenset[int] = frozenset()
        self.published = 0
        self.delivered = 0
        """Copies of what was published that hosts heard."""
        self.detected: list[int] = []
        """When some end noticed something, µs."""
        self.installed: list[int] = []
        """When some host put another table into use, µs."""
        self.on_change: Callable[[], None] = lambda: None
        """Called when the truth has changed."""
        self._links = topology.links
        self._of_node: dict[int, list[int]] = {node: [] for node in hosts}
        for number, link in enumerate(self._links):
            self._of_node[link.a].append(number)
            self._of_node[link.b].append(number)
        self._hosts, self._settings, self._clock, self._rng = hosts, settings, clock, rng
        self._store: frozenset[tuple[int, int]] = frozenset()
        """What is published to be down."""
        self._causes: dict[int, int] = {}
        """Link → how many failures keep it down."""

    def plan(self, failure: Failure, origin_us: int = 0) -> None:
        """Let it happen when it is its time, counted from ``origin_us``."""
        self._clock.at(origin_us + failure.begin_us, partial(self._set, failure, 1))
        if failure.end_us is not None:
            self._clock.at(origin_us + failure.end_us, partial(self._set, failure, -1))

    def _set(self, failure: Failure, more: int) -> None:
        links = failure.links
        if failure.node is not None:
            self._revive(self._hosts[failure.node], more < 0)
            links = tuple(self._of_node[failure.node])
        before = self.down
        for link in links:
            self._causes[link] = self._causes.get(link, 0) + more
        self.down = frozenset(link for link, causes in self._causes.items() if causes)
        for link in sorted(before ^ self.down):
            for end in (self._links[link].a, self._links[link].b):
                dead = link in self.down
                self._clock.after(
                    self._notice_us(link, dead), partial(self._notice, link, end, dead)
                )
        self.on_change()

    def _revive(self, host: Host, alive: bool) -> None:
        host.alive = alive
        if alive:  # it reads the store anew
            self._clock.after(self._settings.store_us, lambda: self._learn(host, self._store))

    def _notice_us(self, link: int, dead: bool) -> int:
        settings, latency = self._settings, self._links[link].latency_us
        since_last = self._rng.randrange(settings.bfd_interval_us)
        if dead:
            # The last packet was sent that long ago, and was still on its way.
            return latency + settings.bfd_interval_us * settings.bfd_multiplier - since_last
        return since_last + HANDSHAKE * latency

    def _notice(self, link: int, end: int, dead: bool) -> None:
        host = self._hosts[end]
        if (link in self.down) != dead or not host.alive:
            return  # it changed again before anybody could see it
        address = far_address(self._links[link], end)
        self.detected.append(self._clock.now_us)
        if self._settings.repair:
            host.neighbour(address, link, dead=dead)
        self._publish((link, end), dead)

    def _publish(self, what: tuple[int, int], dead: bool) -> None:
        self.published += 1
        self._store = self._store | {what} if dead else self._store - {what}
        mean = self._settings.store_us
        for node, host in self._hosts.items():
            delay = 0 if node == what[1] else self._rng.randrange(mean // 2, mean * 3 // 2 + 1)
            self._clock.after(delay, partial(self._hear, host, what, dead))

    def _hear(self, host: Host, what: tuple[int, int], dead: bool) -> None:
        if not host.alive:
            return
        self.delivered += 1
        self._learn(host, host.reported | {what} if dead else host.reported - {what})

    def _learn(self, host: Host, reported: frozenset[tuple[int, int]]) -> None:
        host.reported = reported
        if not host.installing:
            host.installing = True
            self._clock.after(self._settings.compute_us, partial(self._install, host))

    def _install(self, host: Host) -> None:
        host.installing = False
        if host.alive and host.install():
            self.installed.append(self._clock.now_us)


def far_address(link: Link, end: int) -> str:
    """The address of a link's other end."""
    return link.b_address if link.a == end else link.a_address
