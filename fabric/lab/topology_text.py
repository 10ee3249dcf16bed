"""A network as the text of a topology file.

Owns: writing what :mod:`fabric.lab.topology_file` reads. May import: lab, routing.
"""

from __future__ import annotations

from collections.abc import Iterator

from fabric.lab.graphml import Imported
from fabric.routing.topology import Link, Node, Topology

_RATES = ((10**12, "tbit"), (10**9, "gbit"), (10**6, "mbit"), (10**3, "kbit"), (1, "bit"))
_YAML_WORDS = {"null", "true", "false"}


def topology_text(imported: Imported) -> str:
    """The file; what was mended stands above as comments."""
    return "\n".join(_lines(imported)) + "\n"


def _lines(imported: Imported) -> Iterator[str]:
    topology = imported.topology
    yield from (f"# {repair}" for repair in imported.repairs)
    yield f"name: {_scalar(imported.name)}"
    yield "hosts:"
    yield from (_host(node) for node in topology.nodes)
    yield "links:"
    yield from (_link(link, topology) for link in topology.links)


def _host(node: Node) -> str:
    told = [f"tags: [{', '.join(map(_scalar, node.tags))}]"] if node.tags else []
    told += [f"region: {_scalar(node.region)}"] if node.region else []
    return f"  {_scalar(node.name)}: {{{', '.join(told)}}}"


def _link(link: Link, topology: Topology) -> str:
    ends = ", ".join(_scalar(topology.name_of(end)) for end in (link.a, link.b))
    told = [f"endpoints: [{ends}]"]
    if link.cost != 1:
        told.append(f"cost: {link.cost}")
    if link.latency_us:
        told.append(f"latency: {link.latency_us}us")
    if link.bandwidth_bps:
        size, unit = next(rate for rate in _RATES if link.bandwidth_bps % rate[0] == 0)
        told.append(f"bandwidth: {link.bandwidth_bps // size}{unit}")
    return f"  - {{{', '.join(told)}}}"


def _scalar(text: str) -> str:
    """Quoted where YAML would take it for something else than a text."""
    return text if text[:1].isalpha() and text not in _YAML_WORDS else f'"{text}"'
