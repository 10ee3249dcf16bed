"""Interfaces, routes and rules of the guest, in process.

Owns: the few rtnetlink and ioctl requests the agent needs. May import: the standard library,
fabric.errors, fabric.wire.contract. A subprocess costs a hundred milliseconds under emulation; a
netlink message costs one system call.
Sources: rtnetlink(7), netlink(7), linux/fib_rules.h.
"""

from __future__ import annotations

import fcntl
import os
import socket
from struct import Struct

from fabric.errors import KernelLacks
from fabric.wire.contract import GATEWAY_V6

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType

_NLMSG, _ATTRIBUTE = Struct("=IHHII"), Struct("=HH")
_RTMSG = Struct("=BBBBBBBBI")
_ERROR = Struct("=i")
_REQUEST, _ACK, _REPLACE, _CREATE, _EXCL = 0x1, 0x4, 0x100, 0x400, 0x200
_NLMSG_ERROR = 2
_NEWADDR, _NEWROUTE, _NEWNEIGH, _NEWRULE = 20, 24, 28, 32
_IFADDRMSG = Struct("=BBBBI")
_IFA_LOCAL = 2
_RTA_OIF, _RTA_GATEWAY, _RTA_PRIORITY = 4, 5, 6
_RTNH_F_ONLINK = 4
_NDMSG = Struct("=BxxxiHBB")
_NDA_DST, _NDA_LLADDR = 1, 2
_NUD_PERMANENT = 0x80
_FRA_IIFNAME, _FRA_PRIORITY = 3, 6
_TABLE_MAIN = 254
_PROTOCOL_STATIC, _SCOPE_UNIVERSE, _SCOPE_LINK, _UNICAST = 4, 0, 253, 1
_ACTION_TO_TABLE = 1
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _SIOCSIFMTU = 0x8913, 0x8914, 0x8922
_SIOCGIFADDR, _SIOCSIFADDR = 0x8915, 0x8916
_SIOCSIFHWADDR, _SIOCGIFHWADDR = 0x8924, 0x8927
_IFREQ_FLAGS, _IFREQ_INT = Struct("16sH22x"), Struct("16si20x")
_IFREQ_ADDRESS, _IFREQ_MAC = Struct("16sHH4s16x"), Struct("16sH6s16x")
_ARPHRD_ETHER = 1
_IFF_UP = 1


