"""Connections opened by a plain program, watched, and ended again.

Owns: Rounds. May import: errors, host, lab. A round is some connections in one instant. Nothing is
asked of the orchestrators while guests appear: what happened is read from their event logs, and
from captures, afterwards.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from fabric.errors import EnvironmentFault, NameUnknown
from fabric.host.config import HostConfig
from fabric.host.network.steering import MISS_DEVICE
from fabric.lab.bench import opener
from fabric.lab.bench.bed import PORT, Bed, emulator_pid
from fabric.lab.bench.capture import Capture, Sighting
from fabric.lab.bench.readiness import Readiness
from fabric.lab.bench.samples import Sample, spawn_sample

DEADLINE = 240.0
"""Seconds until all guests of a round forward: sixteen that boot side by side take two minutes."""
END_DEADLINE = 60.0
"""Seconds until all guests of a round are gone: libvirt destroys four at a time, a second each."""
PORTS = range(20_000, 30_000)
"""Source ports, used in turn: a connection must not meet its own past."""
SETTLE_DEADLINE = 20.0
"""Seconds from the first packets of a round to its guests being ready by their host's account."""
DESTROYERS = 4
"""Connections ended at once: libvirt destroys no more than that side by side."""
_POLL = 0.1


@dataclass
class Outcome:
    """What a round brought."""

    samples: list[Sample] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    seen: list[Sighting] = field(default_factory=list)
    """First packets as they left, one per connection."""
    facts: list[dict[str, Any]] = field(default_factory=list)
    """ApplicationFacts of the connections, as their host determined them."""
    fallbacks: list[str] = field(default_factory=list)
    """Why guests came from another tier."""


class Rounds:
    """On one bed, from its first host. Use inside the bed's with-block."""

    def __init__(self, bed: Bed, capture: Capture, tier: str) -> None:
        """``capture``: of :func:`watched` of the first host."""
        self._bed, self._capture = bed, capture
        self._first = bed.hosts[0]
        self._opener = bed.program(self._first, "open", module=opener)
        self._ports = itertools.cycle(PORTS)
        self._seq = 0
        self._readiness = Readiness(bed, tier)

    def await_tier(self) -> None:
        """See :meth:`fabric.lab.bench.readiness.Readiness.wait`."""
        self._readiness.wait()

    def open(self, number: int, target: HostConfig, *, tcp: bool) -> Outcome:
        """``number`` connections in one instant to ``target``, until the first packet of each has
        left the first host; with TCP until they are established."""
        self._events()
        self._capture.forget()
        ports = list(itertools.islice(self._ports, number))
        source, overlay = self._overlay(self._first), self._overlay(target)
        answer = self._opener.ask(
            do="tcp" if tcp else "udp", source=source, ports=ports, target=(overlay, PORT)
        )
        connect_ms = dict(zip(ports, answer.get("connect_ms", [None] * number), strict=True))

        def complete(seen: list[Sighting]) -> bool:
            return set(ports) <= {s.flow.source_port for s in seen if s.connection is not None}

        seen = self._capture.until(complete, DEADLINE)
        events = self._settled_events(number, complete(seen))
        outcome = Outcome(
            facts=[e["facts"] for e in events if e["name"] == "facts"],
            fallbacks=[e["reason"] for e in events if e["name"] == "tier-fallback"],
        )
        for port in ports:
            mine = [each for each in seen if each.flow.source_port == port]
            sample = _sample(mine, events, connect_ms[port])
            if sample is None or (tcp and connect_ms[port] is None):
                outcome.failures.append(_why(mine, events))
            else:
                outcome.samples.append(sample)
                outcome.seen.append(next(s for s in mine if s.connection is not None))
        return outcome

    def emulator_command(self) -> list[str]:
        """Command line of the QEMU of the newest connection's guest on the first host.

        Raises EnvironmentFault when there is none.
        """
        for view in self._bed.client(self._first).get("/v1/connections", live=True):
            if view["guest"] and (pid := emulator_pid(view["guest"])):
                with open(f"/proc/{pid}/cmdline") as file:  # noqa: PTH123
                    return file.read().rstrip("\0").split("\0")
        raise EnvironmentFault("no guest's QEMU is to be found", cure="see the orchestrators' logs")

    def end(self) -> None:
        """Close the program's sockets, end every connection, and wait until their guests are gone.

        Raises EnvironmentFault when some are still there after END_DEADLINE.
        """
        self._opener.ask(do="close")
        deadline = time.monotonic() + END_DEADLINE
        with ThreadPoolExecutor(DESTROYERS) as pool:
            while left := [(host, id_) for host in self._bed.hosts for id_ in self._live(host)]:
                if time.monotonic() > deadline:
                    which = ", ".join(f"{id_} on {host.host}" for host, id_ in left)
                    raise EnvironmentFault(f"connections that do not end: {which}")
                list(pool.map(self._end, left))

    def drop(self, connections: Iterable[int]) -> None:
        """End these connections at the first host."""
        for connection in connections:
            self._end((self._first, f"{connection:016x}"))

    def _live(self, host: HostConfig) -> list[str]:
        views = self._bed.client(host).get("/v1/connections", live=True)
        return [view["id"] for view in views]

    def _end(self, one: tuple[HostConfig, str]) -> None:
        """Answered when the guest is proven gone."""
        host, connection = one
        with contextlib.suppress(NameUnknown):  # it ended by itself meanwhile
            client = self._bed.client(host)
            client.delete(f"/v1/connections/{connection}", timeout=END_DEADLINE)

    def _settled_events(self, number: int, forwarded: bool) -> list[dict[str, Any]]:
        """What happened since the last call, until the kernel's steering is in place for all of
        ``number`` connections: that comes behind their first packets."""
        found = self._events()
        deadline = time.monotonic() + (SETTLE_DEADLINE if forwarded else 0.0)
        while sum(e["name"] == "steering-installed" for e in found) < number:
            if time.monotonic() > deadline:
                break
            time.sleep(_POLL)
            found += self._events()
        return found

    def _events(self) -> list[dict[str, Any]]:
        """What happened on the first host since the last call."""
        found = list(self._bed.client(self._first).lines("/v1/events", since=self._seq))
        if found:
            self._seq = found[-1]["seq"]
        return found

    @staticmethod
    def _overlay(host: HostConfig) -> str:
        return host.overlay_addresses[0].partition("/")[0]


def watched(bed: Bed, host: HostConfig) -> Iterator[str]:
    """The interfaces of a host that its own connections' first packets pass."""
    yield MISS_DEVICE
    for own, _far, _link in bed.spec.links_of(host.host):
        yield own.interface


def _sample(
    seen: list[Sighting], events: list[dict[str, Any]], connect_ms: float | None
) -> Sample | None:
    arrival = next((s for s in seen if s.connection is None), None)
    departure = next((s for s in seen if s.connection is not None), None)
    if arrival is None or departure is None or departure.connection is None:
        return None
    label = f"{departure.connection:016x}"
    mine = [event for event in events if event["connection"] == label]
    return spawn_sample(arrival.at_us, departure.at_us, mine, connect_ms)


def _why(seen: list[Sighting], events: list[dict[str, Any]]) -> str:
    """What became of a connection that failed, for people."""
    if not seen:
        return "its first packet was not seen"
    flow = seen[0].flow.to_json()
    labels = {e["connection"] for e in events if e["name"] == "request" and e["flow"] == flow}
    last = [e for e in events if e["connection"] in labels]
    words = f"{last[-1]['name']} {last[-1].get('why', '')}".strip() if last else "no event of it"
    return f"{seen[0].flow.describe()}: {words}"
