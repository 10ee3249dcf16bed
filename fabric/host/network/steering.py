"""Kernel steering: established connections go to their guests without the orchestrator.

Owns: the nftables tables ``netdev fabric``, ``ip fabric`` and ``inet fabric`` and the guests'
neighbour entries of one host. May import: errors, wire, and its neighbours in host. What guests may
send is :mod:`fabric.host.network.guard`'s.

    application ─► route ─► fabric0 ── egress hook: flow known? ──► guest, over the bridge
                                   └── no ──► TUN ─► orchestrator
    neighbour ─► prerouting: connection id known? rewrite destination ──► guest
                                   └── no ──► UDP socket of the orchestrator
    guest ─► guard: its own, to whom it may? ─► postrouting: our source ─► neighbour

Everything is stateless: connection tracking would cost per packet, and forget at the wrong time.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from fabric.errors import NameUnknown
from fabric.host.config import HostConfig
from fabric.host.network import guard
from fabric.host.network.netlink import Netlink
from fabric.host.network.nftables import Nftables
from fabric.wire.inner import FiveTuple

MISS_DEVICE = "fabric0"
"""The TUN that overlay routes lead to; its egress hook is where known flows turn off."""

_NEXT_HOP_V6 = "fe80::fab:"
_TABLES = ("netdev fabric", "ip fabric", "inet fabric")
_FLOW_MAPS = {
    (4, False): "flows4",
    (6, False): "flows6",
    (4, True): "echoes4",
    (6, True): "echoes6",
}


@dataclass(frozen=True)
class SteeringConfig:
    """What the rules of one host need to know."""

    guest_interface: str
    guest_subnet: str
    own_addresses: tuple[str, ...]
    """Overlay addresses or prefixes that end at this host."""
    overlay_prefixes: tuple[str, ...]
    underlay: Mapping[str, str]
    """Underlay interface → this host's own address on it."""
    port: int = 7704

    @classmethod
    def of(cls, config: HostConfig, underlay: Mapping[str, str]) -> SteeringConfig:
        """From the orchestrator's configuration."""
        return cls(
            guest_interface=config.guest_interface,
            guest_subnet=config.guest_subnet,
            own_addresses=tuple(
                str(ipaddress.ip_interface(a).ip) for a in config.overlay_addresses
            ),
            overlay_prefixes=config.overlay_prefixes,
            underlay=dict(underlay),
            port=config.port,
        )

    @property
    def gateway(self) -> str:
        """The host's own address on the guest subnet."""
        return self.guest_address(0)

    def guest_address(self, index: int) -> str:
        """IPv4 address of guest ``index`` (from 1); the gateway has the first of the subnet."""
        return str(ipaddress.IPv4Network(self.guest_subnet)[1 + index])

    def guest_index(self, address: str) -> int:
        """Inverse of :meth:`guest_address`."""
        first = ipaddress.IPv4Network(self.guest_subnet).network_address
        return int(ipaddress.IPv4Address(address)) - int(first) - 1


def next_hop_v6(index: int) -> str:
    """IPv6 next hop of a guest: exists only as a neighbour entry, the guest does not know it."""
    return f"{_NEXT_HOP_V6}{index:x}"


@dataclass(frozen=True)
class Entries:
    """What is steered at the moment: to which guest index."""

    flows: Mapping[FiveTuple, int]
    connections: Mapping[int, int]


class Steering(Protocol):
    """What the orchestrator asks of the kernel; all calls are idempotent."""

    def install(self) -> None:
        """Base rules of this host; entries of a former life are kept."""

    def add_guest(self, index: int, mac: str) -> None:
        """Make guest ``index`` reachable, and let it send as itself; before it is steered to."""

    def remove_guest(self, index: int) -> None:
        """Forget the guest and everything that is steered to it. Its MAC may send nothing more."""

    def admit(self, guest: int, flow: FiveTuple) -> None:
        """Let the guest deliver the answers to ``flow``, which this host's applications emit; for
        as long as there is the guest. Raises NameUnknown: it was not added."""

    def steer(self, guest: int, *, flows: Sequence[FiveTuple], connections: Sequence[int]) -> None:
        """Send these inner flows (as this host's applications emit them) and fabric connection
        ids to the guest from now on; atomic, replaces an earlier guest of theirs."""

    def unsteer(self, *, flows: Sequence[FiveTuple], connections: Sequence[int]) -> None:
        """These come to the orchestrator again."""

    def entries(self) -> Entries:
        """What is steered now. Raises NameUnknown when the rules are gone."""

    def neighbours(self) -> Mapping[int, str]:
        """Guests that are reachable: index → MAC."""

    def refused(self) -> dict[str, int]:
        """Packets of guests that were refused so far, by cause (:data:`guard.CAUSES`)."""

    def remove(self) -> None:
        """Take every rule and neighbour away."""


