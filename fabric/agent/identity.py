"""Becoming nobody before a template is saved, and somebody after a copy of it wakes up.

Owns: the uplink's MAC, address and routes, and the guest kernel's randomness. May import: the
standard library, fabric.wire.control, fabric.agent.rtnl. All in process: a subprocess costs a
hundred milliseconds under emulation. Sources: netdevice(7), random(4).

What two copies of one template still share, because no program in the guest can change it: the
kernel command line of the guest the template was made from, address space layout, the hash seed
of the agent's interpreter, and the image's SSH host key, which is pinned per build host anyway.
"""

from __future__ import annotations

import fcntl
import os
import socket
import time
from struct import Struct

from fabric.agent.rtnl import RouteNetlink
from fabric.wire.control import Identified, Quiesced

TYPE_CHECKING = False
if TYPE_CHECKING:
    from fabric.wire.control import Identify

GATEWAY_V6 = "fe80::1"
SAMPLE_SIZE = 32
"""Random bytes behind :attr:`Identified.sample`: two equal ones mean equal generators."""
WALL_CLOCK_SLACK_US = 1_000_000
"""µs the guest's wall clock may be wrong before it is set."""
NOWHERE = "0.0.0.0"
_RANDOM_DEVICE = "/dev/urandom"
_RNDADDENTROPY, _RNDRESEEDCRNG = 0x40085203, 0x5207
_POOL_INFO = Struct("=ii")


def forget(uplink: str) -> Quiesced:
    """Take the link down and every address and route off it. Raises OSError, KernelLacks."""
    with RouteNetlink() as network:
        network.set_down(uplink)  # routes and IPv6 addresses go with it
        network.set_address(uplink, NOWHERE)
        left = network.address(uplink)
    return Quiesced([left] if left else [])


def assume(message: Identify, uplink: str, *, ipv6: bool) -> Identified:
    """Stir in the host's randomness, take the identity, bring the link up; it is down before.

    The connection waits for this, so nothing is done here that could be done later. Raises OSError,
    KernelLacks, ValueError (an identity that makes no sense).
    """
    stir(bytes.fromhex(message.entropy))
    with RouteNetlink() as network:
        network.set_mac(uplink, message.mac)
        network.set_mtu(uplink, message.mtu)
        network.set_address(uplink, message.address)
        network.set_up(uplink)
        network.main_route(uplink, socket.AF_INET, message.gateway)
        if ipv6:
            network.main_route(uplink, socket.AF_INET6, GATEWAY_V6)
        mac, address = network.mac(uplink), network.address(uplink)
    return Identified(mac, address, sample())


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
    from _sha256 import sha256  # type: ignore[import-not-found]  # hashlib would load OpenSSL

    return str(sha256(os.urandom(SAMPLE_SIZE)).hexdigest())
