"""A lab as its topology file describes it, checked and complete.

Owns: the frozen model, derived addresses. May import: host.config, routing, wire. Everything is
derived from the order of the file: the n-th host is node n with the n-th overlay addresses, the
n-th link has the n-th /31 of the underlay.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from fabric.host.config import Limits, LivenessConfig, PoolConfig
from fabric.lab.fields import MIN_OVERLAY_MTU
from fabric.lab.standing import UP
from fabric.lab.validation import Check
from fabric.routing.definitions import Definition
from fabric.routing.topology import Link, Node, Topology
from fabric.wire.packet import HEADER_SIZE, RECORD_SIZE, UNDERLAY_OVERHEAD

DEFAULT_OVERLAY_V4 = "10.77.0.0/16"
DEFAULT_OVERLAY_V6 = "fd77::/64"
UNDERLAY = ipaddress.IPv4Network("172.31.0.0/16")
"""Lives in the lab's namespaces only, so two labs may both use it."""
MAX_LINKS = UNDERLAY.num_addresses // 2
DEFAULT_LINK_MTU = 9000
"""Bytes. Packet count is what costs in a guest, so lab links take large ones."""
ROOM_FOR_RECORDS = 8
"""Hop records that fit beside a full-sized inner packet; a longer path is flagged, never cut."""
MAX_OVERLAY_MTU = 8192
"""Bytes: two pages of payload per packet, and a power of two for the guest's buffers."""


@dataclass(frozen=True)
class HostModel:
    """One host. An option that is None was not written: the orchestrator's default holds."""

    name: str
    node: int
    """Node id, 1-based position in the file."""
    overlay_v4: str
    overlay_v6: str
    prefixes: tuple[str, ...] = ()
    """Prefixes the host answers for beside its two overlay addresses."""
    policy: dict[str, Any] = field(default_factory=dict)
    """Its own policy document, or the lab's."""
    limits: Limits | None = None
    pool: PoolConfig | None = None
    tier: str | None = None
    idle_timeout: float | None = None
    """Seconds."""
    guest_memory_mib: int | None = None
    guest_subnet: str | None = None
    announce: bool | None = None
    protect: bool | None = None
    spawning: bool | None = None
    watch_agents: bool | None = None
    services: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Programs that run on the host as long as the lab is up: name → command."""
    tags: tuple[str, ...] = ()
    region: str = ""
    load: float = 0.0
    """How busy the host is taken to be, 0 … 1."""

    @property
    def all_prefixes(self) -> tuple[str, ...]:
        """What the rest of the overlay sends to this host."""
        return (f"{self.overlay_v4}/32", f"{self.overlay_v6}/128", *self.prefixes)


@dataclass(frozen=True)
class LinkModel:
    """One link between two hosts, with its derived underlay addressing."""

    number: int
    """1-based position in the file."""
    a: str
    b: str
    a_address: str
    """Lower address of the link's /31."""
    b_address: str
    a_interface: int
    """Interface id at ``a``: counts that host's links in the order of the file, from 1."""
    b_interface: int
    cost: int = 1
    latency_us: int = 0
    bandwidth_bps: int = 0
    """0: unlimited."""
    loss: float = 0.0
    jitter_us: int = 0
    affinities: tuple[str, ...] = ()
    mtu: int = DEFAULT_LINK_MTU
    state: str = UP
    """Whether it carries anything when the lab comes up; tables are computed as if it did."""


@dataclass(frozen=True)
class LabModel:
    """A whole lab."""

    name: str
    path: str
    """The topology file, as the caller named it."""
    overlay_v4: str
    overlay_v6: str
    hosts: tuple[HostModel, ...]
    links: tuple[LinkModel, ...]
    policy: dict[str, Any] = field(default_factory=dict)
    """Policy of hosts that have none of their own."""
    liveness: LivenessConfig = field(default_factory=LivenessConfig)
    """How the hosts watch their links."""
    protocols: tuple[Definition, ...] = ()
    """What the file defines beyond, or instead of, the built-in ones."""
    checks: tuple[Check, ...] = ()
    """What ``fabric check`` tries, in the order of the file."""

    @cached_property
    def overlay_mtu(self) -> int:
        """Largest inner packet, bytes, so that header and records fit on every link of the lab."""
        smallest = min((link.mtu for link in self.links), default=DEFAULT_LINK_MTU)
        room = smallest - UNDERLAY_OVERHEAD - HEADER_SIZE - ROOM_FOR_RECORDS * RECORD_SIZE
        return max(MIN_OVERLAY_MTU, min(MAX_OVERLAY_MTU, room))

    @property
    def overlay_prefixes(self) -> tuple[str, ...]:
        """Everything the overlay covers: its two networks and the hosts' own prefixes."""
        own = (prefix for host in self.hosts for prefix in host.prefixes)
        return tuple(dict.fromkeys((self.overlay_v4, self.overlay_v6, *own)))

    def overlay_prefixes_at(self, name: str) -> tuple[str, ...]:
        """What host ``name`` routes into the overlay: all of it but its own prefixes."""
        own = {prefix for host in self.hosts if host.name == name for prefix in host.prefixes}
        return tuple(prefix for prefix in self.overlay_prefixes if prefix not in own)

    def host(self, name: str) -> HostModel | None:
        """The host of that name."""
        return next((host for host in self.hosts if host.name == name), None)

    def topology(self) -> Topology:
        """The graph the protocols work on."""
        node = {host.name: host.node for host in self.hosts}
        return Topology(
            tuple(
                Node(host.node, host.name, host.all_prefixes, host.tags, host.region, host.load)
                for host in self.hosts
            ),
            tuple(
                Link(
                    node[link.a],
                    node[link.b],
                    cost=link.cost,
                    latency_us=link.latency_us,
                    bandwidth_bps=link.bandwidth_bps,
                    loss=link.loss,
                    jitter_us=link.jitter_us,
                    affinities=link.affinities,
                    mtu=link.mtu,
                    a_address=link.a_address,
                    b_address=link.b_address,
                    a_interface=link.a_interface,
                    b_interface=link.b_interface,
                )
                for link in self.links
            ),
            self.protocols,
        )
