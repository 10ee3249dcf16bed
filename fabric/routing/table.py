"""The forwarding table of one host: (destination, protocol) → ways on.

Owns: the table and its compact form. May import: fabric.errors, fabric.wire (it runs in the guest).

The compact form (JSON) lists the host's links once; a row speaks of them by position:
``{"node": 1, "version": 7, "hops": [[2, "172.31.0.1", 1, 9000]],
"protocols": {"0": {"name": "shortest"}}, "routes": {"0": {"4": [20, [0], [1, 1]]}}}``.
A row is ``[metric, hops, alternate, paths]``, empty parts at the end left out; see routing.rows.
A link that is gone leaves ``[]`` in its place, so that rows made before still mean the same.
A guest serves one connection, so it turns only the few rows it looks up into objects.
"""

from __future__ import annotations

from fabric.errors import ConfigError
from fabric.wire.fact import Fact

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
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


class Path(Fact):
    """A way on with the hosts it leads through."""

    hop: NextHop
    nodes: tuple[int, ...] = ()
    """Hosts after this one, the destination last; empty: the next host decides by its table."""
    protects: str = ""
    """Of an alternate: ``node`` when it avoids the dead neighbour, ``link`` when only its links."""


class ForwardingTable:
    """Immutable; a changed topology makes a new one with another version."""

    __slots__ = (
        *("_document", "_found", "_protocols", "_routes", "links", "node", "source", "version"),
    )

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
        self.links: list[list[Any]] = document["hops"]
        """What rows speak of by position: node, address, interface, MTU; empty where one went."""
        self._protocols: dict[str, dict[str, Any]] = document.get("protocols", {})
        self._routes: Mapping[str, Mapping[str, list[Any]]] = document["routes"]
        self._found: dict[tuple[int, int], tuple[NextHop, ...]] = {}
        self.source: object = None
        """What routing.protocols computed it from; nothing in a table that came as JSON."""

    def to_json(self, destinations: Iterable[int] | None = None) -> dict[str, Any]:
        """Plain data: all rows, or those of some destinations. Callers must not change it."""
        routes: dict[str, dict[str, list[Any]]] = {}
        keys = None if destinations is None else [str(each) for each in destinations]
        for protocol, rows in self._routes.items():
            if keys is None:
                whole = getattr(rows, "whole", None)  # rows computed on demand have it
                routes[protocol] = dict(rows) if whole is None else whole()
            else:
                found = {key: rows.get(key) for key in keys}
                routes[protocol] = {key: row for key, row in found.items() if row is not None}
        return {**self._document, "routes": routes}

    # -- what the engine asks --------------------------------------------------------------------

    def lookup(self, destination: int, protocol: int) -> tuple[NextHop, ...]:
        """Next hops ordered by node id and interface, or in the order of the paths they begin;
        empty when there is no way."""
        key = (destination, protocol)
        found = self._found.get(key)
        if found is None:
            row = self._row(destination, protocol)
            found = () if row is None else self._expand(row)
            self._found[key] = found
        return found

    def treatment(self, protocol: int) -> int | None:
        """How its packets travel (see fabric.wire.packet); None: hop by hop."""
        found = self._protocols.get(str(protocol), {}).get("treatment")
        return None if found is None else int(found)

    def option(self, protocol: int, name: str, default: int) -> int:
        """A parameter of a protocol."""
        return int(self._protocols.get(str(protocol), {}).get(name, default))

    def metric(self, destination: int, protocol: int) -> int | None:
        """What the whole entry is worth; None when there is no way."""
        row = self._row(destination, protocol)
        return None if row is None else int(row[0])

    def paths(self, destination: int, protocol: int) -> tuple[Path, ...]:
        """The ways on of a protocol whose packets do not travel hop by hop."""
        row = self._row(destination, protocol)
        if row is None:
            return ()
        told = row[3] if len(row) > 3 else [[]] * len(row[1])
        hops = self._expand(row)
        return tuple(Path(hop, tuple(nodes[1:])) for hop, nodes in zip(hops, told, strict=True))

    def alternate(self, destination: int, protocol: int) -> Path | None:
        """What to do when none of the entry's next hops can be used."""
        row = self._row(destination, protocol)
        if row is None or len(row) < 3 or not row[2]:
            return None
        position, protects, *nodes = row[2]
        return Path(self._hop(position, row[0]), tuple(nodes), "node" if protects else "link")

    def toward(self, node: int) -> tuple[NextHop, ...]:
        """The links to a neighbour, by interface; empty when it is none."""
        return tuple(self._hop(at, 0) for at, hop in enumerate(self.links) if hop[:1] == [node])

    # -- what people ask -------------------------------------------------------------------------

    @property
    def names(self) -> dict[int, str]:
        """Protocol ids and names, as far as the table knows them."""
        return {int(number): str(told["name"]) for number, told in self._protocols.items()}

    def known_paths(self, protocol: int) -> dict[int, tuple[int, ...]]:
        """Destination → nodes of its first path, for entries somebody has looked at."""
        rows = self._routes.get(str(protocol), {})
        known = getattr(rows, "known", None)  # rows computed on demand have it
        looked_at = known() if known is not None else rows
        return {
            int(destination): tuple(row[3][0][1:])
            for destination, row in looked_at.items()
            if len(row) > 3
        }

    def settled(self) -> ForwardingTable:
        """What is worth keeping when another one takes its place: the rows somebody looked at.
        No packet ever followed the others. Nothing is left of how they were computed."""
        routes = {}
        for protocol, rows in self._routes.items():
            known = getattr(rows, "known", None)
            routes[protocol] = dict(rows) if known is None else known()
        return ForwardingTable.from_json({**self._document, "routes": routes})

    def _row(self, destination: int, protocol: int) -> list[Any] | None:
        return self._routes.get(str(protocol), {}).get(str(destination))

    def _hop(self, position: int, metric: int) -> NextHop:
        node, address, interface, mtu = self.links[position]
        return NextHop(node, address, interface, mtu, metric)

    def _expand(self, row: list[Any]) -> tuple[NextHop, ...]:
        if len(row) < 4:
            return tuple(self._hop(position, row[0]) for position in row[1])
        pairs = zip(row[1], row[3], strict=True)
        return tuple(self._hop(position, path[0]) for position, path in pairs)

    @property
    def entries(self) -> dict[tuple[int, int], tuple[NextHop, ...]]:
        """Everything, keyed (destination, protocol). For people: it expands every route."""
        return {
            (int(destination), int(protocol)): self.lookup(int(destination), int(protocol))
            for protocol, routes in self._routes.items()
            for destination in routes
        }

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ForwardingTable) and self.to_json() == other.to_json()

    def __hash__(self) -> int:
        return hash((self.node, self.version))

    def __repr__(self) -> str:
        return f"ForwardingTable(node={self.node}, version={self.version})"


def _compact(
    node: int, version: int, entries: dict[tuple[int, int], tuple[NextHop, ...]]
) -> dict[str, Any]:
    positions: dict[tuple[int, str, int, int], int] = {}
    routes: dict[str, dict[str, list[Any]]] = {}
    for (destination, protocol), hops in entries.items():
        if not hops:
            continue
        listed = []
        for hop in hops:
            identity = (hop.node, hop.address, hop.interface, hop.mtu)
            listed.append(positions.setdefault(identity, len(positions)))
        routes.setdefault(str(protocol), {})[str(destination)] = [hops[0].metric, listed]
    return {
        "node": node,
        "version": version,
        "hops": [list(identity) for identity in positions],
        "routes": routes,
    }
