"""The forwarding benchmark: the fabric beside kernel forwarding and a bare loop, on real guests.

Owns: the order of measurements. May import: errors, host, lab. Per size, the fabric and its
references are measured one right after the other, so that a slow minute of the machine meets all.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path as File
from typing import Any

from fabric.errors import FabricError, GuestFault, UserError
from fabric.lab.bench import guest_loop, profiling
from fabric.lab.bench.bed import PORT, Bed, Seat
from fabric.lab.bench.kernel_path import address, let_answers_in, open_path
from fabric.lab.bench.measure import Figure, add_ratios
from fabric.lab.bench.paths import Path
from fabric.lab.builder import Progress
from fabric.lab.spec import Options

SIZES = (64, 512, 1400, 8000)
"""Bytes of inner packets: the smallest, a usual mean, a full Ethernet frame, a full jumbo frame."""
SMALLEST = 44
"""Bytes: IPv4, UDP and the sender's stamp."""
SECONDS = 1.5
"""Of one trial."""
STREAM_TRIALS = 4
"""A TCP stream lasts as long as this many trials: it has to find its window first."""
MAX_HOPS = 8
LOOP_PORT, BACK_PORT = 5301, 5302
SOURCE_PORT = 40_000
FIRST_GUESS = {"fabric": 1000.0, "kernel": 8000.0, "loop": 2000.0}
"""Packets/s to try first, by kind."""
UDP_NETWORK, TCP_NETWORK = 0, 1
"""Reference networks: through the guests of the UDP connection, and of the TCP connection."""
FIRST_PACKET_DEADLINE = 30.0
"""Seconds from all guests being ready to the first packet that is through."""


@dataclass(frozen=True)
class Plan:
    """What to measure. Raises UserError for what makes no sense."""

    hops: tuple[int, ...] = (1, 2, 3)
    sizes: tuple[int, ...] = SIZES
    seconds: float = SECONDS
    profile: bool = False
    name: str = "bench"
    """Of the labs."""

    def __post_init__(self) -> None:
        if not self.hops or not all(1 <= hops <= MAX_HOPS for hops in self.hops):
            raise UserError(f"hops must be 1 to {MAX_HOPS}", cure="for example --hops 1,2,3")
        if not all(size >= SMALLEST for size in self.sizes):
            raise UserError(f"sizes are of whole IP packets, at least {SMALLEST} bytes")
        if self.seconds <= 0:
            raise UserError("a trial must last some seconds")

    @property
    def profiled_hops(self) -> int | None:
        """Where the profile is taken: the shortest path with a relay, if there is one."""
        if not self.profile:
            return None
        return min((hops for hops in self.hops if hops > 1), default=self.hops[0])


@dataclass
class Outcome:
    """Everything one run found."""

    figures: list[Figure] = field(default_factory=list)
    profiles: list[dict[str, Any]] = field(default_factory=list)


def run(plan: Plan, options: Options, progress: Progress, found: list[dict[str, Any]]) -> None:
    """Measure; ``found`` gets one document per figure, and the profiles. Raises what bringing up a
    lab raises, and GuestFault when no packet gets through."""
    outcome = Outcome()
    try:
        _measure(plan, options, progress, outcome)
    finally:
        add_ratios(outcome.figures)
        found += [figure.to_json() for figure in outcome.figures] + outcome.profiles


def _measure(plan: Plan, options: Options, progress: Progress, outcome: Outcome) -> None:
    for hops in plan.hops:
        progress(f"{hops} hops: bringing up {hops + 1} hosts")
        # Guests that booted: how they appeared does not matter here, and a copy's way in ends with
        # its agent, which profiles replace.
        booted = replace(options, tier=options.tier or "cold")
        with Bed(hops, plan.name, booted, lambda _line: None) as bed:
            _Run(bed, hops, plan, outcome, progress).all()
        progress(f"{hops} hops: taken down")


