"""Topology files: YAML → a checked LabModel.

Owns: the shape of the file (its values are in lab.fields, its schema in lab.schema). May import:
errors, routing, lab. A file with mistakes yields one ConfigError that lists all of them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from fabric.host.config import DEFAULT_GUEST_SUBNET, Limits, LivenessConfig, PoolConfig
from fabric.lab.fields import (
    HOST_FIELDS,
    LIMIT_FIELDS,
    LINK_FIELDS,
    LIVENESS_FIELDS,
    MAX_HOST_NAME,
    MAX_LAB_NAME,
    POOL_FIELDS,
    Network,
    liveness,
    name_parser,
    network_of,
    parse_network,
)
from fabric.lab.links_section import read_links
from fabric.lab.model import (
    DEFAULT_OVERLAY_V4,
    DEFAULT_OVERLAY_V6,
    UNDERLAY,
    HostModel,
    LabModel,
)
from fabric.lab.policy_file import read_policy
from fabric.lab.protocols_section import read_protocols
from fabric.lab.section import Section
from fabric.lab.validate_section import read_validate
from fabric.lab.yaml_reader import Source, read_source, read_text
from fabric.routing.definitions import combined

TOP_KEYS = (
    *("name", "hosts", "links", "overlay", "defaults", "policy", "protocols", "liveness"),
    "validate",
)
HOST_KEYS = (*HOST_FIELDS, "limits", "pool", "policy")
OVERLAY_FIELDS = {
    "ipv4": network_of(4, 4, DEFAULT_OVERLAY_V4),
    "ipv6": network_of(6, 4, DEFAULT_OVERLAY_V6),
}


def load_topology(path: Path | str) -> LabModel:
    """The lab a file describes.

    Raises ConfigError listing every mistake with file, line and key.
    """
    path = Path(path)
    return _read(read_source(path), path.parent)


def parse_topology(text: str, name: str = "topology", base: Path | None = None) -> LabModel:
    """Like :func:`load_topology` for text; policy files are looked for in ``base``."""
    return _read(read_text(text, name), base or Path())


def _read(source: Source, base: Path) -> LabModel:
    top = Section(source, (), source.data, TOP_KEYS)
    name = top.read("name", name_parser("lab", MAX_LAB_NAME), "")
    if "name" not in top:
        source.problem((), 'there is no name: give the lab one, for example "name: diamond"')
    overlay = {"ipv4": DEFAULT_OVERLAY_V4, "ipv6": DEFAULT_OVERLAY_V6}
    overlay |= top.section("overlay", tuple(OVERLAY_FIELDS)).read_all(OVERLAY_FIELDS)
    listed = top.values.get("hosts")
    protocols = read_protocols(top, list(listed) if isinstance(listed, dict) else [])
    names = {number: known.name for number, known in combined(protocols).items()}
    policy = read_policy(top, base, names) or {}
    defaults = top.section("defaults", ("hosts", "links"))
    hosts = _read_hosts(top, defaults, overlay, policy, base, names)
    usual = defaults.section("links", tuple(LINK_FIELDS)).read_all(LINK_FIELDS)
    host_names = [host.name for host in hosts]
    links = read_links(top, host_names, usual)
    checks = read_validate(top, host_names, links, list(names.values()))
    model = LabModel(
        name=name,
        path=source.name,
        overlay_v4=overlay["ipv4"],
        overlay_v6=overlay["ipv6"],
        hosts=hosts,
        links=links,
        policy=policy,
        protocols=protocols,
        liveness=_read_liveness(top),
        checks=checks,
    )
    _check_prefixes(source, model)
    source.raise_problems("topology")
    _check_connected(source, model)
    source.raise_problems("topology")
    return model


def _read_liveness(top: Section) -> LivenessConfig:
    given = top.section("liveness", tuple(LIVENESS_FIELDS)).read_all(LIVENESS_FIELDS)
    try:
        return liveness(given)
    except ValueError as exc:
        top.problem("liveness", str(exc))
        return LivenessConfig()


# -- hosts -----------------------------------------------------------------------------------------


def _read_hosts(
    top: Section,
    defaults: Section,
    overlay: dict[str, Any],
    policy: dict[str, Any],
    base: Path,
    names: dict[int, str],
) -> tuple[HostModel, ...]:
    usual_section = defaults.section("hosts", HOST_KEYS)
    if "prefixes" in usual_section:
        usual_section.problem("prefixes", "belong to one host each, there is no default for them")
    usual = _read_options(usual_section, {}, base, names)
    section = top.section("hosts", ())
    if not section.values:
        top.problem("hosts", "there are no hosts: a lab needs at least one")
    parse_name = name_parser("host", MAX_HOST_NAME)
    networks = {version: parse_network(prefix) for version, prefix in overlay.items()}
    found = []
    for node, key in enumerate(section.values, 1):
        try:
            parse_name(key)
        except ValueError as exc:
            section.problem(key, str(exc))
        # Host number n has address number n: the first is not given away, nor is a broadcast.
        if node > min(network.num_addresses for network in networks.values()) - 2:
            section.problem(key, f"the overlay networks are too small for host number {node}")
            break
        host = HostModel(
            key, node, str(networks["ipv4"][node]), str(networks["ipv6"][node]), policy=policy
        )
        options = section.section(key, HOST_KEYS)
        own = _read_options(options, usual, base, names)
        found.append(replace(host, **{**usual, **own}))
    return tuple(found)


def _read_options(
    section: Section, usual: dict[str, Any], base: Path, names: dict[int, str]
) -> dict[str, Any]:
    """What a host's section says. Limits and the like it leaves out are taken from ``usual``."""
    options = section.read_all(HOST_FIELDS)
    groups = (("limits", LIMIT_FIELDS, Limits()), ("pool", POOL_FIELDS, PoolConfig()))
    for key, fields, default in groups:
        if key in section:
            given = section.section(key, tuple(fields)).read_all(fields)
            options[key] = replace(usual.get(key, default), **given)
    pool = options.get("pool")
    if isinstance(pool, PoolConfig) and pool.minimum > pool.maximum:
        section.problem("pool", f"minimum {pool.minimum} is above maximum {pool.maximum}")
    policy = read_policy(section, base, names)
    return options if policy is None else {**options, "policy": policy}