class RouteNetlink:
    """A netlink route socket. Use as a context manager."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
        self._ioctl = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)

    def __enter__(self) -> RouteNetlink:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._socket.close()
        self._ioctl.close()

    def set_up(self, name: str) -> None:
        """Bring an interface up. Raises KernelLacks."""
        request = _IFREQ_FLAGS.pack(name.encode(), 0)
        flags = _IFREQ_FLAGS.unpack(fcntl.ioctl(self._ioctl, _SIOCGIFFLAGS, request))[1]
        fcntl.ioctl(self._ioctl, _SIOCSIFFLAGS, _IFREQ_FLAGS.pack(name.encode(), flags | _IFF_UP))

    def set_down(self, name: str) -> None:
        """Take an interface down. Raises OSError."""
        request = _IFREQ_FLAGS.pack(name.encode(), 0)
        flags = _IFREQ_FLAGS.unpack(fcntl.ioctl(self._ioctl, _SIOCGIFFLAGS, request))[1]
        fcntl.ioctl(self._ioctl, _SIOCSIFFLAGS, _IFREQ_FLAGS.pack(name.encode(), flags & ~_IFF_UP))

    def mac(self, name: str) -> str:
        """An interface's MAC, colon form. Raises OSError."""
        request = _IFREQ_MAC.pack(name.encode(), 0, bytes(6))
        octets: bytes = _IFREQ_MAC.unpack(fcntl.ioctl(self._ioctl, _SIOCGIFHWADDR, request))[2]
        return octets.hex(":")

    def clear_address(self, name: str) -> None:
        """Take the IPv4 address off an interface, if it has one. Raises OSError."""
        nothing = _IFREQ_ADDRESS.pack(name.encode(), socket.AF_INET, 0, bytes(4))
        fcntl.ioctl(self._ioctl, _SIOCSIFADDR, nothing)

    def address(self, name: str) -> str:
        """An interface's first IPv4 address, empty when it has none."""
        request = _IFREQ_ADDRESS.pack(name.encode(), socket.AF_INET, 0, bytes(4))
        try:
            answer = fcntl.ioctl(self._ioctl, _SIOCGIFADDR, request)
        except OSError:  # EADDRNOTAVAIL
            return ""
        return socket.inet_ntoa(_IFREQ_ADDRESS.unpack(answer)[3])

    def main_route(self, name: str, family: int, gateway: str) -> None:
        """Default route of what leaves the guest. Raises KernelLacks."""
        self.default_route(name, family, _TABLE_MAIN, gateway)

    def set_mtu(self, name: str, mtu: int) -> None:
        """Set an interface's MTU, bytes."""
        fcntl.ioctl(self._ioctl, _SIOCSIFMTU, _IFREQ_INT.pack(name.encode(), mtu))

    def default_route(self, name: str, family: int, table: int, gateway: str = "") -> None:
        """Default route into ``name``, replacing an equal one. Raises KernelLacks."""
        attributes = _attribute(_RTA_OIF, socket.if_nametoindex(name).to_bytes(4, "little"))
        if gateway:
            attributes += _attribute(_RTA_GATEWAY, socket.inet_pton(family, gateway))
        scope = _SCOPE_UNIVERSE if gateway or family == socket.AF_INET6 else _SCOPE_LINK
        # "On link": the kernel need not find the gateway in a prefix of the interface's first.
        flags = _RTNH_F_ONLINK if gateway else 0
        body = _RTMSG.pack(family, 0, 0, 0, table, _PROTOCOL_STATIC, scope, _UNICAST, flags)
        self._request(_NEWROUTE, _CREATE | _REPLACE, body + attributes, f"route into {name}")

    def send(self, mac_request: bytearray, batch: bytearray) -> None:
        """For :class:`Becoming`: the kernel answers only what it refuses. Raises OSError."""
        fcntl.ioctl(self._ioctl, _SIOCSIFHWADDR, mac_request)
        self._socket.send(batch)

    def confirm(self, what: str) -> None:
        """Whether anything sent without asking for an answer was refused. Raises KernelLacks."""
        try:
            answer = self._socket.recv(4096, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        _raise_refusal(answer, what)

    def rule_from_interface(self, name: str, family: int, table: int, priority: int) -> None:
        """Packets that arrive on ``name`` use ``table``; an equal rule may exist already."""
        body = _RTMSG.pack(family, 0, 0, 0, table, 0, 0, _ACTION_TO_TABLE, 0)
        attributes = _attribute(_FRA_IIFNAME, name.encode() + b"\0")
        attributes += _attribute(_FRA_PRIORITY, priority.to_bytes(4, "little"))
        try:
            self._request(_NEWRULE, _CREATE | _EXCL, body + attributes, f"rule for {name}")
        except KernelLacks as exc:
            if not isinstance(exc.__cause__, FileExistsError):
                raise

    def _request(self, kind: int, flags: int, body: bytes, what: str) -> None:
        self._socket.send(_message(kind, flags | _ACK, body))
        _raise_refusal(self._socket.recv(4096), what)


class Becoming:
    """The two requests that make an uplink somebody's, with holes for MAC and address.

    Everything else about them is done before: one ioctl and one send, whose success nobody waits
    for (the caller looks at the result later). A change of the interface's MAC makes the kernel
    forget its neighbours, so those come along.
    """

    def __init__(
        self, network: RouteNetlink, name: str, gateways: dict[int, str], gateway_mac: str
    ) -> None:
        """``gateways``: neighbours to know, by address family."""
        self._network = network
        index = socket.if_nametoindex(name)
        self._mac = bytearray(_IFREQ_MAC.pack(name.encode(), _ARPHRD_ETHER, bytes(6)))
        body = _IFADDRMSG.pack(socket.AF_INET, 32, 0, _SCOPE_UNIVERSE, index)
        self._batch = bytearray()
        for family, gateway in gateways.items():
            kind, flags, neighbour, _ = _neighbour(index, family, gateway, gateway_mac)
            self._batch += _message(kind, flags, neighbour)
        # The address is the last of it.
        self._batch += _message(_NEWADDR, _CREATE, body + _attribute(_IFA_LOCAL, bytes(4)))

    def become(self, mac: bytes, address: bytes) -> None:
        """Take 6 octets of MAC and 4 of address. Raises OSError."""
        self._mac[18:24] = mac
        self._batch[-4:] = address
        self._network.send(self._mac, self._batch)


def _raise_refusal(answer: bytes, what: str) -> None:
    code = _ERROR.unpack_from(answer, _NLMSG.size)[0]
    if code:
        reason = OSError(-code, os.strerror(-code))
        raise KernelLacks(f"guest network: {what}: {reason.strerror}") from reason


def _neighbour(index: int, family: int, address: str, mac: str) -> tuple[int, int, bytes, str]:
    body = _NDMSG.pack(family, index, _NUD_PERMANENT, 0, 0)
    body += _attribute(_NDA_DST, socket.inet_pton(family, address))
    body += _attribute(_NDA_LLADDR, bytes.fromhex(mac.replace(":", "")))
    return _NEWNEIGH, _CREATE | _REPLACE, body, f"neighbour {address}"


def _message(kind: int, flags: int, body: bytes) -> bytes:
    return _NLMSG.pack(_NLMSG.size + len(body), kind, flags | _REQUEST, 1, 0) + body


def _attribute(kind: int, value: bytes) -> bytes:
    length = _ATTRIBUTE.size + len(value)
    return _ATTRIBUTE.pack(length, kind) + value + bytes(-length % 4)


def write_sysctl(path: str, value: str) -> bool:
    """Write /proc/sys/``path``; False when the kernel has no such knob (IPv6 switched off)."""
    try:
        with open(f"/proc/sys/{path}", "w") as file:  # noqa: PTH123 - pathlib costs 8 ms to import
            file.write(value)
    except OSError:
        return False
    return True


def prepare_guest(tun: str, uplink: str, gateway6: str = GATEWAY_V6) -> bool:
    """Lead everything that is not for the guest itself from ``uplink`` into ``tun``; what comes out
    of ``tun`` takes the default route. Returns whether IPv6 works. Raises KernelLacks."""
    for path in (
        "ip_forward",
        "conf/all/rp_filter",
        *(f"conf/{n}/rp_filter" for n in (uplink, tun)),
    ):
        write_sysctl(f"net/ipv4/{path}", "1" if path == "ip_forward" else "0")
    write_sysctl(f"net/ipv6/conf/{tun}/addr_gen_mode", "1")  # no router solicitations into the TUN
    ipv6 = write_sysctl("net/ipv6/conf/all/forwarding", "1")
    with RouteNetlink() as network:
        network.set_up(tun)
        families = (socket.AF_INET, socket.AF_INET6) if ipv6 else (socket.AF_INET,)
        for family in families:
            network.default_route(tun, family, OVERLAY_TABLE)
            network.rule_from_interface(uplink, family, OVERLAY_TABLE, OVERLAY_PRIORITY)
        if ipv6:
            network.main_route(uplink, socket.AF_INET6, gateway6)
    return ipv6


OVERLAY_TABLE = 100
"""Routing table of packets that arrive from the host."""
OVERLAY_PRIORITY = 100
"""Of the rule: behind the local table (0), before main (32766)."""