class NftSteering:
    """Steering by nftables maps, O(1) per packet. Calls take about 0.3 ms.

    Raises what :class:`Nftables` and :class:`Netlink` raise.
    """

    def __init__(self, config: SteeringConfig, nftables: Nftables, netlink: Netlink) -> None:
        self._config = config
        self._nftables = nftables
        self._netlink = netlink
        # Mirror of the kernel's maps: deleting what is not there fails the whole transaction, and
        # nothing else writes to our tables.
        self._flows: dict[FiveTuple, int] = {}
        self._connections: dict[int, int] = {}
        self._macs: dict[int, str] = {}
        self._granted: dict[int, set[tuple[str, str]]] = {}
        """Guest → its elements of the guard's sets."""

    def install(self) -> None:
        """Needs the miss device to exist: its egress hook hangs on it (and goes with it)."""
        self._nftables.run(ruleset(self._config))
        self.entries()
        self._read_grants()

    def add_guest(self, index: int, mac: str) -> None:
        if self._macs.get(index, mac) != mac:
            self.remove_guest(index)
        self._macs[index] = mac
        known_by = self._addresses(index, mac)
        self._netlink.add_neighbour(self._config.guest_interface, mac, *known_by)
        self._grant(index, guard.binding(mac, self._config.guest_address(index)))

    def remove_guest(self, index: int) -> None:
        self.unsteer(
            flows=[flow for flow, guest in self._flows.items() if guest == index],
            connections=[number for number, guest in self._connections.items() if guest == index],
        )
        granted, mac = self._granted.pop(index, set()), self._macs.pop(index, "")
        self._run([f"delete element netdev fabric {s} {{ {e} }}" for s, e in sorted(granted)])
        for address in self._addresses(index, mac):
            self._netlink.delete_neighbour(self._config.guest_interface, address)

    def admit(self, guest: int, flow: FiveTuple) -> None:
        if guest not in self._macs:
            raise NameUnknown(f"guest {guest} was not added")
        self._grant(guest, guard.admission(self._macs[guest], flow.reversed()))

    def steer(
        self, guest: int, *, flows: Sequence[FiveTuple] = (), connections: Sequence[int] = ()
    ) -> None:
        commands = self._deletions(flows, connections)
        v4, v6 = self._config.guest_address(guest), next_hop_v6(guest)
        for flow in flows:
            hop = v4 if flow.version == 4 else v6
            commands.append(f"add element netdev fabric {_flow_element(flow, hop)}")
        for number in connections:
            commands.append(f"add element ip fabric connections {{ {number:#x} : {v4} }}")
        self._run(commands)
        self._flows.update(dict.fromkeys(flows, guest))
        self._connections.update(dict.fromkeys(connections, guest))

    def unsteer(self, *, flows: Sequence[FiveTuple] = (), connections: Sequence[int] = ()) -> None:
        self._run(self._deletions(flows, connections))
        for flow in flows:
            self._flows.pop(flow, None)
        for number in connections:
            self._connections.pop(number, None)

    def entries(self) -> Entries:
        """Read back from the kernel; also corrects what we took for being there."""
        flows: dict[FiveTuple, int] = {}
        for (version, echo), name in _FLOW_MAPS.items():
            for key, value in self._nftables.list_map("netdev", "fabric", name):
                flows[_flow_of(version, echo, key)] = self._guest_of(value)
        found = self._nftables.list_map("ip", "fabric", "connections")
        connections = {_integer(key[0]): self._guest_of(value) for key, value in found}
        self._flows, self._connections = dict(flows), dict(connections)
        return Entries(flows, connections)

    def refused(self) -> dict[str, int]:
        found = self._nftables.list_counters("fabric")
        return {cause: found.get(f"{guard.COUNTER}{cause}", 0) for cause in guard.CAUSES}

    def neighbours(self) -> dict[int, str]:
        """Read back from the kernel; a guest of which only some is there has an empty MAC."""
        table = self._netlink.list_neighbours(self._config.guest_interface)
        subnet = ipaddress.IPv4Network(self._config.guest_subnet)
        slots = {
            self._guest_of(address)
            for address in table
            if address.startswith(_NEXT_HOP_V6)
            or (":" not in address and ipaddress.IPv4Address(address) in subnet)
        }
        bound = {self._config.guest_index(str(ip)): str(mac) for mac, ip in self._bindings()}
        return {
            slot: mac if all(table.get(a) == mac for a in self._addresses(slot, mac)) else ""
            for slot in slots | bound.keys()
            for mac in (bound.get(slot, ""),)
        }

    def _bindings(self) -> list[list[Any]]:
        try:
            return self._nftables.list_set("netdev", "fabric", "own4")
        except NameUnknown:
            return []

    def remove(self) -> None:
        for table in _TABLES:
            try:
                self._nftables.run(f"delete table {table}")
            except NameUnknown:
                continue
        self._flows.clear()
        self._connections.clear()
        self._macs.clear()
        self._granted.clear()
        interface = self._config.guest_interface
        if not self._netlink.exists(interface):
            return
        subnet = ipaddress.IPv4Network(self._config.guest_subnet)
        for address in self._netlink.list_neighbours(interface):
            ours = address.startswith("fe80::")
            if ours or (":" not in address and ipaddress.IPv4Address(address) in subnet):
                self._netlink.delete_neighbour(interface, address)

    def _deletions(self, flows: Iterable[FiveTuple], connections: Iterable[int]) -> list[str]:
        known = [flow for flow in dict.fromkeys(flows) if flow in self._flows]
        numbers = [number for number in dict.fromkeys(connections) if number in self._connections]
        return [f"delete element netdev fabric {_flow_element(flow)}" for flow in known] + [
            f"delete element ip fabric connections {{ {number:#x} }}" for number in numbers
        ]

    def _addresses(self, index: int, mac: str) -> list[str]:
        """What the host knows the guest by. It is never asked for any of them: what it would answer
        could be a lie."""
        own = [guard.link_local(mac)] if mac else []
        return [self._config.guest_address(index), next_hop_v6(index), *own]

    def _grant(self, index: int, elements: set[tuple[str, str]]) -> None:
        granted = self._granted.setdefault(index, set())
        new = sorted(elements - granted)
        self._run([f"add element netdev fabric {name} {{ {key} }}" for name, key in new])
        granted |= elements

    def _read_grants(self) -> None:
        """Learn from the kernel what guests of a former life were granted."""
        sets = {name: self._nftables.list_set("netdev", "fabric", name) for name in guard.SETS}
        guests = {str(mac): self._config.guest_index(str(ip)) for mac, ip in sets["own4"]}
        self._macs = {index: mac for mac, index in guests.items()}
        self._granted = {index: set() for index in self._macs}
        for name, keys in sets.items():
            for key in keys:
                self._granted[guests[str(key[0])]].add((name, " . ".join(map(str, key))))

    def _run(self, commands: list[str]) -> None:
        if commands:
            self._nftables.run("\n".join(commands) + "\n")

    def _guest_of(self, hop: str) -> int:
        if ":" in hop:
            return int(ipaddress.IPv6Address(hop)) & 0xFFFF
        return self._config.guest_index(hop)