# -- what only shows when everything is read -------------------------------------------------------


def _check_prefixes(source: Source, model: LabModel) -> None:
    """No address may have two owners, and the fabric's own networks must stay out of it."""
    taken: list[tuple[Network, str]] = [(UNDERLAY, "the underlay of labs")]
    taken += [
        (parse_network(subnet), f"the guests of {host.name}")
        for host in model.hosts
        for subnet in [host.guest_subnet or DEFAULT_GUEST_SUBNET]
    ]
    for version in OVERLAY_FIELDS:
        prefix = model.overlay_v4 if version == "ipv4" else model.overlay_v6
        _check_overlaps(source, ("overlay", version), prefix, taken)
    for host in model.hosts:
        own = (f"{host.overlay_v4}/32", f"{host.overlay_v6}/128")
        taken += [(parse_network(prefix), f"the address of {host.name}") for prefix in own]
    for host in model.hosts:
        for prefix in host.prefixes:
            _check_overlaps(source, ("hosts", host.name, "prefixes"), prefix, taken)
            taken.append((parse_network(prefix), f"a prefix of {host.name}"))


def _check_overlaps(
    source: Source, path: tuple[str, ...], prefix: str, taken: Iterable[tuple[Network, str]]
) -> None:
    network = parse_network(prefix)
    for other, whose in taken:
        if network.version == other.version and network.overlaps(other):
            source.problem(path, f"{prefix} overlaps {other}, {whose}")
            return  # one clash is enough to act on; the guests' subnet is every host's


def _check_connected(source: Source, model: LabModel) -> None:
    """Only for a file without other mistakes: those would make it look disconnected too."""
    parts = model.topology().components()
    if len(parts) <= 1:
        return
    name = {host.node: host.name for host in model.hosts}
    islands = " | ".join(", ".join(name[node] for node in part) for part in parts)
    source.problem(
        ("links",), f"the topology falls into {len(parts)} parts with no link between: {islands}"
    )


__all__ = ["HostModel", "LabModel", "load_topology", "parse_topology"]
