"""The bridge ports of guests: what comes out of one is its guest's, or nothing.

Owns: the settings of a guest's port in the namespace libvirt makes taps in, and the switches that
keep a namespace's own IP stack off such links. May import: errors, host.network.netlink,
host.network.netns.

Everything set here lives and dies with the tap: there is nothing to undo and nothing to leak. What
guests may send beyond their port is :mod:`fabric.host.network.guard`'s.
"""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Protocol, Self

from fabric.errors import FabricError, SpawnFailed
from fabric.host.network.netlink import Netlink
from fabric.host.network.netns import libvirt_process

PORT_OPTIONS = {
    # Only frames with a MAC that the forwarding database has behind this port come in (Linux 5.18),
    # and no frame adds to it.
    "locked": 1,
    "learning": 0,
    # Ports that are isolated reach only those that are not: the host's.
    "isolated": 1,
    # A guest hears what is sent to its MAC. It needs no more: its host knows it as a neighbour and
    # never asks, and answers a guest's questions to the guest alone.
    "unicast_flood": 0,
    "mcast_flood": 0,
    "bcast_flood": 0,
    # A guest that says it is a multicast router is not one.
    "multicast_router": 0,
}
"""Netlink name of a port's option → value."""

DEAF = {
    "ipv6/conf/{}/disable_ipv6": 1,
    # Sources are looked up backwards, and no route leads to this link: nothing passes. A looser
    # net.ipv4.conf.all.rp_filter would win: `fabric doctor` looks for that.
    "ipv4/conf/{}/rp_filter": 1,
    # Who asks without saying who he is gets an answer before any filter.
    "ipv4/conf/{}/arp_ignore": 8,
}
"""Switch below /proc/sys/net → value, for a link on which the namespace itself is no party. Without
them a bridge hands its IP stack what is for the bridge's own MAC or for all, and a port what is for
01:80:c2:00:00:00 to 0f."""


class BridgePorts(Protocol):
    """What the guests' keeper asks of the bridge. Implementations are thread-safe."""

    def secure(self, tap: str, mac: str) -> bool:
        """Have the port take nothing but frames from ``mac``, for as long as it exists.

        To be called before the guest behind it may run. False: the kernel cannot check the MAC; all
        the rest is in place. Raises SpawnFailed: the guest must not run.
        """


class KernelBridgePorts:
    """:class:`BridgePorts` by netlink, in libvirt's namespace. A context manager; acquires nothing
    until first used: libvirt may be started by the first guest. A call takes about 3 ms."""

    def __init__(self, netns: str | None = None) -> None:
        """``netns``: name or path of the namespace the taps are in, if it is not libvirt's."""
        self._netns = netns
        self._lock = threading.Lock()
        self._netlink: Netlink | None = None
        self._locks: bool | None = None
        """Whether this kernel knows locked ports, once that was seen."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._lock:
            if self._netlink is not None:
                self._netlink.__exit__(kind, exc, trace)
                self._netlink = None

    def secure(self, tap: str, mac: str) -> bool:
        try:
            netlink = self._open()
            netlink.secure_port(tap, mac, PORT_OPTIONS)
            deafen(netlink, tap)
            if self._locks is None:
                self._locks = is_locked(netlink, tap)
        except FabricError as exc:
            raise SpawnFailed(f"the port {tap} cannot be secured: {exc.message}") from exc
        return self._locks

    def _open(self) -> Netlink:
        with self._lock:
            if self._netlink is None:
                daemon = libvirt_process()
                there = self._netns or (f"{daemon}/ns/net" if daemon else None)
                self._netlink = Netlink(there).__enter__()
            return self._netlink


def is_locked(netlink: Netlink, port: str) -> bool:
    """Whether the kernel took the lock: one before 5.18 ignores what it does not know."""
    return bool(netlink.port_option(port, "IFLA_BRPORT_LOCKED"))


def deafen(netlink: Netlink, link: str) -> None:
    """Keep the namespace's own IP stack off a link that only bridges for guests."""
    netlink.sysctls({switch.format(link): value for switch, value in DEAF.items()})
