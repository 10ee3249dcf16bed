"""What one orchestrator is told at start: its host, its peers, its limits.

Owns: the configuration file of ``fabric orchestrator`` (JSON). May import: errors, routing.
The lab writes one per namespace; on a real machine an operator or configuration management does.
"""

from __future__ import annotations

import ipaddress
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fabric.errors import ConfigError

DEFAULT_TIER = "prepared"

TEMPLATE_DIR = "/dev/shm/fabric"
"""On tmpfs: a clone's memory is the template's until it writes to it."""

# Room for about a thousand guests per host: a Linux bridge has 1024 ports.
DEFAULT_GUEST_SUBNET = "100.115.0.0/22"


@dataclass(frozen=True)
class Limits:
    """Capacity of one host. Beyond any of them a new connection is refused, promptly."""

    guests: int = 64
    """Guests alive at once on this host."""
    guest_memory_mib: int = 8192
    """Memory of all guests together, MiB."""
    held_packets: int = 64
    """Packets held per connection while its guest appears."""
    held_total: int = 4096
    """Packets held on the whole host."""
    held_seconds: int = 120
    """Seconds a connection without a guest is kept after its last new packet. TCP's own pauses
    between SYNs are up to 64 s (RFC 6298)."""
    memory_reserve_mib: int = 256
    """Memory of the machine that guests leave to others, MiB: with less available than this and
    one more guest no guest is spawned."""
    spawns_per_second: float = 16.0
    """Sustained rate of new guests (token bucket, burst = one second's worth, at least 32)."""


@dataclass(frozen=True)
class PoolConfig:
    """How many guests are kept ready for requests to come (tiers ``prepared`` and ``warm``)."""

    minimum: int = 2
    """Kept ready in any case."""
    maximum: int = 16
    """Kept ready at most, however many requests came lately."""
    memory_floor_mib: int = 1024
    """With less memory available on the machine nothing is kept ready, MiB."""


@dataclass(frozen=True)
class LivenessConfig:
    """How the links to neighbours are watched, see fabric.host.links. The same on all hosts."""

    enabled: bool = True
    """False: links are taken for what the topology says."""
    slow_ms: float = 300
    """Between two probes until a link is steady, ms."""
    fast_ms: float = 50
    """Afterwards, ms."""
    multiplier: int = 3
    """A neighbour that misses so many is dead."""
    steady_ms: float = 2000
    """A link is steady after so long, ms; one that was down counts as up again only then."""
    multihop: bool = False
    """Neighbours may be routers apart (RFC 5883): a probe's TTL then says nothing of its sender."""


@dataclass(frozen=True)
class StoreConfig:
    """Where hosts leave what the others are to know, see fabric.host.store."""

    kind: str = "none"
    """``none``: nothing is shared; ``file``: a directory, for hosts on one machine; ``etcd``."""
    directory: str = ""
    """Of kind ``file``."""
    token_file: str = ""
    """Of kind ``etcd``: where the word of `fabric store token` stands."""
    lease: float = 10.0
    """Seconds after which a host that died is gone from it."""


@dataclass(frozen=True)
class HostConfig:
    """One orchestrator's configuration."""

    lab: str
    host: str
    node: int
    """Node id of this host in the topology, 1 … 2^32-1; also the host's index in the lab."""
    bridge: str
    """Bridge the guests' taps are ports of; lives in the namespace libvirt runs in."""
    guest_interface: str
    """Interface of *this host's* namespace that leads to the guests (the bridge itself on a real
    machine, the inner end of a veth pair in a lab)."""
    overlay_addresses: tuple[str, ...]
    """This host's overlay addresses with prefix length, e.g. 10.77.0.1/32 and fd77::1/128."""
    overlay_prefixes: tuple[str, ...]
    """Prefixes of the whole overlay: what is routed into the miss device."""
    topology: dict[str, Any]
    """fabric.routing.topology.Topology.to_json()."""
    policy: dict[str, Any] = field(default_factory=dict)
    """Policy document, see fabric.routing.policy; {} means the RFC 4594 defaults."""
    guest_subnet: str = DEFAULT_GUEST_SUBNET
    port: int = 7704
    """UDP port of the underlay."""
    tier: str = DEFAULT_TIER
    pool: PoolConfig = field(default_factory=PoolConfig)
    liveness: LivenessConfig = field(default_factory=LivenessConfig)
    store: StoreConfig = field(default_factory=StoreConfig)
    idle_timeout: float = 30.0
    """Seconds without a packet after which a connection's guest is destroyed."""
    announce: bool = True
    """Tell the hosts on the expected path ahead that a connection is coming."""
    protect: bool = False
    """Have guests ready on the alternate paths of every connection that begins here, so that a dead
    neighbour costs it no spawn; a policy rule may want it for its own connections only."""
    watch_agents: bool = True
    """Replace guests whose agents fall silent, see fabric.host.control.vigil. False is for those
    who stop agents on purpose."""
    spawning: bool = True
    """False: detect requests but spawn nothing (and so forward nothing)."""
    guest_memory_mib: int = 128
    overlay_mtu: int = 1400
    libvirt_uri: str = "qemu:///system"
    run_dir: str = "/run/fabric"
    state_dir: str = "/var/lib/fabric"
    template_dir: str = TEMPLATE_DIR
    """Shared by all orchestrators of the machine, see fabric.host.guest.template."""
    limits: Limits = field(default_factory=Limits)

    @property
    def host_dir(self) -> Path:
        """Runtime files of this host: api.sock, journal, guest channels, log."""
        return Path(self.run_dir) / self.lab / self.host

    @property
    def api_socket(self) -> Path:
        return self.host_dir / "api.sock"

    @property
    def gateway(self) -> ipaddress.IPv4Address:
        """The host's own address on the guest subnet: its first usable one."""
        return ipaddress.IPv4Network(self.guest_subnet)[1]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> HostConfig:
        """Inverse of :meth:`to_json`. Raises ConfigError on unknown or missing keys."""
        try:
            limits = Limits(**data.get("limits", {}))
            pool = PoolConfig(**data.get("pool", {}))
            liveness = LivenessConfig(**data.get("liveness", {}))
            lists = {k: tuple(data[k]) for k in ("overlay_addresses", "overlay_prefixes")}
            store = StoreConfig(**data.get("store", {}))
            nested = {"limits": limits, "pool": pool, "liveness": liveness, "store": store}
            return cls(**{**data, **lists, **nested})
        except (KeyError, TypeError) as exc:
            raise ConfigError(f"orchestrator configuration: {exc}") from exc

    @classmethod
    def load(cls, path: Path) -> HostConfig:
        """Read the file. Raises ConfigError naming the path and the reason."""
        try:
            return cls.from_json(json.loads(path.read_text()))
        except (OSError, ValueError) as exc:
            raise ConfigError(f"{path}: {exc}") from exc
