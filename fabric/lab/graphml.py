"""Networks from GraphML files, those of the Internet Topology Zoo before all.

Owns: reading such a file, and mending what no lab can be made of. May import: errors, lab,
routing, networkx (lazily: it takes a quarter of a second). What a file means by its speeds and
names is in :mod:`fabric.lab.graphml_words`.

Files of the Zoo come from maps drawn by hand: parallel links, hosts without a name, a place or a
link, hyperedges drawn as hosts. Nothing is mended silently: ``Imported.repairs`` has it in words.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from fabric.errors import ConfigError
from fabric.lab.graphml_words import (
    delay_us,
    distinct_names,
    lab_name,
    number,
    speed_bps,
    word,
)
from fabric.routing.topology import Link, Node, Topology

EARTH_RADIUS_KM = 6371.0
FIBRE_KM_PER_US = 0.299792458 * 2 / 3
"""Two thirds of the speed of light: what a signal makes in glass."""
UNPLACED_US = 1000
"""Latency, µs, of links nobody can say anything about."""
EXTERNAL = "external"
"""Tag of hosts that belong to another network (the Zoo's ``Internal`` is 0)."""
_NAMESPACE = "{http://graphml.graphdrawing.org/xmlns}"

Place = tuple[float, float]
"""Latitude and longitude, degrees."""


@dataclass(frozen=True)
class Imported:
    """A network as its file means it."""

    name: str
    topology: Topology
    """Connected, at most one link between two hosts, every latency known."""
    repairs: tuple[str, ...]
    """What of the file had to be mended, guessed or left out."""


def read_graphml(path: Path | str, most_hosts: int = 0) -> Imported:
    """The network a file describes. ``most_hosts``: only so many, those nearest to the host with
    the most links; 0: all.

    Raises ConfigError when it is no GraphML, or has no hosts.
    """
    path = Path(path)
    repairs: list[str] = []
    graph = _parse(path, repairs)
    if not len(graph):
        raise ConfigError(f"{path}: there are no hosts in it")
    edges = _links(graph, repairs)
    kept = _one_part(graph, edges, repairs)
    if 0 < most_hosts < len(kept):
        near = _nearest(kept, edges, most_hosts)
        repairs.append(f"only {most_hosts} of {len(kept)} hosts are taken, as asked")
        kept = near
    names = distinct_names({key: graph.nodes[key].get("label") for key in kept}, repairs)
    edges = [edge for edge in edges if edge[0] in names and edge[1] in names]
    places = _places(graph, kept, edges, names, repairs)
    nodes = [
        Node(at, names[key], tags=_tags(graph.nodes[key]), region=_region(graph.nodes[key]))
        for at, key in enumerate(kept, 1)
    ]
    _tell_of_kinds(graph, kept, names, repairs)
    ids = {key: at for at, key in enumerate(kept, 1)}
    links = _weighted(edges, ids, places, names, repairs)
    name = lab_name(graph.graph.get("Network") or path.stem, path.stem)
    return Imported(name, Topology(tuple(nodes), tuple(links)), tuple(repairs))


# -- the file --------------------------------------------------------------------------------------


def _parse(path: Path, repairs: list[str]) -> Any:
    import networkx as nx

    try:
        root = ElementTree.parse(path).getroot()
        for graph in root.iter(f"{_NAMESPACE}graph"):
            _spread_hyperedges(graph, repairs)
        _drop_unreadable(root, repairs)
        found = nx.parse_graphml(ElementTree.tostring(root, encoding="unicode"))
    except (OSError, UnicodeError) as exc:
        raise ConfigError(f"{path}: {exc}") from exc
    except (ElementTree.ParseError, nx.NetworkXException, ValueError, KeyError) as exc:
        reason = str(exc) or type(exc).__name__
        raise ConfigError(f"{path}: no GraphML that can be read: {reason}") from exc
    if found.is_directed():
        repairs.append("links have directions in the file: they are taken to work both ways")
    return found


def _spread_hyperedges(graph: ElementTree.Element, repairs: list[str]) -> None:
    """A link of many ends becomes a host in their midst, as the Zoo draws it."""
    for at, edge in enumerate(graph.findall(f"{_NAMESPACE}hyperedge"), 1):
        ends = [end.get("node", "") for end in edge.findall(f"{_NAMESPACE}endpoint")]
        graph.remove(edge)
        middle = f"hyperedge-{at}"
        ElementTree.SubElement(graph, f"{_NAMESPACE}node", id=middle)
        for end in ends:
            ElementTree.SubElement(graph, f"{_NAMESPACE}edge", source=middle, target=end)
        repairs.append(f"a hyperedge of {len(ends)} ends is a host in their midst")


def _drop_unreadable(root: ElementTree.Element, repairs: list[str]) -> None:
    """Numbers that are none would cost the whole file."""
    kinds = {key.get("id"): key.get("attr.type") for key in root.iter(f"{_NAMESPACE}key")}
    for parent in list(root.iter()):
        for data in parent.findall(f"{_NAMESPACE}data"):
            numeric = kinds.get(data.get("key")) in ("int", "long", "float", "double")
            if data.get("key") not in kinds or (numeric and number(data.text) is None):
                parent.remove(data)
                repairs.append(f"attribute {data.get('key')} {data.text!r} is left out: no value")
            elif numeric and kinds[data.get("key")] in ("int", "long"):
                data.text = str(int(number(data.text) or 0))


# -- hosts and links -------------------------------------------------------------------------------

Edge = tuple[str, str, int, int | None]
"""Both ends as the file names them, bit/s (0: not told), µs (None: not told)."""


def _links(graph: Any, repairs: list[str]) -> list[Edge]:
    """One link for each pair of hosts, in the order of the file."""
    found: dict[frozenset[str], Edge] = {}
    parallel = Counter[frozenset[str]]()
    loops = unknown = 0
    for a, b, told in graph.edges(data=True):
        if a == b:
            loops += 1
            continue
        edge = (a, b, speed_bps(told), delay_us(told))
        pair = frozenset((a, b))
        parallel[pair] += 1
        before = found.get(pair)
        if before is None or edge[2] > before[2]:
            found[pair] = edge
        unknown += not edge[2]
    if loops:
        repairs.append(f"{loops} links from a host to itself are left out")
    for pair, count in parallel.items():
        if count > 1:
            ends = " and ".join(str(graph.nodes[end].get("label", end)) for end in sorted(pair))
            repairs.append(f"{count} parallel links between {ends} are one, the widest")
    if unknown:
        total = sum(parallel.values())
        repairs.append(f"{unknown} of {total} links tell no bandwidth: they have no limit")
    return list(found.values())


def _around(keys: Iterable[str], edges: Iterable[Edge]) -> dict[str, list[str]]:
    around: dict[str, list[str]] = {key: [] for key in keys}
    for a, b, _, _ in edges:
        if a in around and b in around:
            around[a].append(b)
            around[b].append(a)
    return around


def _reached(start: str, around: dict[str, list[str]]) -> list[str]:
    """Hosts in the order of their distance."""
    found, pending = dict.fromkeys([start]), deque([start])
    while pending:
        for far in around[pending.popleft()]:
            if far not in found:
                found[far] = None
                pending.append(far)
    return list(found)


def _one_part(graph: Any, edges: list[Edge], repairs: list[str]) -> list[str]:
    """The largest connected part, in the order of the file."""
    around = _around(graph, edges)
    left, parts = dict.fromkeys(around), list[list[str]]()
    while left:
        part = _reached(next(iter(left)), around)
        parts.append(part)
        for key in part:
            del left[key]
    largest = max(parts, key=len)
    for part in parts:
        if part is not largest:
            names = ", ".join(str(graph.nodes[key].get("label", key)) for key in part[:6])
            more = f" and {len(part) - 6} more" if len(part) > 6 else ""
            repairs.append(f"left out, as no link leads there from the rest: {names}{more}")
    inside = set(largest)
    return [key for key in graph if key in inside]


def _nearest(keys: list[str], edges: list[Edge], most: int) -> list[str]:
    around = _around(keys, edges)
    centre = max(keys, key=lambda key: len(around[key]))
    taken = set(_reached(centre, around)[:most])
    return [key for key in keys if key in taken]


def _tags(told: dict[str, Any]) -> tuple[str, ...]:
    return (EXTERNAL,) if told.get("Internal") == 0 else ()


def _region(told: dict[str, Any]) -> str:
    return word(str(told.get("Country") or ""))


def _tell_of_kinds(graph: Any, keys: list[str], names: dict[str, str], repairs: list[str]) -> None:
    hyper = [names[key] for key in keys if graph.nodes[key].get("hyperedge")]
    if hyper:
        repairs.append(f"hyperedges drawn as hosts stay hosts: {', '.join(hyper)}")
    external = [names[key] for key in keys if _tags(graph.nodes[key])]
    if external:
        told = f"{', '.join(external[:6])}{' …' if len(external) > 6 else ''}"
        repairs.append(f"{len(external)} hosts of other networks have the tag external: {told}")


# -- places and latencies --------------------------------------------------------------------------


def _places(
    graph: Any, keys: list[str], edges: list[Edge], names: dict[str, str], repairs: list[str]
) -> dict[str, Place]:
    """Where hosts are: as told, else in the midst of their neighbours."""
    found: dict[str, Place] = {}
    for key in keys:
        told = graph.nodes[key]
        ends = (number(told.get("Latitude")), number(told.get("Longitude")))
        if ends[0] is not None and ends[1] is not None:
            if abs(ends[0]) <= 90 and abs(ends[1]) <= 180:
                found[key] = (ends[0], ends[1])
            else:
                repairs.append(f"{names[key]}: {ends[0]:g}, {ends[1]:g} is no place on Earth")
    around, told_of = _around(keys, edges), set(found)
    while True:
        new = {
            key: _midst([found[far] for far in around[key] if far in found])
            for key in keys
            if key not in found and any(far in found for far in around[key])
        }
        if not new:
            break
        found |= new
    guessed = [names[key] for key in keys if key in found and key not in told_of]
    if guessed:
        more = " …" if len(guessed) > 12 else ""
        repairs.append(
            f"no coordinates, put amid their neighbours: {', '.join(guessed[:12])}{more}"
        )
    return found


def _midst(places: list[Place]) -> Place:
    """The middle of places on a sphere: the direction of their vectors' sum."""
    x = y = z = 0.0
    for latitude, longitude in places:
        up, along = math.radians(latitude), math.radians(longitude)
        x += math.cos(up) * math.cos(along)
        y += math.cos(up) * math.sin(along)
        z += math.sin(up)
    return math.degrees(math.atan2(z, math.hypot(x, y))), math.degrees(math.atan2(y, x))


def great_circle_km(one: Place, other: Place) -> float:
    """Distance on a sphere (haversine formula)."""
    (up, along), (up2, along2) = (tuple(map(math.radians, place)) for place in (one, other))
    half = math.sin((up2 - up) / 2) ** 2
    half += math.cos(up) * math.cos(up2) * math.sin((along2 - along) / 2) ** 2
    return 2 * EARTH_RADIUS_KM * math.asin(math.sqrt(min(1.0, half)))


def _weighted(
    edges: list[Edge],
    ids: dict[str, int],
    places: dict[str, Place],
    names: dict[str, str],
    repairs: list[str],
) -> list[Link]:
    interfaces: Counter[str] = Counter()
    links, measured, unplaced = [], 0, list[str]()
    for at, (a, b, bandwidth, told) in enumerate(edges):
        interfaces.update((a, b))
        latency = UNPLACED_US if told is None else told
        if told is None and a in places and b in places:
            latency = max(1, round(great_circle_km(places[a], places[b]) / FIBRE_KM_PER_US))
            measured += 1
        elif told is None:
            unplaced.append(f"{names[a]}-{names[b]}")
        links.append(
            Link(
                ids[a],
                ids[b],
                latency_us=latency,
                bandwidth_bps=bandwidth,
                a_interface=interfaces[a],
                b_interface=interfaces[b],
                a_address=underlay_address(2 * at),
                b_address=underlay_address(2 * at + 1),
            )
        )
    if measured:
        of = f"{measured} of {len(edges)} latencies"
        repairs.append(f"{of} are those of light in fibre along the great circle")
    if unplaced:
        repairs.append(f"neither latency nor place, taken to be 1 ms: {', '.join(unplaced)}")
    return links


def underlay_address(number: int) -> str:
    """Address by number, from 172.16.0.0 on: a network of its own, as large as need be."""
    return f"172.{16 + (number >> 16)}.{number >> 8 & 255}.{number & 255}"
