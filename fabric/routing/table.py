"""The forwarding table of one host: (destination, protocol) → next hops.

Owns: the table and its compact form. May import: fabric.errors, fabric.wire.fact (it runs in the
guest).

The compact form (JSON) lists every distinct next hop once; a route is its metric and the positions
of its hops in that list:
``{"node": 1, "version": 7, "hops": [[2, "172.31.0.1", 1, 9000]],
"routes": {"0": {"4": [20, 0]}}}``.
A guest serves one connection, so it turns only the few routes it looks up into objects.
"""

from __future__ import annotations

from fabric.errors import ConfigError
from fabric.wire.fact import Fact

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class NextHop(Fact):
    """One way on from this host."""

    node: int
    address: str
    """The neighbour's underlay IPv4 address on the shared link."""
    interface: int
    """This host's interface id on that link."""
    mtu: int
    """MTU of that link, bytes."""
    metric: int
    """What the whole path to the destination is worth, in the unit of the protocol."""


class ForwardingTable:
    """Immutable; a changed topology makes a new one with another version."""

    __slots__ = ("_document", "_found", "_hops", "_routes", "node", "version")

    def __init__(
        self, node: int, version: int, entries: dict[tuple[int, int], tuple[NextHop, ...]]
    ) -> None:
        """``version``: 32 bits, written into every hop record; ``entries``: (destination,
        protocol) → next hops, all of equal metric."""
        self._load(_compact(node, version, entries))

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> ForwardingTable:
        """Inverse of :meth:`to_json`, without looking at the routes.

        Raises ConfigError on missing parts.
        """
        table = cls.__new__(cls)
        try:
            table._load(document)
        except (KeyError, TypeError, ValueError) as exc:
            raise ConfigError(
                f"forwarding table: {type(exc).__name__} {exc}",
                cure="send what ForwardingTable.to_json() gave",
            ) from exc
        return table

    def _load(self, document: dict[str, Any]) -> None:
        self._document = document
        self.node = int(document["node"])
        self.version = int(document["version"])
        self._hops: list[list[Any]] = document["hops"]
        self._routes: dict[str, dict[str, list[int]]] = document["routes"]
        self._found: dict[tuple[int, int], tuple[NextHop, ...]] = {}

    def to_json(self) -> dict[str, Any]:
        """The compact form. Callers must not change it."""
        return self._document

    def lookup(self, destination: int, protocol: int) -> tuple[NextHop, ...]:
        """Equal-cost next hops ordered by node id and interface; empty when there is no way."""
        key = (destination, protocol)
        found = self._found.get(key)
        if found is None:
            route = self._routes.get(str(protocol), {}).get(str(destination))
            found = () if route is None else self._expand(route)
            self._found[key] = found
        return found

    def _expand(self, route: list[int]) -> tuple[NextHop, ...]:
        metric, *positions = route
        hops = (self._hops[position] for position in positions)
        return tuple(NextHop(node, to, out, mtu, metric) for node, to, out, mtu in hops)

    @property
    def entries(self) -> dict[tuple[int, int], tuple[NextHop, ...]]:
        """Everything, keyed (destination, protocol). For people: it expands every route."""
        return {
            (int(destination), int(protocol)): self.lookup(int(destination), int(protocol))
            for protocol, routes in self._routes.items()
            for destination in routes
        }

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, ForwardingTable)
            and (self.node, self.version) == (other.node, other.version)
            and self.entries == other.entries
        )

    def __hash__(self) -> int:
        return hash((self.node, self.version))

    def __repr__(self) -> str:
        routes = sum(map(len, self._routes.values()))
        return f"ForwardingTable(node={self.node}, version={self.version}, {routes} routes)"


def _compact(
    node: int, version: int, entries: dict[tuple[int, int], tuple[NextHop, ...]]
) -> dict[str, Any]:
    positions: dict[tuple[int, str, int, int], int] = {}
    routes: dict[str, dict[str, list[int]]] = {}
    for (destination, protocol), hops in entries.items():
        if not hops:
            continue
        route = [hops[0].metric]
        for hop in hops:
            identity = (hop.node, hop.address, hop.interface, hop.mtu)
            route.append(positions.setdefault(identity, len(positions)))
        routes.setdefault(str(protocol), {})[str(destination)] = route
    return {
        "node": node,
        "version": version,
        "hops": [list(identity) for identity in positions],
        "routes": routes,
    }
