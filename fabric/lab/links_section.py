"""The ``links`` of a topology file.

Owns: reading them and giving each its addresses. May import: lab.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from fabric.lab.fields import LINK_FIELDS, quoted, suggestion
from fabric.lab.model import MAX_LINKS, UNDERLAY, LinkModel
from fabric.lab.section import Section
from fabric.lab.yaml_reader import Source, Steps

LINK_KEYS = ("endpoints", *LINK_FIELDS)
ENDPOINTS_HINT = "must be two hosts, for example [h1, h2]"


def read_links(top: Section, hosts: Sequence[str], usual: dict[str, Any]) -> tuple[LinkModel, ...]:
    """All links without mistakes; the others are remembered as problems. ``usual``: defaults."""
    source, listed = top.source, top.values.get("links")
    if listed is None:
        listed = []
    if not isinstance(listed, list):
        top.problem("links", f"must be a list, not {quoted(listed)}")
        return ()
    if len(listed) > MAX_LINKS:
        top.problem("links", f"{len(listed)} are too many: {UNDERLAY} has room for {MAX_LINKS}")
        return ()
    interfaces: Counter[str] = Counter()
    seen: dict[frozenset[str], int] = {}
    found = []
    for position, entry in enumerate(listed):
        path: Steps = ("links", position)
        ends, attributes = _read_link(source, path, entry, hosts)
        if ends is None:
            continue
        first = seen.setdefault(frozenset(ends), position)
        if first != position:
            where = f"links[{first}] on line {source.line(('links', first))}"
            source.problem(path, f"{ends[0]} and {ends[1]} are already linked by {where}")
            continue
        interfaces.update(ends)
        found.append(_link(position, ends, interfaces, {**usual, **attributes}))
    return tuple(found)


def _link(
    position: int, ends: tuple[str, str], interfaces: Counter[str], attributes: dict[str, Any]
) -> LinkModel:
    a, b = ends
    return LinkModel(
        number=position + 1,
        a=a,
        b=b,
        a_address=str(UNDERLAY[2 * position]),
        b_address=str(UNDERLAY[2 * position + 1]),
        a_interface=interfaces[a],
        b_interface=interfaces[b],
        **{_MODEL_NAMES.get(key, key): value for key, value in attributes.items()},
    )


_MODEL_NAMES = {
    "latency": "latency_us",
    "jitter": "jitter_us",
    "bandwidth": "bandwidth_bps",
}


def _read_link(
    source: Source, path: Steps, entry: object, hosts: Sequence[str]
) -> tuple[tuple[str, str] | None, dict[str, Any]]:
    if isinstance(entry, str):
        return _split(source, path, entry, hosts), {}
    if not isinstance(entry, dict):
        source.problem(path, 'must be a mapping with endpoints, or short "h1-h2"')
        return None, {}
    section = Section(source, path, entry, LINK_KEYS)
    attributes = section.read_all(LINK_FIELDS)
    return _read_endpoints(section, hosts), attributes


def _read_endpoints(section: Section, hosts: Sequence[str]) -> tuple[str, str] | None:
    written = section.values.get("endpoints")
    if not isinstance(written, list) or len(written) != 2:
        section.problem("endpoints", f"{ENDPOINTS_HINT}, not {quoted(written)}")
        return None
    # containerlab writes "h1:eth1"; interface names are derived here, so that part says nothing.
    ends = [str(end).partition(":")[0] for end in written]
    return _check_ends(section.source, (*section.path, "endpoints"), ends, hosts)


def _check_ends(
    source: Source, path: Steps, ends: Sequence[str], hosts: Sequence[str]
) -> tuple[str, str] | None:
    a, b = ends
    unknown = [end for end in dict.fromkeys(ends) if end not in hosts]
    for end in unknown:
        source.problem(path, f'host "{end}" is not defined {suggestion(end, hosts)}')
    if a == b and not unknown:
        source.problem(path, f'host "{a}" cannot be linked to itself')
    return None if unknown or a == b else (a, b)


def pairs_in(text: str, hosts: Sequence[str]) -> list[tuple[str, str]]:
    """Every reading of ``h1-h2`` as two of the hosts: names may contain hyphens."""
    return [split for split in _splits(text) if split[0] in hosts and split[1] in hosts]


def _splits(text: str) -> list[tuple[str, str]]:
    cuts = [at for at, character in enumerate(text) if character == "-"]
    return [(text[:at].strip(), text[at + 1 :].strip()) for at in cuts]


def _split(source: Source, path: Steps, text: str, hosts: Sequence[str]) -> tuple[str, str] | None:
    """``h1-h2``. Names may contain hyphens, so every split is tried."""
    splits = _splits(text)
    fitting = pairs_in(text, hosts)
    if len(fitting) > 1:
        readings = " or ".join(f"{a} and {b}" for a, b in fitting)
        source.problem(path, f'"{text}" can mean {readings}: write endpoints: [A, B]')
        return None
    if not fitting and len(splits) != 1:
        source.problem(path, f'"{text}" names no two of the hosts {", ".join(hosts)}')
        return None
    return _check_ends(source, path, (fitting or splits)[0], hosts)
