"""Steering that only remembers: for tests of what stands on it.

Owns: a stand-in for :class:`fabric.host.network.steering.NftSteering`. May import: wire,
host.network.steering. It is stricter than the kernel: steering to a guest nobody added is a test's
mistake.
"""

from __future__ import annotations

from collections.abc import Sequence

from fabric.errors import NameUnknown
from fabric.host.network.guard import CAUSES
from fabric.host.network.steering import Entries
from fabric.wire.inner import FiveTuple


class FakeSteering:
    """Implements :class:`fabric.host.network.steering.Steering` in memory."""

    def __init__(self) -> None:
        self.installed = False
        self.guests: dict[int, str] = {}
        """Guest index → MAC."""
        self.admitted: dict[int, set[FiveTuple]] = {}
        """Guest index → flows whose answers it may deliver."""
        self.flows: dict[FiveTuple, int] = {}
        self.connections: dict[int, int] = {}

    def install(self) -> None:
        self.installed = True

    def add_guest(self, index: int, mac: str) -> None:
        self.guests[index] = mac

    def remove_guest(self, index: int) -> None:
        self.guests.pop(index, None)
        self.admitted.pop(index, None)
        self.flows = {k: v for k, v in self.flows.items() if v != index}
        self.connections = {k: v for k, v in self.connections.items() if v != index}

    def admit(self, guest: int, flow: FiveTuple) -> None:
        if guest not in self.guests:
            raise NameUnknown(f"guest {guest} was not added")
        self.admitted.setdefault(guest, set()).add(flow)

    def steer(
        self, guest: int, *, flows: Sequence[FiveTuple] = (), connections: Sequence[int] = ()
    ) -> None:
        if not self.installed:
            raise NameUnknown("steering is not installed")
        if guest not in self.guests:
            raise NameUnknown(f"guest {guest} was not added")
        self.flows.update(dict.fromkeys(flows, guest))
        self.connections.update(dict.fromkeys(connections, guest))

    def unsteer(self, *, flows: Sequence[FiveTuple] = (), connections: Sequence[int] = ()) -> None:
        for flow in flows:
            self.flows.pop(flow, None)
        for number in connections:
            self.connections.pop(number, None)

    def entries(self) -> Entries:
        if not self.installed:
            raise NameUnknown("steering is not installed")
        return Entries(dict(self.flows), dict(self.connections))

    def refused(self) -> dict[str, int]:
        return dict.fromkeys(CAUSES, 0)

    def neighbours(self) -> dict[int, str]:
        return dict(self.guests)

    def remove(self) -> None:
        self.installed = False
        self.guests.clear()
        self.admitted.clear()
        self.flows.clear()
        self.connections.clear()
