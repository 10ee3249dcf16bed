"""What the kernel says of one network interface.

Owns: LinkInfo and Traffic, and reading them out of rtnetlink messages. May import: nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

_IFF_UP = 0x1
_IFF_LOWER_UP = 0x10000


@dataclass(frozen=True)
class LinkInfo:
    """One network interface as the kernel sees it."""

    name: str
    index: int
    alias: str
    """``fabric:<lab>:<host>`` on links of ours."""
    kind: str
    """``bridge``, ``veth``, ``tun`` …; empty for physical interfaces and lo."""
    master: str | None
    mtu: int
    up: bool
    mac: str


@dataclass(frozen=True)
class Traffic:
    """What went through an interface since it was made."""

    carrier: bool
    """Up, and something is at the other end."""
    sent_packets: int
    sent_bytes: int
    received_packets: int
    received_bytes: int


def link_info(link: Any, names: dict[int, str]) -> LinkInfo:
    """From an rtnetlink message; ``names``: of interfaces, by index."""
    details = link.get_attr("IFLA_LINKINFO")
    return LinkInfo(
        name=link.get_attr("IFLA_IFNAME"),
        index=link["index"],
        alias=link.get_attr("IFLA_IFALIAS") or "",
        kind=(details.get_attr("IFLA_INFO_KIND") or "") if details else "",
        master=names.get(link.get_attr("IFLA_MASTER") or 0),
        mtu=link.get_attr("IFLA_MTU"),
        up=bool(link["flags"] & _IFF_UP),
        mac=link.get_attr("IFLA_ADDRESS") or "",
    )


def link_traffic(link: Any) -> Traffic:
    """From an rtnetlink message."""
    counted = link.get_attr("IFLA_STATS64")
    return Traffic(
        carrier=bool(link["flags"] & _IFF_LOWER_UP),
        sent_packets=counted["tx_packets"],
        sent_bytes=counted["tx_bytes"],
        received_packets=counted["rx_packets"],
        received_bytes=counted["rx_bytes"],
    )
