"""A lab for tests of checks: answers as told, on a clock that runs only when somebody sleeps.

Owns: FakeGround. May import: lab.checking, lab.validation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from fabric.errors import Unreachable
from fabric.lab.checking.ground import Carried, Exchange, Sent, Stream
from fabric.lab.validation import Check


@dataclass
class FakeGround:
    """One path for everything; a link of it may be cut and repaired after ``outage`` seconds."""

    path: tuple[str, ...] = ("h1", "h2", "h4")
    protocol: str = "shortest"
    answers: int = 1000
    """Of the messages of an exchange, at most."""
    outage: float | None = 0.1
    """Seconds from a cut to its repair; None: never."""
    delay: float = 0.01
    always_losing: bool = False
    hoard: float = 0.0
    """Seconds: what was sent so long before a link came back arrives when it does."""
    unreachable: bool = False
    rate: int = 200
    clock: float = 100.0
    cuts: list[tuple[str, str, bool]] = field(default_factory=list)
    restored: int = 0
    on_sleep: Callable[[], None] = lambda: None
    """Called within every sleep: where an interrupt strikes."""
    dead: list[tuple[float, float]] = field(default_factory=list)
    """When nothing that is sent arrives: from, to."""

    @property
    def carried(self) -> Carried:
        return Carried("0000000000000001", self.protocol, (self.path,) if self.path else ())

    def now(self) -> float:
        return self.clock

    def sleep(self, seconds: float) -> None:
        self.clock += seconds
        self.on_sleep()

    def exchange(self, check: Check, program: str, count: int, port: int = 0) -> Exchange:
        if self.unreachable:
            raise Unreachable("namespace is gone")
        answered = min(count, self.answers)
        error = "" if answered == count else "no answer in time"
        return Exchange(count, (20.0,) * answered, error, self.carried)

    @contextmanager
    def stream(self, check: Check) -> Iterator[Stream]:
        yield _FakeStream(self, self.clock)

    @contextmanager
    def cut(self, link: tuple[str, str], *, silent: bool) -> Iterator[Callable[[], None]]:
        def cut() -> None:
            self.cuts.append((*link, silent))
            self.dead = [(self.clock, self.clock + (1e9 if self.outage is None else self.outage))]

        try:
            yield cut
        finally:
            self.restored += 1
            self.dead = [(begin, min(end, self.clock)) for begin, end in self.dead]

    def lost(self, at: float) -> bool:
        """Whether a packet sent then never arrives."""
        return self.always_losing or any(begin <= at < end for begin, end in self.dead)


@dataclass
class _FakeStream:
    ground: FakeGround
    began: float

    @property
    def carried(self) -> Carried:
        return self.ground.carried

    def packets(self, since: float) -> Sequence[Sent]:
        ground = self.ground
        found = []
        first = max(0, round((since - self.began) * ground.rate))
        for number in range(first, round((ground.clock - self.began) * ground.rate)):
            at = self.began + number / ground.rate
            arrived = at + ground.delay
            there = arrived <= ground.clock and not ground.lost(at)
            for begin, end in ground.dead:
                if max(begin, end - ground.hoard) <= at < end < ground.clock:
                    there, arrived = True, end + ground.delay
            found.append(Sent(at, arrived if there else None))
        return found
