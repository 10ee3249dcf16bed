"""What fails when: ``A-B@2s``, ``HOST@1s``, ``random:3@1s``, ``A-B@2s..5s``.

Owns: the grammar and its meaning. May import: errors, routing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from random import Random

from fabric.errors import UserError
from fabric.routing.topology import Topology

_UNITS = {"us": 1, "ms": 1000, "s": 1_000_000, "min": 60_000_000}
_TIME = re.compile(r"(\d+(?:\.\d+)?)\s*(us|ms|s|min)")
_GRAMMAR = "write A-B@2s, HOST@1s or random:3@1s; with an end: A-B@2s..5s"


@dataclass(frozen=True)
class Failure:
    """Some links, or one host with all of its links, are gone for a while."""

    label: str
    begin_us: int
    end_us: int | None
    """None: for ever."""
    links: tuple[int, ...] = ()
    """Positions in the topology."""
    node: int | None = None

    @property
    def moments(self) -> tuple[int, ...]:
        """When something changes."""
        return (self.begin_us,) if self.end_us is None else (self.begin_us, self.end_us)


def parse_failures(texts: Iterable[str], topology: Topology, rng: Random) -> tuple[Failure, ...]:
    """What ``--fail`` was given, by time. Raises UserError."""
    found = [failure for text in texts for failure in _parse(text, topology, rng)]
    return tuple(sorted(found, key=lambda failure: failure.begin_us))


def _parse(text: str, topology: Topology, rng: Random) -> list[Failure]:
    what, separator, when = text.rpartition("@")
    if not separator:
        raise UserError(f"--fail {text}: it does not say when", cure=_GRAMMAR)
    begin, dots, end = when.partition("..")
    first = parse_time(begin, text)
    last = parse_time(end, text) if dots else None
    if last is not None and last <= first:
        raise UserError(f"--fail {text}: it ends before it begins", cure=_GRAMMAR)
    kind, colon, count = what.partition(":")
    if colon and kind == "random":
        return _random(text, count, topology, rng, (first, last))
    nodes = {node.name: node.id for node in topology.nodes}
    if what in nodes:
        return [Failure(what, first, last, node=nodes[what])]
    return [Failure(what, first, last, _links_between(text, what, topology, nodes))]


def _random(
    text: str, count: str, topology: Topology, rng: Random, when: tuple[int, int | None]
) -> list[Failure]:
    if not count.isdecimal() or not 1 <= int(count) <= len(topology.links):
        raise UserError(f"--fail {text}: a number of links, 1 … {len(topology.links)}")
    chosen = sorted(rng.sample(range(len(topology.links)), int(count)))
    return [Failure(_label(topology, at), *when, links=(at,)) for at in chosen]


def _label(topology: Topology, link: int) -> str:
    ends = (topology.links[link].a, topology.links[link].b)
    return "-".join(topology.name_of(end) for end in ends)


def _links_between(
    text: str, what: str, topology: Topology, nodes: dict[str, int]
) -> tuple[int, ...]:
    """Host names may have hyphens: every way to cut is tried."""
    cuts = [at for at, letter in enumerate(what) if letter == "-"]
    pairs = [(what[:at], what[at + 1 :]) for at in cuts]
    for pair in (pair for pair in pairs if pair[0] in nodes and pair[1] in nodes):
        ends = {nodes[pair[0]], nodes[pair[1]]}
        links = tuple(at for at, n in enumerate(topology.links) if {n.a, n.b} == ends)
        if links:
            return links
        raise UserError(f"--fail {text}: no link between {pair[0]} and {pair[1]}")
    raise UserError(f"--fail {text}: {what!r} is neither a host nor two of them", cure=_GRAMMAR)


def parse_time(written: str, text: str = "") -> int:
    """``2s`` → µs. Raises UserError."""
    match = _TIME.fullmatch(written.strip())
    if match is None:
        what = f"--fail {text}: " if text else ""
        raise UserError(f"{what}{written!r} is no time", cure="with unit: 250ms, 2s")
    return round(float(match[1]) * _UNITS[match[2]])
