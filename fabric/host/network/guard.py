"""What a guest may send: the nftables rules and set elements behind it.

Owns: the text of sets, chains and elements; running them is :mod:`fabric.host.network.steering`'s.
May import: wire. Pure.

    guest ─► its bridge port (only its MAC, see bridge_ports) ─► guest interface of the host
          ─► ingress hook: which guest is it? own address, or a packet of its own connection?
          ─► input or forward hook: is it for somebody a guest may speak to?

A guest is known by its MAC, which its port vouches for. Each question is one look-up in a hash set,
whatever the number of guests. What is refused is counted by cause (:data:`CAUSES`).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from typing import TYPE_CHECKING

from fabric.wire.contract import GATEWAY_V6
from fabric.wire.inner import FiveTuple

if TYPE_CHECKING:
    from fabric.host.network.steering import SteeringConfig

OWN_SETS = {4: "own4", 6: "own6"}
SETS = (*OWN_SETS.values(), "peers4", "peers6", "ports", "echoes")
"""Every set has the guest's MAC first in its key."""

SIZE = 4096
"""Elements of each set at most: a bridge has 1022 guests, with one connection each. A size that is
known makes the kernel use its faster kind of hash."""

CAUSES = {
    "ethertype": "neither IPv4, IPv6 nor ARP",
    "arp": "ARP that claims another's address, or asks for any but the gateway's",
    "nd": "neighbour discovery that claims another's address, or asks for any but the gateway's",
    "address": "a source address that is not the guest's own",
    "delivery": "an inner packet that is not of the guest's own connection",
    "host": "something of the host a guest has no business with",
    "outside": "a destination beyond the host that is no neighbour's orchestrator",
}
"""Cause of a refusal → what the guest tried. An honest guest causes none."""

_TABLES = {"host": "inet", "outside": "inet"}
"""Family of the table that counts a cause, where it is not netdev."""

COUNTER = "refused_"
"""Before the cause in a counter's name: ``arp`` alone is a word of nft's."""


def declarations(config: SteeringConfig) -> str:
    """Sets, counters and chains, declared anew without losing what is in them."""
    guests = config.guest_interface
    counters = {
        family: "\n".join(f"  counter {COUNTER}{c} {{ }}" for c in CAUSES if _family(c) == family)
        for family in ("netdev", "inet")
    }
    return f"""
table netdev fabric {{
  set own4 {{ type ether_addr . ipv4_addr; size {SIZE}; }}
  set own6 {{ type ether_addr . ipv6_addr; size {SIZE}; }}
  set peers4 {{ type ether_addr . ipv4_addr . ipv4_addr; size {SIZE}; }}
  set peers6 {{ type ether_addr . ipv6_addr . ipv6_addr; size {SIZE}; }}
  set ports {{ type ether_addr . inet_proto . inet_service . inet_service; size {SIZE}; }}
  set echoes {{ typeof ether saddr . icmp id; size {SIZE}; }}
{counters["netdev"]}
  chain delivery {{ }}
  chain guest4 {{ }}
  chain guest6 {{ }}
  chain guest_arp {{ }}
  chain guests {{ type filter hook ingress device "{guests}" priority 0; policy drop; }}
}}
table inet fabric {{
{counters["inet"]}
  chain forward {{ type filter hook forward priority filter; policy accept; }}
  chain input {{ type filter hook input priority filter; policy accept; }}
}}
"""


CHAINS = (
    *(("netdev", name) for name in ("guests", "guest_arp", "guest4", "guest6", "delivery")),
    ("inet", "forward"),
    ("inet", "input"),
)
"""Chains that :func:`declarations` declares: to be emptied before :func:`rules` fills them."""


def rules(config: SteeringConfig) -> str:
    """The rules of all :data:`CHAINS`."""
    return (
        _chain("netdev", "guests", _ingress())
        + _chain("netdev", "guest_arp", _arp(config))
        + _chain("netdev", "guest4", _ipv4(config))
        + _chain("netdev", "guest6", _ipv6(config))
        + _chain("netdev", "delivery", _delivery())
        + _chain("inet", "forward", _forward(config))
        + _chain("inet", "input", _input(config))
    )


def binding(mac: str, address: str) -> set[tuple[str, str]]:
    """(set, element) pairs by which the guest with this MAC may send from its own addresses."""
    return {("own4", f"{mac} . {address}"), ("own6", f"{mac} . {link_local(mac)}")}


def admission(mac: str, flow: FiveTuple) -> set[tuple[str, str]]:
    """(set, element) pairs by which the guest may deliver ``flow``, an incoming one.

    Two sets and not one: a key of MAC, both addresses, protocol and both ports is more than nft can
    name. A guest serves one connection, so together they say the same.
    """
    peers = (f"peers{flow.version}", f"{mac} . {flow.source} . {flow.destination}")
    if flow.is_echo:
        return {peers, ("echoes", f"{mac} . {flow.source_port}")}
    ports = f"{mac} . {flow.protocol} . {flow.source_port} . {flow.destination_port}"
    return {peers, ("ports", ports)}


def link_local(mac: str) -> str:
    """The IPv6 address the guest's kernel gives itself (RFC 4291, appendix A: modified EUI-64)."""
    octets = bytes.fromhex(mac.replace(":", ""))
    identifier = bytes((octets[0] ^ 0x02,)) + octets[1:3] + b"\xff\xfe" + octets[3:]
    return str(ipaddress.IPv6Address(b"\xfe\x80" + bytes(6) + identifier))


def _family(cause: str) -> str:
    return _TABLES.get(cause, "netdev")


