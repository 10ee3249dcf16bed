"""The miss device: where packets of connections nobody knows yet arrive.

Owns: the TUN ``fabric0``, the overlay addresses and routes of this host, the kernel switches they
need, and the memory that tells which flow a later fragment belongs to. May import: errors, wire,
host.network.netlink, host.network.netns, host.network.steering (the device's name).
"""

from __future__ import annotations

import fcntl
import ipaddress
import os
import struct
from collections.abc import Iterator, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Self

from fabric.errors import KernelLacks
from fabric.host.network.netlink import Netlink
from fabric.host.network.netns import translate
from fabric.host.network.steering import MISS_DEVICE
from fabric.wire.inner import FiveTuple, fragment_key, parse_flow

# <linux/if_tun.h>
_TUNSETIFF = 0x400454CA
_TUNSETPERSIST = 0x400454CB
_IFF_TUN, _IFF_NO_PI = 0x0001, 0x1000
_IFREQ = "16sH22x"

# One wake-up's share: enough to drain a burst, few enough that other connections get their turn.
MAX_BURST = 64
_READ_BYTES = 65536

# Fragments of one datagram arrive within milliseconds of each other; this many datagrams in
# fragments at once is far more than hosts emit.
_REMEMBERED_FRAGMENTS = 256


class MissDevice:
    """The TUN of one host, in the namespace the opening thread stands in. A context manager.

    Persistent on purpose: when the orchestrator dies, the device, its routes and the steering on it
    stay, and established connections with them. :meth:`remove` is what takes it away.
    """

    def __init__(
        self,
        netlink: Netlink,
        *,
        addresses: Sequence[str],
        prefixes: Sequence[str],
        guest_interface: str,
        mtu: int,
        alias: str = "",
    ) -> None:
        """``addresses``: this host's overlay addresses with prefix length; ``prefixes``: the whole
        overlay; ``mtu``: bytes of inner packet that fit once encapsulated; ``alias``: ownership."""
        self._netlink = netlink
        self._addresses = addresses
        self._prefixes = prefixes
        self._guest_interface = guest_interface
        self._mtu = mtu
        self._alias = alias
        self._descriptor = -1

    def __enter__(self) -> Self:
        """Raises KernelLacks without /dev/net/tun, NotRoot, Conflict when another process reads."""
        self._descriptor = _open_tun(MISS_DEVICE)
        try:
            self._configure()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def fileno(self) -> int:
        """For the event loop: readable when packets wait."""
        return self._descriptor

    def read_burst(self) -> list[bytes]:
        """Packets that wait, at most MAX_BURST, oldest first; empty when none do."""
        packets = []
        for _ in range(MAX_BURST):
            try:
                packet = os.read(self._descriptor, _READ_BYTES)
            except (BlockingIOError, InterruptedError):
                break
            if not _is_multicast(packet):
                packets.append(packet)
        return packets

    def write(self, packet: bytes) -> bool:
        """Give a packet to this host's applications, as if it came from the overlay."""
        try:
            os.write(self._descriptor, packet)
        except OSError:
            return False  # not an IP packet, or the interface is down: lost, as packets may be
        return True

    def close(self) -> None:
        """Stop reading; the device stays. Idempotent."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def remove(self) -> None:
        """Delete the device (and the routes with it) and the overlay addresses. Idempotent."""
        self.close()
        self._netlink.delete_link(MISS_DEVICE)
        for address in self._addresses:
            self._netlink.delete_address("lo", address)

    def _configure(self) -> None:
        net = self._netlink
        for path, value in self._switches():
            net.sysctl(path, value)
        net.set_alias(MISS_DEVICE, self._alias)
        net.set_mtu(MISS_DEVICE, self._mtu)
        net.set_up("lo")
        # On lo, not on the TUN: the addresses belong to the host whatever becomes of the device.
        for address in self._addresses:
            net.add_address("lo", address)
        net.set_up(MISS_DEVICE)
        own = {ipaddress.ip_interface(address).version: address for address in self._addresses}
        for prefix in self._prefixes:
            source = own.get(ipaddress.ip_network(prefix).version)
            src = str(ipaddress.ip_interface(source).ip) if source else None
            net.add_route(prefix, dev=MISS_DEVICE, src=src)

    def _switches(self) -> Iterator[tuple[str, int]]:
        """Sysctls. A guest delivers packets of overlay sources, whose route is the miss device: any
        reverse path filter would drop them. The kernel takes the stricter of ``all`` and the
        interface, so ``all`` must go too."""
        guests = self._guest_interface
        yield "ipv4/ip_forward", 1
        for name in ("all", guests, MISS_DEVICE):
            yield f"ipv4/conf/{name}/rp_filter", 0
        for name in ("all", "lo", guests, MISS_DEVICE):
            yield f"ipv6/conf/{name}/disable_ipv6", 0
        # Nobody on the TUN listens to router solicitations or duplicate address detection.
        yield f"ipv6/conf/{MISS_DEVICE}/addr_gen_mode", 1
        yield f"ipv6/conf/{MISS_DEVICE}/router_solicitations", 0
        # A guest must not be able to change this host's routes.
        for name in (guests, MISS_DEVICE):
            yield f"ipv6/conf/{name}/accept_ra", 0
            yield f"ipv4/conf/{name}/accept_redirects", 0
            yield f"ipv6/conf/{name}/accept_redirects", 0
        # With ip_forward on, the kernel would tell guests to use each other directly.
        yield f"ipv4/conf/{guests}/send_redirects", 0


class FragmentMemory:
    """Tells the flow of any fragment, once the first one of its datagram was seen. Pure."""

    def __init__(self) -> None:
        self._flows: dict[tuple[bytes, int, int], FiveTuple] = {}

    def flow_of(self, packet: bytes) -> FiveTuple | None:
        """Like ``parse_flow``, but also for later fragments."""
        flow = parse_flow(packet)
        key = fragment_key(packet)
        if key is None:
            return flow
        if flow is None:
            return self._flows.get(key)
        self._flows.pop(key, None)  # an identification used again counts as new
        self._flows[key] = flow
        if len(self._flows) > _REMEMBERED_FRAGMENTS:
            del self._flows[next(iter(self._flows))]
        return flow


def _open_tun(name: str) -> int:
    try:
        descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError as exc:
        raise KernelLacks("/dev/net/tun does not exist", cure="modprobe tun") from exc
    except OSError as exc:
        raise translate(exc.errno or 0, "open /dev/net/tun") from exc
    try:
        request = struct.pack(_IFREQ, name.encode(), _IFF_TUN | _IFF_NO_PI)
        fcntl.ioctl(descriptor, _TUNSETIFF, request)
        fcntl.ioctl(descriptor, _TUNSETPERSIST, 1)
    except OSError as exc:
        with suppress(OSError):
            os.close(descriptor)
        raise translate(exc.errno or 0, f"attach to {name}") from exc
    return descriptor


def _is_multicast(packet: bytes) -> bool:
    """MLD reports and the like, which the kernel emits on any interface by itself."""
    if len(packet) < 20:
        return True
    if packet[0] >> 4 == 6:
        return len(packet) < 40 or packet[24] == 0xFF
    return packet[16] >= 224
