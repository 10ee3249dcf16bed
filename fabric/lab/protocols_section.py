"""The ``protocols`` of a topology file: the network's own ones, and parameters of built-in ones.

Owns: what may be written of a protocol, and the step to definitions. May import: routing, lab.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from fabric.lab.fields import (
    BANDWIDTH,
    DURATION,
    LOSS,
    SHARE,
    WORDS,
    Field,
    integer,
    name_parser,
    one_of,
    suggestion,
)
from fabric.lab.section import Section
from fabric.routing.definitions import (
    CALCULATIONS,
    MAX_PATHS,
    MAX_SLACK,
    METRICS,
    PROTOCOLS,
    Definition,
)
from fabric.routing.needs import FIRST_USER_PROTOCOL, MAX_PROTOCOL, PROTOCOL_NAMES

MAX_PROTOCOL_NAME = 24
"""Characters: it is a column of tables people read."""

PROTOCOL_FIELDS: dict[str, Field] = {
    "id": integer(FIRST_USER_PROTOCOL, MAX_PROTOCOL),
    "calculation": one_of("calculation", CALCULATIONS),
    "metric": one_of("metric", tuple(METRICS)),
    "include_any": WORDS,
    "include_all": WORDS,
    "exclude_any": WORDS,
    "exclude_hosts": WORDS,
    "exclude_tags": WORDS,
    "exclude_regions": WORDS,
    "minimum_bandwidth": BANDWIDTH,
    "maximum_latency": DURATION,
    "maximum_loss": LOSS,
    "bound_latency": DURATION,
    "bound_jitter": DURATION,
    "bound_loss": LOSS,
    "paths": integer(1, MAX_PATHS),
    "share": SHARE,
    "hold": DURATION,
    "via": WORDS,
    "slack": integer(0, MAX_SLACK),
}
"""What may be said of a protocol; see routing.definitions.Definition."""
_ATTRIBUTES = {
    "minimum_bandwidth": "minimum_bandwidth_bps",
    "maximum_latency": "maximum_latency_us",
    "bound_latency": "bound_latency_us",
    "bound_jitter": "bound_jitter_us",
    "hold": "hold_us",
}
"""Key → attribute, where the attribute names a unit."""
_HOSTS = ("exclude_hosts", "via")
_BUILT_IN = {name: PROTOCOLS[number] for number, name in PROTOCOL_NAMES.items()}


def read_protocols(top: Section, hosts: Sequence[str]) -> tuple[Definition, ...]:
    """All definitions without mistakes; the others are remembered as problems."""
    section = top.section("protocols", ())
    parse_name = name_parser("protocol", MAX_PROTOCOL_NAME)
    found: list[Definition] = []
    for name in section.values:
        try:
            parse_name(name)
        except ValueError as exc:
            section.problem(name, str(exc))
            continue
        definition = _read(section.section(name, tuple(PROTOCOL_FIELDS)), name, hosts)
        if definition is None:
            continue
        taken = next((other for other in found if other.id == definition.id), None)
        if taken is not None:
            section.problem(name, f"id {definition.id} is already that of {taken.name}")
            continue
        found.append(definition)
    return tuple(found)


def _read(section: Section, name: str, hosts: Sequence[str]) -> Definition | None:
    written = section.read_all(PROTOCOL_FIELDS)
    for key in _HOSTS:
        if key in written:
            written[key] = _node_ids(section, key, hosts, written[key])
    number = written.pop("id", None)
    known = _BUILT_IN.get(name)
    if known is not None and number is not None:
        section.problem("id", f"{name} is built in and keeps its id {known.id}")
        return None
    if known is None and number is None:
        if "id" not in section:
            here = f"needs an id from {FIRST_USER_PROTOCOL} to {MAX_PROTOCOL}"
            section.source.problem(section.path, f"{here} {suggestion(name, _BUILT_IN)}")
        return None
    values: Mapping[str, Any] = {_ATTRIBUTES.get(k, k): v for k, v in written.items()}
    definition = replace(known or Definition(number or 0, name), **values)
    problems = tuple(definition.problems())
    for problem in problems:
        section.source.problem(section.path, problem)
    return None if problems else definition


def _node_ids(
    section: Section, key: str, hosts: Sequence[str], names: Sequence[str]
) -> tuple[int, ...]:
    for name in names:
        if name not in hosts:
            section.problem(key, f'host "{name}" is not defined {suggestion(name, hosts)}')
    return tuple(hosts.index(name) + 1 for name in names if name in hosts)
