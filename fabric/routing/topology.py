"""The graph of hosts and links, with the attributes the protocols weigh.

Owns: Node, Link, Topology and their JSON form. May import: errors, stdlib. Stays on the host.

A topology may be disconnected (links fail); only the lab's file insists on being whole. Parallel
links are allowed here, because real networks have them.
"""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any

from fabric.errors import ConfigError, NameUnknown

MAX_NODE = (1 << 32) - 1
"""Node ids are four bytes on the wire; 0 is nobody."""
MAX_INTERFACE = (1 << 16) - 1
"""Interface ids are two bytes in a hop record; 0 means none."""
MAX_COST = (1 << 24) - 1
"""As in IS-IS wide metrics (RFC 5305); path sums stay below 2^48 on 2^24 hops."""


@dataclass(frozen=True)
class Node:
    """One host."""

    id: int
    name: str
    prefixes: tuple[str, ...] = ()
    """Overlay prefixes this host answers for."""


@dataclass(frozen=True)
class Link:
    """One link; its attributes hold in both directions."""

    a: int
    b: int
    cost: int = 1
    latency_us: int = 0
    """One way, µs."""
    bandwidth_bps: int = 0
    """Bits per second; 0 is unlimited."""
    loss: float = 0.0
    """Probability that a packet is lost, 0 … below 1."""
    mtu: int = 1500
    """Largest IP packet, bytes."""
    a_address: str = ""
    """Underlay IPv4 address of ``a`` on this link."""
    b_address: str = ""
    a_interface: int = 1
    """Interface id of this link at ``a``, unique per node."""
    b_interface: int = 1

    def problems(self) -> Iterator[str]:
        """What is impossible about this link by itself."""
        if self.a == self.b:
            yield "both ends are the same node"
        if not 1 <= self.cost <= MAX_COST:
            # Zero-cost links would allow equal-cost sets that point at each other.
            yield f"cost {self.cost} is not in 1 … {MAX_COST}"
        if self.latency_us < 0:
            yield f"latency {self.latency_us} µs is negative"
        if self.bandwidth_bps < 0:
            yield f"bandwidth {self.bandwidth_bps} bit/s is negative"
        if not 0 <= self.loss < 1:
            yield f"loss {self.loss} is not in 0 … 1 (1 itself excluded: that is no link)"
        for interface in (self.a_interface, self.b_interface):
            if not 1 <= interface <= MAX_INTERFACE:
                yield f"interface id {interface} is not in 1 … {MAX_INTERFACE}"


@dataclass(frozen=True)
class Neighbour:
    """The far end of one of a node's links, seen from that node."""

    node: int
    address: str
    """The neighbour's underlay address."""
    local_address: str
    interface: int
    """The near node's interface id."""
    mtu: int
    link: Link = field(repr=False)