def ruleset(config: SteeringConfig) -> str:
    """The base rules as one nft transaction: maps are kept, chains are replaced."""
    chains = (("netdev", "miss"), ("ip", "arrive"), ("ip", "leave"), *guard.CHAINS)
    ports = "inet_proto . inet_service . inet_service"
    declared = _DECLARATIONS.format(miss=MISS_DEVICE, ports=ports) + guard.declarations(config)
    flushes = "".join(f"flush chain {family} fabric {chain}\n" for family, chain in chains)
    return declared + flushes + _miss_rules(config) + _underlay_rules(config) + guard.rules(config)


# Declared once and empty: re-declaring is a no-op for tables, maps and chains, so that installing
# again keeps the entries and never leaves a moment without rules.
_DECLARATIONS = """
table netdev fabric {{
  map flows4 {{ type ipv4_addr . ipv4_addr . {ports} : ipv4_addr; }}
  map flows6 {{ type ipv6_addr . ipv6_addr . {ports} : ipv6_addr; }}
  map echoes4 {{ typeof ip saddr . ip daddr . icmp id : ip daddr; }}
  map echoes6 {{ typeof ip6 saddr . ip6 daddr . icmpv6 id : ip6 daddr; }}
  chain miss {{ type filter hook egress device "{miss}" priority 0; policy accept; }}
}}
table ip fabric {{
  map connections {{ typeof @th,128,64 : ip daddr; }}
  chain arrive {{ type filter hook prerouting priority raw; policy accept; }}
  chain leave {{ type filter hook postrouting priority srcnat; policy accept; }}
}}
"""


