"""The running lab, as checks see it: traffic between hosts, hop records, links to cut.

Owns: Ground and what its calls return. May import: lab.validation. One implementation runs real
programs on real hosts (:mod:`fabric.lab.checking.field`); tests put one beside it that remembers
and answers (:mod:`fabric.lab.checking.ground_fake`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Protocol

from fabric.lab.validation import Check


@dataclass(frozen=True)
class Carried:
    """How the fabric carried a connection, by its own hop records."""

    connection: str = ""
    protocol: str = ""
    paths: tuple[tuple[str, ...], ...] = ()
    """Hosts from first to last, every way that packets toward the target took."""


@dataclass(frozen=True)
class Exchange:
    """Questions and answers."""

    asked: int
    rtts_ms: tuple[float, ...] = ()
    """One for each answer."""
    error: str = ""
    carried: Carried = field(default_factory=Carried)


@dataclass(frozen=True)
class Sent:
    """One packet of a stream."""

    at: float
    """Seconds, monotonic."""
    arrived: float | None
    """None as long as it has not."""


class Stream(Protocol):
    """Packets at a constant rate from one host to another; it has started and runs."""

    @property
    def carried(self) -> Carried: ...

    def packets(self, since: float) -> Sequence[Sent]:
        """Those sent since then, in order."""


class Ground(Protocol):
    """Where checks are tried. Raises FabricError when it cannot be."""

    def exchange(self, check: Check, program: str, count: int, port: int = 0) -> Exchange:
        """``count`` messages there and back, as ``check`` says who and how."""

    def stream(self, check: Check) -> AbstractContextManager[Stream]:
        """A stream that arrives; it ends with the block."""

    def cut(
        self, link: tuple[str, str], *, silent: bool
    ) -> AbstractContextManager[Callable[[], None]]:
        """The link is cut by a call of what this yields, and restored by the end of the block."""

    def now(self) -> float:
        """Seconds, monotonic."""

    def sleep(self, seconds: float) -> None: ...