def _refuse(cause: str) -> str:
    return f"counter name {COUNTER}{cause} drop"


def _chain(family: str, chain: str, lines: Iterable[str]) -> str:
    return "".join(f"add rule {family} fabric {chain} {line}\n" for line in lines)


def _ingress() -> Iterable[str]:
    # Three comparisons cost less than a look-up in a map.
    for protocol, chain in (("ip", "guest4"), ("ip6", "guest6"), ("arp", "guest_arp")):
        yield f"meta protocol {protocol} goto {chain}"
    yield _refuse("ethertype")


def _arp(config: SteeringConfig) -> Iterable[str]:
    """Requests only: the host has its guests as permanent neighbours and never asks them."""
    yield (
        f"arp htype 1 arp ptype ip arp operation request arp daddr ip {config.gateway} "
        "ether saddr . arp saddr ip @own4 arp saddr ether . arp saddr ip @own4 accept"
    )
    yield _refuse("arp")


def _ipv4(config: SteeringConfig) -> Iterable[str]:
    yield f"ip saddr {config.guest_subnet} ether saddr . ip saddr @own4 accept"
    yield "ether saddr . ip saddr . ip daddr @peers4 goto delivery"
    yield from _foreign(config, "ip", 4)


def _ipv6(config: SteeringConfig) -> Iterable[str]:
    # Bits 64 to 191 of a solicitation are the address it asks for (RFC 4861, section 4.3). What it
    # says of the sender's MAC does not matter: the host's entry for the guest is permanent.
    target = f"{int(ipaddress.IPv6Address(GATEWAY_V6)):#x}"
    yield (
        f"icmpv6 type nd-neighbor-solicit @th,64,128 {target} ether saddr . ip6 saddr @own6 accept"
    )
    yield (
        "icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert, nd-router-solicit, "
        f"nd-router-advert, nd-redirect }} {_refuse('nd')}"
    )
    # Every kernel reports its multicast groups when a link comes up: no offence, and no use.
    yield "ip6 daddr ff00::/8 drop"
    yield "ip6 saddr fe80::/10 ether saddr . ip6 saddr @own6 accept"
    yield "ether saddr . ip6 saddr . ip6 daddr @peers6 goto delivery"
    yield from _foreign(config, "ip6", 6)


def _foreign(config: SteeringConfig, family: str, version: int) -> Iterable[str]:
    if overlay := _of_version(config.overlay_prefixes, version):
        yield f"{family} saddr {overlay} {_refuse('delivery')}"
    yield _refuse("address")


def _delivery() -> Iterable[str]:
    """Between the two addresses of the guest's connection: the ports must be its own, too. Later
    fragments have none; without the first one, which has, nobody puts them together."""
    # Protocols without ports are not in the set, whatever stands in their place.
    yield "ether saddr . meta l4proto . th sport . th dport @ports accept"
    yield "icmp type { echo-request, echo-reply } ether saddr . icmp id @echoes accept"
    yield "icmpv6 type { echo-request, echo-reply } ether saddr . icmpv6 id @echoes accept"
    yield "icmp type { destination-unreachable, time-exceeded, parameter-problem } accept"
    yield (
        "icmpv6 type { destination-unreachable, packet-too-big, time-exceeded, "
        "parameter-problem } accept"
    )
    yield "ip frag-off & 0x1fff != 0 accept"
    yield "frag frag-off != 0 accept"
    yield _refuse("delivery")


def _forward(config: SteeringConfig) -> Iterable[str]:
    """Fabric packets between guests and neighbours, never between guests; nothing else."""
    guests, port, subnet = config.guest_interface, config.port, config.guest_subnet
    if config.underlay:
        underlay = ", ".join(f'"{name}"' for name in config.underlay)
        yield (
            f'iifname "{guests}" oifname {{ {underlay} }} ip saddr {subnet} '
            f"udp sport {port} udp dport {port} accept"
        )
    yield from _to_this_host(config)
    yield f'iifname "{guests}" {_refuse("outside")}'
    yield f'oifname "{guests}" udp dport {port} ip daddr {subnet} accept'
    yield f'oifname "{guests}" drop'


def _input(config: SteeringConfig) -> Iterable[str]:
    """Inner packets, and answers to what the host itself asks of its guests."""
    yield from _to_this_host(config)
    gateway = f"ip daddr {config.gateway}"
    for answer in (
        f"{gateway} tcp sport 22 tcp flags & (syn | ack) != syn accept",
        f"{gateway} icmp type {{ echo-reply, destination-unreachable }} accept",
        "icmpv6 type nd-neighbor-solicit accept",
        f"ip6 daddr {GATEWAY_V6} icmpv6 type {{ echo-reply, destination-unreachable }} accept",
        _refuse("host"),
    ):
        yield f'iifname "{config.guest_interface}" {answer}'


def _to_this_host(config: SteeringConfig) -> Iterable[str]:
    """Inner packets: from the overlay, to what of it ends here."""
    for family, version in (("ip", 4), ("ip6", 6)):
        ours = _of_version(config.own_addresses, version)
        overlay = _of_version(config.overlay_prefixes, version)
        if ours and overlay:
            yield (
                f'iifname "{config.guest_interface}" {family} saddr {overlay} '
                f"{family} daddr {ours} accept"
            )


def _of_version(prefixes: Iterable[str], version: int) -> str:
    """Those of one IP version as an anonymous set; empty when there are none."""
    found = [p for p in prefixes if ipaddress.ip_network(p).version == version]
    return f"{{ {', '.join(found)} }}" if found else ""
