"""What a lab consists of on this machine, fully resolved: nothing is left to be decided later.

Owns: the step from the topology file's model to host configurations and links. May import: errors,
routing, host.config, lab.names. A spec is what ``lab.json`` records, and everything a lab makes can
be derived from it: recording it *before* the first change is the lab's ownership journal.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fabric.errors import ConfigError
from fabric.host.config import HostConfig, StoreConfig
from fabric.lab import names
from fabric.lab.standing import UP, Standing
from fabric.routing.topology import Topology

if TYPE_CHECKING:
    from fabric.lab.model import HostModel, LabModel

_HOST_OPTIONS = (
    "announce",
    "guest_memory_mib",
    "guest_subnet",
    "idle_timeout",
    "limits",
    "pool",
    "protect",
    "spawning",
    "tier",
    "watch_agents",
)
"""What a topology file may say of a host, under the same names as in HostConfig."""

RUN_DIR = Path("/run/fabric")
STATE_DIR = Path("/var/lib/fabric")
MINIMUM_BRIDGE_MTU = 1500
STORE = "-store"
"""Directory of a lab's store, beside those of its hosts. No host can be called so."""


@dataclass(frozen=True)
class Options:
    """How to bring a lab up, as far as the file does not say."""

    run_dir: Path = RUN_DIR
    state_dir: Path = STATE_DIR
    libvirt_uri: str = "qemu:///system"
    tier: str | None = None
    """Spawn tier for all hosts; None: as the file has it."""
    idle_timeout: float | None = None
    """Seconds, for all hosts; None: as the file has it."""


@dataclass(frozen=True)
class End:
    """One end of a link."""

    host: str
    node: int
    interface: str
    """Name inside the host's namespace."""
    address: str
    """Underlay IPv4 address."""


@dataclass(frozen=True)
class LinkSpec:
    """One link of the underlay."""

    number: int
    """1-based, in file order."""
    a: End
    b: End
    latency_us: int
    """One way."""
    bandwidth_bps: int
    """Bits per second, 0 unlimited."""
    loss: float
    """0 … 1."""
    mtu: int
    jitter_us: int = 0
    state: str = UP

    @property
    def standing(self) -> Standing:
        """What the file wants of it."""
        return Standing(
            self.latency_us, self.jitter_us, self.bandwidth_bps, self.loss, state=self.state
        )

    @property
    def impaired(self) -> bool:
        return self.standing.impaired

    @property
    def label(self) -> str:
        """``A-B``, as commands take it."""
        return f"{self.a.host}-{self.b.host}"

    def to_json(self) -> dict[str, Any]:
        return {**self.__dict__, "a": self.a.__dict__, "b": self.b.__dict__}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> LinkSpec:
        return cls(**{**data, "a": End(**data["a"]), "b": End(**data["b"])})


@dataclass(frozen=True)
class ServiceSpec:
    """A program that runs on a host as long as the lab is up."""

    host: str
    name: str
    command: tuple[str, ...]

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> ServiceSpec:
        return cls(data["host"], data["name"], tuple(data["command"]))


