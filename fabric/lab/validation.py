"""What a lab promises of itself: the checks of a topology file, read and complete.

Owns: Reach, Path, Blackout. May import: nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

PING, TCP, UDP, HTTP = "ping", "tcp", "udp", "http"
PROGRAMS = (PING, TCP, UDP, HTTP)
DEFAULT_COUNT = 3
DEFAULT_WITHIN = 60.0
"""Seconds for a check's traffic: guests of the slowest tier boot meanwhile, some one by one."""


@dataclass(frozen=True)
class Check:
    """What every kind has."""

    name: str
    source: str
    """Host the traffic starts at."""
    target: str
    need: str | None = None
    """What the program declares; at most one of need and protocol."""
    protocol: str | None = None
    """Name of the protocol it asks for."""
    warning: bool = False
    """Whether a failure is only that."""
    within: float = DEFAULT_WITHIN
    """Seconds."""

    kind = ""


@dataclass(frozen=True)
class Reach(Check):
    """Messages get there and are answered."""

    program: str = PING
    count: int = DEFAULT_COUNT
    port: int = 80
    """Of the service asked, for ``http``."""
    loss: float = 0.0
    """Part of the answers that may be missing, 0 … 1."""

    kind = "reach"


@dataclass(frozen=True)
class Path(Check):
    """Packets of a connection go by certain hosts, as their hop records have it."""

    program: str = TCP
    contains: tuple[str, ...] = ()
    avoids: tuple[str, ...] = ()
    exactly: tuple[str, ...] = ()
    """All hosts in order, both ends included; nothing said when empty."""

    kind = "path"


@dataclass(frozen=True)
class Blackout(Check):
    """A stream that runs over a link is whole again soon after the link is cut."""

    cut: tuple[str, str] = ("", "")
    below: float = 0.0
    """Seconds, loss-derived (RFC 6413 section 6.5)."""
    silent: bool = False
    """Whether the link keeps its carrier, so that nobody is told."""

    kind = "blackout"
