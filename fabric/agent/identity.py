"""Becoming nobody before a template is saved, and somebody after a copy of it wakes up.

Owns: the uplink's MAC, address, routes and neighbours, and the guest kernel's randomness. May
import: the standard library, fabric.wire, agent.rtnl, agent.ahead, agent.digest. All in process: a
subprocess costs a hundred milliseconds under emulation. Sources: netdevice(7), rtnetlink(7),
random(4).

What a copy's first packet waits for, an emulator has to translate: what counts is how much code
runs for the first time. So nobody keeps everything that is the same for all guests: the link is up,
its routes lead to the gateway every guest has (wire.contract). What is missing is a MAC, an
address, and so any way to send a frame or be sent one; besides, the host opens its bridge port to
nothing but the copy's own MAC. The first packet leaves with MAC and address that the kernel does
not have yet (:meth:`Uplink.send_ahead`); it takes them (:meth:`Uplink.assume`) before the host
hears that the guest is ready, and so sends it anything. All the rest, randomness and proof
included, comes in :meth:`Uplink.settle`, a moment later: the answer to the first packet is first.

What two copies of one template still share, because no program in the guest can change it: the
kernel command line of the guest the template was made from, address space layout, and the hash seed
of the agent's interpreter.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import socket
import time
from struct import Struct

from fabric.agent.ahead import Ahead
from fabric.agent.digest import sha256_hex
from fabric.agent.rtnl import Becoming, RouteNetlink, write_sysctl
from fabric.wire.contract import GATEWAY_MAC, GATEWAY_V4, GATEWAY_V6
from fabric.wire.control import Identified, Quiesced
from fabric.wire.packet import UNDERLAY_OVERHEAD

TYPE_CHECKING = False
if TYPE_CHECKING:
    from fabric.routing.actions import Batch
    from fabric.wire.control import Identify

SAMPLE_SIZE = 32
"""Random bytes behind :attr:`Identified.sample`: two equal ones mean equal generators."""
WALL_CLOCK_SLACK_US = 1_000_000
"""µs the guest's wall clock may be wrong before it is set."""
SCRUBBED_SHARE = 0.75
"""Of the memory that is free: what stays for the kernel keeps it from looking for a victim."""
_RANDOM_DEVICE = "/dev/urandom"
_RNDADDENTROPY, _RNDRESEEDCRNG = 0x40085203, 0x5207
_POOL_INFO = Struct("=ii")
_PAGE = 4096
USUAL_MTU = 1500
"""Bytes; of nobody's uplink (RFC 894), so that most copies find it right."""