@dataclass(frozen=True)
class Topology:
    """Immutable graph. Construction raises ConfigError listing everything impossible about it."""

    nodes: tuple[Node, ...]
    links: tuple[Link, ...]

    def __post_init__(self) -> None:
        problems = [*self._node_problems(), *self._link_problems()]
        if problems:
            raise ConfigError("topology is not possible", tuple(problems))

    def _node_problems(self) -> Iterator[str]:
        for what, values in (
            ("node id", [n.id for n in self.nodes]),
            ("name", [n.name for n in self.nodes]),
        ):
            for value, count in Counter(values).items():
                if count > 1:
                    yield f"{what} {value} is used {count} times"
        for node in self.nodes:
            if not 1 <= node.id <= MAX_NODE:
                yield f"node {node.name}: id {node.id} is not in 1 … {MAX_NODE}"
            for prefix in node.prefixes:
                try:
                    ipaddress.ip_network(prefix)
                except ValueError as exc:
                    yield f"node {node.name}: prefix {exc}"

    def _link_problems(self) -> Iterator[str]:
        known = {node.id for node in self.nodes}
        interfaces: Counter[tuple[int, int]] = Counter()
        for number, link in enumerate(self.links):
            where = f"links[{number}] ({link.a}-{link.b})"
            yield from (f"{where}: {problem}" for problem in link.problems())
            yield from (f"{where}: no node {end}" for end in (link.a, link.b) if end not in known)
            interfaces.update([(link.a, link.a_interface), (link.b, link.b_interface)])
        for (node, interface), count in interfaces.items():
            if count > 1:
                yield f"node {node}: interface id {interface} is on {count} links"

    # -- reading ---------------------------------------------------------------------------------

    @cached_property
    def _by_id(self) -> dict[int, Node]:
        return {node.id: node for node in self.nodes}

    @cached_property
    def adjacency(self) -> dict[int, tuple[Neighbour, ...]]:
        """Every node's neighbours, ordered by node id, then interface."""
        found: dict[int, list[Neighbour]] = {node.id: [] for node in self.nodes}
        for n in self.links:
            found[n.a].append(Neighbour(n.b, n.b_address, n.a_address, n.a_interface, n.mtu, n))
            found[n.b].append(Neighbour(n.a, n.a_address, n.b_address, n.b_interface, n.mtu, n))
        return {
            node: tuple(sorted(ends, key=lambda end: (end.node, end.interface)))
            for node, ends in found.items()
        }

    @cached_property
    def _owners(self) -> list[tuple[int, int, dict[int, int]]]:
        """(version, prefix length, network as integer → node), longest prefixes first."""
        tables: dict[tuple[int, int], dict[int, int]] = {}
        for node in self.nodes:
            for prefix in node.prefixes:
                network = ipaddress.ip_network(prefix)
                table = tables.setdefault((network.version, network.prefixlen), {})
                table.setdefault(int(network.network_address), node.id)
        ordered = sorted(tables.items(), key=lambda item: -item[0][1])
        return [(version, length, table) for (version, length), table in ordered]

    def node(self, node: int) -> Node:
        """Raises NameUnknown for a node that does not exist."""
        try:
            return self._by_id[node]
        except KeyError:
            raise NameUnknown(f"the topology has no node {node}") from None

    def name_of(self, node: int) -> str:
        """The host's name; a node that is not there (packets may name one) gives its number."""
        found = self._by_id.get(node)
        return found.name if found else str(node)

    def by_name(self, name: str) -> Node:
        """Raises NameUnknown, listing the known names."""
        for node in self.nodes:
            if node.name == name:
                return node
        known = ", ".join(node.name for node in self.nodes)
        raise NameUnknown(f"no host {name!r} in the topology", cure=f"hosts: {known}")

    def node_for(self, address: str) -> int | None:
        """The node whose prefix covers ``address``, longest match; None when nobody's does."""
        try:
            parsed = ipaddress.ip_address(address)
        except ValueError:
            return None
        value, bits = int(parsed), parsed.max_prefixlen
        for version, length, table in self._owners:
            if version == parsed.version:
                owner = table.get(value >> (bits - length) << (bits - length))
                if owner is not None:
                    return owner
        return None

    def neighbours(self, node: int) -> tuple[Neighbour, ...]:
        """The far ends of a node's links. Raises NameUnknown."""
        self.node(node)
        return self.adjacency[node]

    def components(self) -> tuple[tuple[int, ...], ...]:
        """Connected components, each sorted, largest first, then by smallest node id."""
        left = {node.id for node in self.nodes}
        found = []
        while left:
            pending, part = [min(left)], set[int]()
            while pending:
                node = pending.pop()
                if node not in part:
                    part.add(node)
                    pending.extend(end.node for end in self.adjacency[node])
            left -= part
            found.append(tuple(sorted(part)))
        return tuple(sorted(found, key=lambda part: (-len(part), part)))

    def is_connected(self) -> bool:
        """Whether every node can reach every other."""
        return len(self.components()) <= 1

    # -- JSON ------------------------------------------------------------------------------------

    def to_json(self) -> dict[str, Any]:
        """Plain data; link attributes at their defaults are left out."""
        return {
            "nodes": [
                {"id": n.id, "name": n.name, "prefixes": list(n.prefixes)} for n in self.nodes
            ],
            "links": [_link_to_json(link) for link in self.links],
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Topology:
        """Inverse of :meth:`to_json`. Raises ConfigError on anything malformed."""
        try:
            nodes = [
                Node(int(n["id"]), str(n["name"]), tuple(n.get("prefixes", ())))
                for n in document["nodes"]
            ]
            links = [Link(**link) for link in document["links"]]
        except (KeyError, TypeError, ValueError, AttributeError) as exc:
            raise ConfigError(
                f"topology document: {type(exc).__name__} {exc}",
                cure="it is made by Topology.to_json()",
            ) from exc
        return cls(tuple(nodes), tuple(links))


def _link_to_json(link: Link) -> dict[str, Any]:
    values = {attribute.name: getattr(link, attribute.name) for attribute in fields(Link)}
    defaults = {attribute.name: attribute.default for attribute in fields(Link)}
    return {
        name: value for name, value in values.items() if name in "ab" or value != defaults[name]
    }
