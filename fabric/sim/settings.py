"""What a simulation is asked.

Owns: Settings and its defaults. May import: routing.
"""

from __future__ import annotations

from dataclasses import dataclass

from fabric.routing.definitions import Definition


@dataclass(frozen=True)
class Settings:
    """Times in µs."""

    protocols: tuple[Definition, ...]
    pairs: int = 50
    """Streams per protocol, each between two hosts drawn at random; all pairs where there are fewer
    of them."""
    interval_us: int = 10_000
    """Between two packets of a stream: what a blackout is measured to."""
    bfd_interval_us: int = 50_000
    bfd_multiplier: int = 3
    """A neighbour is dead after so many intervals without a packet (RFC 5880)."""
    store_us: int = 20_000
    """From publishing a change until another host hears of it, on average: half to one and a half
    times it, drawn for each host."""
    compute_us: int = 10_000
    """From hearing of a change until the new table holds; what is heard meanwhile is in it."""
    spawn_us: int = 0
    """Until a host that never saw a connection has a guest for it; packets are held meanwhile."""
    repair: bool = True
    """Whether hosts take alternates when a neighbour is dead, before there are new tables."""
    settle_us: int = 1_000_000
    """How long streams go on after the last change."""
    lead_us: int = 100_000
    """How long they run before the first one."""
    seed: int = 1

    def to_json(self) -> dict[str, object]:
        """Plain data, times in ms."""
        return {
            "protocols": [each.name for each in self.protocols],
            "pairs": self.pairs,
            "packet_interval_ms": self.interval_us / 1000,
            "bfd_interval_ms": self.bfd_interval_us / 1000,
            "bfd_multiplier": self.bfd_multiplier,
            "store_delay_ms": self.store_us / 1000,
            "compute_delay_ms": self.compute_us / 1000,
            "spawn_delay_ms": self.spawn_us / 1000,
            "local_repair": self.repair,
            "settle_ms": self.settle_us / 1000,
            "seed": self.seed,
        }