class _Run:
    """One number of hops."""

    def __init__(
        self, bed: Bed, hops: int, plan: Plan, outcome: Outcome, progress: Progress
    ) -> None:
        self.bed, self.hops, self.plan = bed, hops, plan
        self.outcome, self.progress = outcome, progress
        first, last = bed.hosts[0], bed.hosts[-1]
        self.receiver = bed.program(last, "receive", str(PORT))
        self.back = bed.program(first, "receive", str(BACK_PORT))
        self.sender = bed.program(first, "send")

    def all(self) -> None:
        """Connect, open the references, measure, profile."""
        udp = self._connect()
        tcp = self._connect_stream()
        self.progress(f"{self.hops} hops: {len(udp.seats)} guests per connection, all forward")
        mtu = udp.seats[0].host.overlay_mtu
        open_path(self.bed, udp.seats, UDP_NETWORK, mtu)
        open_path(self.bed, tcp.seats, TCP_NETWORK, mtu)
        paths = [udp, self._kernel(udp, UDP_NETWORK)]
        with self._loop(udp.seats[0]) as loop:
            # One guest's loop does not depend on the number of hops.
            paths += [loop] if self.hops == self.plan.hops[0] else []
            for size in self.plan.sizes:
                if size > mtu:
                    self.progress(f"{size} bytes: the overlay takes {mtu} at most, left out")
                    continue
                for path in paths:
                    self._note(path.rate(size, self.plan.seconds))
        for path in (tcp, self._kernel(tcp, TCP_NETWORK)):
            self._note(path.stream(self.plan.seconds * STREAM_TRIALS))
        if self.hops == self.plan.profiled_hops:
            try:
                self._profile(udp, tcp)
            except FabricError as exc:  # the figures are worth having without it
                self.progress(f"{self.hops} hops: profile broken off: {exc}")

    def _note(self, figure: Figure) -> None:
        self.outcome.figures.append(figure)
        rate = "" if figure.packets_per_s is None else f" {figure.packets_per_s:.0f} packets/s"
        size = "" if figure.size is None else f" {figure.size} bytes"
        name = f"{figure.hops} hops, {figure.kind}, {figure.transport}{size}"
        self.progress(f"{name}:{rate} {figure.mbit_s:g} Mb/s")

    def _connect(self) -> Path:
        source = (self.bed.overlay[0], SOURCE_PORT)
        target = (self.bed.overlay[-1], PORT)
        path = Path(
            "fabric", self.hops, self.sender, self.receiver, source, target, (),
            FIRST_GUESS["fabric"],
        )  # fmt: skip
        path.trial(SMALLEST, 10, 0.3)
        path = replace(path, seats=self.bed.seats(source, target))
        deadline = time.monotonic() + FIRST_PACKET_DEADLINE
        while not path.trial(SMALLEST, 50, 0.3).delivered:
            if time.monotonic() > deadline:
                raise GuestFault("guests are there, but no packet of the benchmark gets through")
        return path

    def _connect_stream(self) -> Path:
        source = (self.bed.overlay[0], SOURCE_PORT + 1)
        target = (self.bed.overlay[-1], PORT)
        path = Path("fabric", self.hops, self.sender, self.receiver, source, target, (), 0.0)
        path.send_stream(0)
        return replace(path, seats=self.bed.seats(source, target))

    def _kernel(self, like: Path, network: int) -> Path:
        first, last = self.bed.hosts[0].node, self.bed.hosts[-1].node
        return replace(
            like,
            kind="kernel",
            source=(address(network, first), like.source[1]),
            target=(address(network, last), PORT),
            guess=FIRST_GUESS["kernel"],
        )

    @contextlib.contextmanager
    def _loop(self, seat: Seat) -> Iterator[Path]:
        """The bare loop runs in the first guest for as long as the block lasts."""
        gateway = str(seat.host.gateway)
        let_answers_in(self.bed, seat, BACK_PORT)
        argv = ["python3", "-I", "-S", "-", str(LOOP_PORT), gateway, str(BACK_PORT)]
        source, target = (gateway, SOURCE_PORT + 2), (seat.address, LOOP_PORT)

        def serve() -> None:
            # What went wrong shows as a loop that delivers nothing.
            with contextlib.suppress(FabricError):
                self.bed.in_guest(seat, argv, File(guest_loop.__file__))

        thread = threading.Thread(target=serve)
        thread.start()
        path = Path(
            "loop", self.hops, self.sender, self.back, source, target, [seat], FIRST_GUESS["loop"]
        )
        try:
            deadline = time.monotonic() + FIRST_PACKET_DEADLINE
            while not path.trial(SMALLEST, 50, 0.3).delivered:
                if time.monotonic() > deadline:
                    raise GuestFault(f"{seat.domain}: the reference loop does not answer")
            yield path
        finally:
            self.sender.ask(do="end", source=source, target=target)
            thread.join()

    def _profile(self, udp: Path, tcp: Path) -> None:
        known = [
            figure.packets_per_s
            for figure in self.outcome.figures
            if (figure.hops, figure.kind, figure.size) == (self.hops, "fabric", profiling.SIZE)
        ]
        rates = known or [udp.rate(profiling.SIZE, self.plan.seconds).packets_per_s]
        sustained = rates[0] or 1.0
        seconds = self.plan.seconds * STREAM_TRIALS
        for path, rate in ((udp, sustained), (tcp, 0.0)):
            for found in profiling.profiles(self.bed, path, seconds, rate):
                self.outcome.profiles.append(found)
                what = f"{found['role']}, {found['transport']}, {found['mode']}"
                self.progress(f"{self.hops} hops: profiled {what}")
