"""What the orchestrator needs from the outside, as small protocols.

Owns: the seams. May import: wire, host.control.connections. Real ones:
``host.control.datapath.KernelDatapath``, ``host.guest.guests.GuestManager``; fakes stand in
``tests``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from fabric.wire.control import Configure

if TYPE_CHECKING:
    from fabric.host.control.connections import Connection, HeldPacket
    from fabric.host.guest.guests import Guest
    from fabric.host.identity import GuestIdentity


class Datapath(Protocol):
    """What the orchestrator asks of the kernel."""

    def admit(self, connection: Connection, guest_index: int) -> None:
        """Let the guest deliver this connection's packets to this host's applications, and no
        other's. Before it gets any."""

    def steer(self, connection: Connection, guest_index: int) -> None:
        """From now on the kernel sends this connection's packets straight to the guest."""

    def unsteer(self, connection: Connection) -> None:
        """Undo :meth:`steer`; packets come to the orchestrator again. Idempotent."""

    def deliver(self, packets: list[HeldPacket], guest_index: int) -> None:
        """Hand packets to the guest, in order."""

    def answer(self, packet: bytes) -> None:
        """Give a packet to this host's own applications."""

    def send(self, datagram: bytes, neighbour: str) -> None:
        """Send a fabric packet to a neighbour's underlay address."""


class Guests(Protocol):
    """What the orchestrator asks of the guest life cycle."""

    def alive(self) -> int: ...

    def memory_available_mib(self) -> int: ...

    async def spawn(
        self, connection: int, instruct: Callable[[GuestIdentity], Configure], tier: str = ""
    ) -> Guest: ...

    async def destroy(self, guest: Guest) -> None: ...

    async def close(self) -> None: ...


class Clock(Protocol):
    def monotonic(self) -> float: ...

    def unix_us(self) -> int: ...
