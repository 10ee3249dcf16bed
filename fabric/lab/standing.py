"""What a link does to frames: its delay, rate and loss, and whether it carries any at all.

Owns: Standing. May import: errors. The topology file gives every link one, ``fabric link set``
another, which is recorded with the lab until the next ``fabric up`` goes back to the file.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from fabric.errors import ConfigError

UP = "up"
DOWN = "down"
"""No carrier at either end, as with a cable pulled."""
SILENT = "silent"
"""Carrier at both ends and nothing gets through: only who asks and gets no answer can notice."""
STATES = (UP, DOWN, SILENT)


@dataclass(frozen=True)
class Standing:
    """The same in both directions."""

    latency_us: int = 0
    """One way, microseconds."""
    jitter_us: int = 0
    """How far the latency strays to either side, microseconds, evenly spread; never below 0."""
    bandwidth_bps: int = 0
    """Bits per second, 0 unlimited."""
    loss: float = 0.0
    """Probability of losing a frame, 0 … 1."""
    state: str = UP

    @property
    def impaired(self) -> bool:
        """Whether frames must be delayed or lost, beyond what a token bucket does."""
        return bool(self.latency_us or self.jitter_us or self.loss)

    @property
    def slowest_us(self) -> int:
        """The longest a frame can be on the way, microseconds."""
        return self.latency_us + self.jitter_us

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Standing:
        """Inverse of :meth:`to_json`. Raises ConfigError."""
        try:
            standing = cls(**data)
        except TypeError as exc:
            raise ConfigError(f"recorded link: {exc}") from exc
        if standing.state not in STATES:
            raise ConfigError(f"recorded link: state {standing.state}")
        return standing

    def changes_from(self, before: Standing) -> list[str]:
        """What is different, each as ``delay 2 ms → 20 ms``."""
        return [
            f"{_SAID[each.name]} {said(before, each.name)} → {said(self, each.name)}"
            for each in fields(self)
            if getattr(before, each.name) != getattr(self, each.name)
        ]


_SAID = {
    "latency_us": "delay",
    "jitter_us": "jitter",
    "bandwidth_bps": "rate",
    "loss": "loss",
    "state": "state",
}


def said(standing: Standing, name: str) -> str:
    """One attribute for people."""
    value = getattr(standing, name)
    if name == "state":
        return str(value)
    if name == "loss":
        return f"{value * 100:g} %"
    if name == "bandwidth_bps":
        return f"{value / 1e6:g} Mb/s" if value else "unlimited"
    return f"{value / 1000:g} ms"