@dataclass(frozen=True)
class LabSpec:
    """A lab, resolved."""

    name: str
    path: str
    """Absolute path of the topology file."""
    hosts: tuple[HostConfig, ...]
    links: tuple[LinkSpec, ...]
    services: tuple[ServiceSpec, ...] = ()

    @classmethod
    def from_model(cls, model: LabModel, options: Options) -> LabSpec:
        """Resolve ``model``; the same model and options always give the same spec."""
        topology = model.topology()
        name_of = {node.id: node.name for node in topology.nodes}
        links = []
        for number, (link, written) in enumerate(zip(topology.links, model.links, strict=True), 1):
            a, b = name_of[link.a], name_of[link.b]
            a_name = names.underlay_interface(b, link.a_interface)
            b_name = names.underlay_interface(a, link.b_interface)
            links.append(
                LinkSpec(
                    number,
                    End(a, link.a, a_name, link.a_address),
                    End(b, link.b, b_name, link.b_address),
                    link.latency_us,
                    link.bandwidth_bps,
                    link.loss,
                    link.mtu,
                    link.jitter_us,
                    written.state,
                )
            )
        document = topology.to_json()
        hosts = tuple(_host_config(model, host, document, options) for host in model.hosts)
        services = tuple(
            ServiceSpec(host.name, name, command)
            for host in model.hosts
            for name, command in host.services.items()
        )
        return cls(model.name, str(Path(model.path).resolve()), hosts, tuple(links), services)

    @property
    def digest(self) -> str:
        """Identifies the content: topology, policy and options, not the file's name."""
        document = {**self.to_json(), "path": ""}
        text = json.dumps(document, sort_keys=True).encode()
        return hashlib.blake2s(text, digest_size=8).hexdigest()

    @property
    def run_dir(self) -> Path:
        """Runtime files of the whole lab."""
        return Path(self.hosts[0].run_dir) / self.name

    @property
    def impaired_links(self) -> tuple[LinkSpec, ...]:
        return tuple(link for link in self.links if link.impaired)

    def topology(self) -> Topology:
        """The graph all hosts were given."""
        return Topology.from_json(self.hosts[0].topology)

    def host(self, name: str) -> HostConfig | None:
        return next((host for host in self.hosts if host.host == name), None)

    def links_of(self, host: str) -> list[tuple[End, End, LinkSpec]]:
        """(own end, far end, link) of every link of a host."""
        found = []
        for link in self.links:
            for own, far in ((link.a, link.b), (link.b, link.a)):
                if own.host == host:
                    found.append((own, far, link))
        return found

    def bridge_mtu(self, host: str) -> int:
        """Guests must be able to send whatever the widest link of their host takes."""
        return max([MINIMUM_BRIDGE_MTU, *(link.mtu for _, _, link in self.links_of(host))])

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "path": self.path,
            "hosts": [host.to_json() for host in self.hosts],
            "links": [link.to_json() for link in self.links],
            "services": [dict(service.__dict__) for service in self.services],
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> LabSpec:
        """Inverse of :meth:`to_json`. Raises ConfigError."""
        try:
            hosts = tuple(HostConfig.from_json(host) for host in data["hosts"])
            links = tuple(LinkSpec.from_json(link) for link in data["links"])
            services = tuple(ServiceSpec.from_json(s) for s in data.get("services", ()))
            return cls(data["name"], data["path"], hosts, links, services)
        except (KeyError, TypeError) as exc:
            raise ConfigError(f"recorded lab: {exc!r}") from exc


def _host_config(
    model: LabModel, host: HostModel, topology: dict[str, Any], options: Options
) -> HostConfig:
    """The orchestrator's configuration; what neither file nor options say keeps its default."""
    config = HostConfig(
        lab=model.name,
        host=host.name,
        node=host.node,
        bridge=names.bridge_name(model.name, host.node),
        guest_interface=names.GUEST_INTERFACE,
        overlay_addresses=(f"{host.overlay_v4}/32", f"{host.overlay_v6}/128"),
        overlay_prefixes=model.overlay_prefixes_at(host.name),
        topology=topology,
        policy=dict(host.policy or model.policy),
        liveness=model.liveness,
        store=StoreConfig("file", str(options.run_dir / model.name / STORE)),
        overlay_mtu=model.overlay_mtu,
        libvirt_uri=options.libvirt_uri,
        run_dir=str(options.run_dir),
        state_dir=str(options.state_dir),
    )
    given: dict[str, Any] = {
        name: value for name in _HOST_OPTIONS if (value := getattr(host, name)) is not None
    }
    if options.tier is not None:
        given["tier"] = options.tier
    if options.idle_timeout is not None:
        given["idle_timeout"] = options.idle_timeout
    return replace(config, **given)
