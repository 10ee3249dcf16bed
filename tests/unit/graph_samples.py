"""Small topologies by hand, shared by tests of routing."""

from __future__ import annotations

from fabric.routing.definitions import Definition
from fabric.routing.topology import Link, Node, Topology


def build(
    count: int, *links: Link, nodes: dict[int, Node] | None = None, own: tuple[Definition, ...] = ()
) -> Topology:
    """Nodes 1 … count, links with interface ids and addresses filled in."""
    used = dict.fromkeys(range(1, count + 1), 0)
    placed = []
    for number, link in enumerate(links):
        used[link.a] += 1
        used[link.b] += 1
        values = {**link.__dict__, "a_interface": used[link.a], "b_interface": used[link.b]}
        values |= {"a_address": f"172.31.0.{2 * number}", "b_address": f"172.31.0.{2 * number + 1}"}
        placed.append(Link(**values))
    special = nodes or {}
    return Topology(tuple(special.get(n, Node(n, f"n{n}")) for n in used), tuple(placed), own)