class Uplink:
    """The guest's only interface, between two owners."""

    def __init__(self, name: str, *, ipv6: bool) -> None:
        self.name = name
        self._ipv6 = ipv6
        self._network = RouteNetlink()  # stays open: a copy need not make its sockets first
        self._ahead = Ahead(name, GATEWAY_MAC)
        self._becoming: Becoming | None = None
        self._mac = self._address = b""
        self._mtu = self._fitted = 0

    def forget(self) -> None:
        """Keep silent, have no address, know the gateway. Raises OSError, KernelLacks."""
        network, name = self._network, self.name
        # No address of its own making, and none of the packets that announce one.
        write_sysctl(f"net/ipv6/conf/{name}/addr_gen_mode", "1")
        network.set_down(name)  # routes and IPv6 addresses go with it
        network.set_up(name)
        if self._ipv6:
            network.main_route(name, socket.AF_INET6, GATEWAY_V6)
        self._fit(USUAL_MTU)
        self.release()

    def release(self) -> Quiesced:
        """Lose the address; all else is as :meth:`forget` left it. Raises OSError, KernelLacks."""
        network, name = self._network, self.name
        network.clear_address(name)
        # With an interface's last address go its routes.
        network.main_route(name, socket.AF_INET, GATEWAY_V4)
        gateways: dict[int, str] = {socket.AF_INET: GATEWAY_V4}
        if self._ipv6:
            gateways[socket.AF_INET6] = GATEWAY_V6
        self._becoming = Becoming(network, name, gateways, GATEWAY_MAC)
        self._mac = self._address = b""
        left = network.address(name)
        return Quiesced([left] if left else [])

    def accept(self, message: Identify) -> None:
        """Know who to be. Raises OSError, ValueError, RuntimeError (it is somebody)."""
        if self._becoming is None:
            raise RuntimeError("a guest that is somebody cannot become somebody else")
        mac = bytes.fromhex(message.mac.replace(":", ""))
        if len(mac) != 6:
            raise ValueError(f"{message.mac!r} is no MAC")
        self._mac, self._address, self._mtu = mac, socket.inet_aton(message.address), message.mtu

    def send_ahead(self, batches: list[Batch], port: int, hop_limit: int) -> bool:
        """Send what is one datagram of one frame; False when it is anything else, or nothing, or
        the kernel refused."""
        if (
            len(batches) != 1
            or len(batches[0]) != 1
            or batches[0].size > self._mtu - UNDERLAY_OVERHEAD
        ):
            return False
        try:
            self._ahead.send(
                batches[0], mac=self._mac, address=self._address, port=port, hop_limit=hop_limit
            )
        except OSError:
            return False
        return True

    @property
    def expected(self) -> bool:
        """An identity was accepted, and not assumed yet."""
        return self._becoming is not None and bool(self._mac)

    def assume(self) -> None:
        """Take MAC, address and MTU, if any were accepted. Raises OSError. Idempotent."""
        if self._becoming is not None and self.expected:
            self._becoming.become(self._mac, self._address)
            self._becoming = None
            self._fit(self._mtu)

    def _fit(self, mtu: int) -> None:
        if mtu != self._fitted:
            self._network.set_mtu(self.name, mtu)
            self._fitted = mtu

    def settle(self, message: Identify) -> Identified:
        """The rest of the identity, and what the kernel now has. Raises OSError, KernelLacks."""
        network, name = self._network, self.name
        stir(bytes.fromhex(message.entropy))
        network.confirm(f"becoming {message.address}")
        public = message.host_key[64:]
        return Identified(network.mac(name), network.address(name), sample(), public)


def set_wall_clock(now_us: int) -> None:
    """Set the guest's clock, for logs and SSH, when a copy woke up in the past; the agent's own
    does not depend on it. 20 ms under emulation: not before the connection is served."""
    if abs(time.time_ns() // 1000 - now_us) > WALL_CLOCK_SLACK_US:
        time.clock_settime(time.CLOCK_REALTIME, now_us / 1e6)


def stir(entropy: bytes, device: str = _RANDOM_DEVICE) -> None:
    """Credit ``entropy`` to the kernel's pool and have it reseed at once: on its own it would use
    the template's generator for up to a minute. Raises OSError."""
    fd = os.open(device, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.ioctl(fd, _RNDADDENTROPY, _POOL_INFO.pack(len(entropy) * 8, len(entropy)) + entropy)
        fcntl.ioctl(fd, _RNDRESEEDCRNG)
    finally:
        os.close(fd)


def sample() -> str:
    """Digest of fresh random bytes: shows that they differ without showing them."""
    return sha256_hex(os.urandom(SAMPLE_SIZE))


def scrub() -> None:
    """Overwrite free memory: a program that ended left its keys there, and a template is a picture
    of all memory. Zeros are holes in a template's file, too."""
    with open("/proc/meminfo") as file:  # noqa: PTH123 - pathlib costs 8 ms to import
        free_kib = next(int(line.split()[1]) for line in file if line.startswith("MemFree"))
    size = int(free_kib * 1024 * SCRUBBED_SHARE) // _PAGE * _PAGE
    if size:
        # MAP_POPULATE: the kernel hands out zeroed pages, all of them at once.
        mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE).close()