def _rules(family: str, chain: str, lines: Iterable[str]) -> str:
    return "".join(f"add rule {family} fabric {chain} {line}\n" for line in lines)


def _miss_rules(config: SteeringConfig) -> str:
    """Known flows turn off to their guest. Fragments do not: only the first has ports, so all of
    them take the slow way and stay together."""
    device = f'device "{config.guest_interface}"'
    key = "meta l4proto . th sport . th dport"
    lines = (
        "ip frag-off & 0x3fff != 0 accept",
        "exthdr frag exists accept",
        f"ip protocol {{ tcp, udp }} fwd ip to ip saddr . ip daddr . {key} map @flows4 {device}",
        f"meta l4proto {{ tcp, udp }} fwd ip6 to ip6 saddr . ip6 daddr . {key} "
        f"map @flows6 {device}",
        "icmp type { echo-request, echo-reply } "
        f"fwd ip to ip saddr . ip daddr . icmp id map @echoes4 {device}",
        "icmpv6 type { echo-request, echo-reply } "
        f"fwd ip6 to ip6 saddr . ip6 daddr . icmpv6 id map @echoes6 {device}",
    )
    return _rules("netdev", "miss", lines)


def _underlay_rules(config: SteeringConfig) -> str:
    """In by connection id, which is at bytes 8 to 15 of the UDP payload; out with our source, by
    which the next host's guest knows the interface the packet came from."""
    guests, port, subnet = config.guest_interface, config.port, config.guest_subnet
    arrive = (
        f'iifname "{guests}" notrack accept',
        # Nobody outside may address a guest directly, whatever id he writes into his packet.
        f'iifname != "lo" ip daddr {subnet} drop',
        f"udp dport {port} notrack ip daddr set @th,128,64 map @connections",
    )
    leave = [
        f'oifname "{interface}" ip saddr {subnet} udp dport {port} ip saddr set {address}'
        for interface, address in config.underlay.items()
    ]
    return _rules("ip", "arrive", arrive) + _rules("ip", "leave", leave)


def _flow_element(flow: FiveTuple, hop: str | None = None) -> str:
    """Map name and element text of a flow; without ``hop`` only the key, for deletion."""
    parts: list[object] = [flow.source, flow.destination]
    if flow.is_echo:
        parts.append(flow.source_port)
    else:
        parts += [flow.protocol, flow.source_port, flow.destination_port]
    key = " . ".join(str(part) for part in parts)
    value = f" : {hop}" if hop else ""
    return f"{_FLOW_MAPS[flow.version, flow.is_echo]} {{ {key}{value} }}"


def _flow_of(version: int, echo: bool, key: Sequence[object]) -> FiveTuple:
    source, destination = str(key[0]), str(key[1])
    if echo:
        protocol, number = (1 if version == 4 else 58), _integer(key[2])
        return FiveTuple(version, protocol, source, number, destination, number)
    protocol, sport, dport = (_integer(part) for part in key[2:5])
    return FiveTuple(version, protocol, source, sport, destination, dport)


def _integer(value: object) -> int:
    """nft prints numbers now as JSON numbers (64 bits as signed ones), now as text."""
    number = value if isinstance(value, int) else int(str(value), 0)
    return number & 0xFFFF_FFFF_FFFF_FFFF
