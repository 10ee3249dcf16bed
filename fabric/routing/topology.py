"""The graph of hosts and links, with the attributes the protocols weigh.

Owns: Node, Link, Topology and their JSON form. May import: errors, routing.{definitions,graph},
stdlib. Stays on the host.

A topology may be disconnected (links fail); only the lab's file insists on being whole. Parallel
links are allowed here, because real networks have them.
"""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any

from fabric.errors import ConfigError, NameUnknown
from fabric.routing.definitions import Definition, combined
from fabric.routing.graph import Graph

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
    tags: tuple[str, ...] = ()
    """Free words that protocols may exclude."""
    region: str = ""
    load: float = 0.0
    """How busy the host is, 0 … 1."""

    def problems(self) -> Iterator[str]:
        """What is impossible about this host by itself, but for its prefixes."""
        if not 1 <= self.id <= MAX_NODE:
            yield f"id {self.id} is not in 1 … {MAX_NODE}"
        if not 0 <= self.load <= 1:
            yield f"load {self.load} is not in 0 … 1"


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
    jitter_us: int = 0
    """How much the latency varies, µs."""
    affinities: tuple[str, ...] = ()
    """Free words that protocols may include or exclude: link colours (RFC 3630, RFC 9350)."""
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
        if self.jitter_us < 0:
            yield f"jitter {self.jitter_us} µs is negative"
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
    protocols: tuple[Definition, ...] = ()
    """What this network defines itself: see :attr:`definitions`."""

    def __post_init__(self) -> None:
        problems = [*self._node_problems(), *self._link_problems(), *self._protocol_problems()]
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
            yield from (f"node {node.name}: {problem}" for problem in node.problems())
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

    def _protocol_problems(self) -> Iterator[str]:
        known = {node.id for node in self.nodes}
        for what, values in (
            ("id", [p.id for p in self.protocols]),
            ("name", [p.name for p in self.protocols]),
        ):
            for value, count in Counter(values).items():
                if count > 1:
                    yield f"protocol {what} {value} is used {count} times"
        for protocol in self.protocols:
            where = f"protocol {protocol.name}"
            yield from (f"{where}: {problem}" for problem in protocol.problems())
            named = (*protocol.exclude_hosts, *protocol.via)
            yield from (f"{where}: no node {node}" for node in named if node not in known)

    # -- reading ---------------------------------------------------------------------------------

    @cached_property
    def _by_id(self) -> dict[int, Node]:
        return {node.id: node for node in self.nodes}

    @cached_property
    def graph(self) -> Graph:
        """Nodes and links as numbers, for searches."""
        return Graph(
            [node.id for node in self.nodes],
            [(n.a, n.a_interface, n.b, n.b_interface) for n in self.links],
        )

    @cached_property
    def definitions(self) -> dict[int, Definition]:
        """All protocols by ascending id: the built-in ones, and this network's own."""
        return combined(self.protocols)

    def protocol(self, number: int) -> Definition:
        """Raises NameUnknown, listing the known ones."""
        found = self.definitions.get(number)
        if found is None:
            known = ", ".join(f"{each.id} {each.name}" for each in self.definitions.values())
            raise NameUnknown(f"no protocol {number}", cure=f"protocols: {known}")
        return found

    @cached_property
    def protocol_names(self) -> dict[int, str]:
        """Protocol id → name."""
        return {number: protocol.name for number, protocol in self.definitions.items()}

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
        """The far ends of a node's links, by node id, then interface. Raises NameUnknown."""
        self.node(node)
        graph = self.graph
        found = []
        for _, number in graph.ends[graph.index[node]]:
            n = self.links[number]
            if n.a == node:
                end = Neighbour(n.b, n.b_address, n.a_address, n.a_interface, n.mtu, n)
            else:
                end = Neighbour(n.a, n.a_address, n.b_address, n.b_interface, n.mtu, n)
            found.append(end)
        return tuple(found)

    def components(self) -> tuple[tuple[int, ...], ...]:
        """Connected components, each sorted, largest first, then by smallest node id."""
        graph = self.graph
        left = set(range(len(graph.ids)))
        found = []
        while left:
            pending, part = [min(left)], set[int]()
            while pending:
                node = pending.pop()
                if node not in part:
                    part.add(node)
                    pending.extend(far for far, _ in graph.ends[node])
            left -= part
            found.append(tuple(sorted(graph.ids[node] for node in part)))
        return tuple(sorted(found, key=lambda part: (-len(part), part)))

    def is_connected(self) -> bool:
        """Whether every node can reach every other."""
        return len(self.components()) <= 1

    # -- the same network, later -----------------------------------------------------------------

    def changed(
        self, links: Mapping[int, Link] | None = None, nodes: Mapping[int, Node] | None = None
    ) -> Topology:
        """With new attributes of some links (by position) and nodes (by id), nothing else checked.

        Ends, interfaces, ids and prefixes must be the old ones: this is for measurements, which
        come often, while a graph of a thousand hosts takes ten milliseconds to check.
        """
        links, nodes = links or {}, nodes or {}
        facts: tuple[Link | Node, ...] = (*links.values(), *nodes.values())
        problems = [problem for fact in facts for problem in fact.problems()]
        if problems:
            raise ConfigError("topology is not possible", tuple(problems))
        found = Topology.__new__(Topology)
        kept = dict(self.__dict__)
        kept["links"] = tuple(links.get(at, link) for at, link in enumerate(self.links))
        if nodes:
            kept["nodes"] = tuple(nodes.get(node.id, node) for node in self.nodes)
            kept.pop("_by_id", None)
        found.__dict__.update(kept)
        return found

    def without(self, links: Collection[int]) -> Topology:
        """With the links at these positions gone."""
        found = Topology.__new__(Topology)
        kept = {name: value for name, value in self.__dict__.items() if name != "graph"}
        kept["links"] = tuple(link for at, link in enumerate(self.links) if at not in links)
        found.__dict__.update(kept)
        return found

    # -- JSON ------------------------------------------------------------------------------------

    def to_json(self) -> dict[str, Any]:
        """Plain data; attributes at their defaults are left out."""
        document: dict[str, Any] = {
            "nodes": [{"prefixes": [], **_to_json(node, ("id", "name"))} for node in self.nodes],
            "links": [_to_json(link, ("a", "b")) for link in self.links],
        }
        if self.protocols:
            document["protocols"] = [protocol.to_json() for protocol in self.protocols]
        return document

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Topology:
        """Inverse of :meth:`to_json`. Raises ConfigError on anything malformed."""
        try:
            nodes = [Node(**_from_json(node)) for node in document["nodes"]]
            links = [Link(**_from_json(link)) for link in document["links"]]
            protocols = [Definition.from_json(known) for known in document.get("protocols", ())]
        except (KeyError, TypeError, ValueError, AttributeError) as exc:
            raise ConfigError(
                f"topology document: {type(exc).__name__} {exc}",
                cure="it is made by Topology.to_json()",
            ) from exc
        return cls(tuple(nodes), tuple(links), tuple(protocols))


def _to_json(fact: Node | Link, always: tuple[str, ...]) -> dict[str, Any]:
    document: dict[str, Any] = {}
    for attribute in fields(fact):
        value = getattr(fact, attribute.name)
        if attribute.name in always or value != attribute.default:
            document[attribute.name] = list(value) if isinstance(value, tuple) else value
    return document


def _from_json(document: Mapping[str, Any]) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in document.items()}
