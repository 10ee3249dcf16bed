"""The reference of the spawn benchmark: the same guests from QEMUs started by hand.

Owns: which steps stand for which tier, and the namespace they happen in. May import: errors, wire,
routing, host, lab. The clock starts where the request would: see :data:`WAYS`. It ends, as for the
fabric's guests, when the kernel sees the first fabric packet come out of the guest.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Self

from fabric.errors import GuestFault
from fabric.host.config import HostConfig
from fabric.host.identity import GuestIdentity
from fabric.host.network.netns import enter_netns
from fabric.lab import names
from fabric.lab.bench.bed import Bed, ip_batch
from fabric.lab.bench.capture import Capture, Sighting
from fabric.lab.bench.raw_command import Place, adapted
from fabric.lab.bench.raw_guest import DEADLINE, RawGuest, Setting
from fabric.lab.bench.samples import FIRST_PACKET, Sample
from fabric.lab.resources import GUEST_GATEWAY_V6
from fabric.wire.contract import GATEWAY_MAC

OWNER = "-raw"
"""Owner name of the namespace. A host name never starts with a hyphen, so it cannot clash."""
BRIDGE = "raw"
GUESTS_GROUP = Path("/sys/fs/cgroup/cpu/machine/tasks")
FIRST_CONNECTION = 1 << 62
"""Numbers of reference connections: far from every node's."""


@dataclass(frozen=True)
class Way:
    """Steps of a reference guest, by their names in RawGuest."""

    ahead: tuple[str, ...]
    """Before the clock starts."""
    timed: tuple[str, ...]
    compared: str


WAYS = {
    "cold": Way(
        (),
        ("start", "boot", "push", "greet", "configure"),
        "QEMU by hand: started, booted, agent pushed over SSH, configured",
    ),
    "template": Way(
        (),
        ("start", "arm", "wake_instructed"),
        "QEMU by hand: started, told who it is and what to do, state loaded",
    ),
    "prepared": Way(
        ("start", "arm"),
        ("wake_instructed",),
        "QEMU by hand, waiting for its state: told who it is and what to do, state loaded",
    ),
    "warm": Way(
        ("start", "arm", "wake", "identify"),
        ("configure",),
        "QEMU by hand, running and somebody: told what to do",
    ),
}
"""All end with the first fabric packet, which comes after the last step."""
PHASES = {
    "start": "domain",
    "boot": "booted",
    "push": "pushed",
    "greet": "hello",
    "arm": "armed",
    "wake_instructed": "resumed",
    "configure": "configured",
}
"""What the fabric's own guests call the phase that a step is."""


@dataclass(frozen=True)
class _Clock:
    """When a guest's timed part began, and what each step took."""

    began_us: float
    steps_us: dict[str, float]


class Reference:
    """Room for ``seats`` guests at once, in a namespace of their own. A context manager."""

    def __init__(
        self, bed: Bed, host: HostConfig, argv: Sequence[str], setting: Setting, seats: int
    ) -> None:
        """``host``: whose guests these resemble; ``argv``: of a real guest of its."""
        self._bed, self._host, self._argv, self._setting = bed, host, list(argv), setting
        self._seats = seats
        self._namespace = names.namespace_name(host.lab, OWNER)
        self._directory = bed.spec.run_dir / "raw"
        self._numbers = itertools.count(FIRST_CONNECTION)
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            world = stack.enter_context(self._bed.machine.world())
            world.create_namespace(self._namespace, names.Owner(self._host.lab, OWNER))
            stack.callback(world.delete_namespace, self._namespace)
            ip_batch(self._namespace, self._wiring())
            self._directory.mkdir(exist_ok=True)
            capture = Capture(self._namespace, [BRIDGE], self._host.port)
            self._capture = stack.enter_context(capture)
            # A thread each: they are what the kernel ends the QEMUs with, see ENDED_WITH_US.
            self._pool = stack.enter_context(
                ThreadPoolExecutor(self._seats, initializer=_enter, initargs=(self._namespace,))
            )
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    @contextlib.contextmanager
    def guests(self, tier: str, number: int) -> Iterator[list[RawGuest]]:
        """``number`` guests for :meth:`round`, all done that the tier does ahead; gone at the end.
        Raises GuestFault."""
        guests = [self._guest(index) for index in range(1, number + 1)]
        try:
            if WAYS[tier].ahead:
                self._all(guests, WAYS[tier].ahead)
            yield guests
        finally:
            for guest in guests:
                guest.close()

    def round(self, tier: str, guests: Sequence[RawGuest]) -> list[Sample]:
        """All of them at once. Raises GuestFault."""
        self._capture.forget()
        clocks = self._all(guests, WAYS[tier].timed)
        departures = self._departures(guests)
        return [_sample(c, at, tier) for c, at in zip(clocks, departures, strict=True)]

    def _guest(self, index: int) -> RawGuest:
        channel, monitor = (self._directory / f"{name}{index}" for name in ("c", "m"))
        derived = GuestIdentity.derive(self._host, index)
        identity = replace(derived, channel=channel)
        address = f"{identity.address}/{identity.prefix_length}"
        place = Place(f"raw-{index}", f"tap{index}", identity.mac, address, monitor, channel)
        argv = adapted(self._argv, place)
        return RawGuest(argv, identity, monitor, self._setting)

    def _all(self, guests: Sequence[RawGuest], steps: Sequence[str]) -> list[_Clock]:
        """The same steps of all guests, begun together."""
        together = threading.Barrier(len(guests))

        def go(guest: RawGuest) -> _Clock:
            guest.connection = next(self._numbers)
            together.wait(DEADLINE)
            began = now = time.time_ns()
            took = {}
            for step in steps:
                getattr(guest, step)()
                before, now = now, time.time_ns()
                took[step] = (now - before) / 1e3
            return _Clock(began / 1e3, took)

        return list(self._pool.map(go, guests))

    def _departures(self, guests: Sequence[RawGuest]) -> list[float]:
        """When each guest's first packet of its present connection came out. Raises GuestFault."""
        wanted = {guest.connection for guest in guests}

        def complete(seen: list[Sighting]) -> bool:
            return wanted <= {each.connection for each in seen}

        seen = self._capture.until(complete, DEADLINE)
        if not complete(seen):
            raise GuestFault("a reference guest forwards nothing")
        first = {each.connection: each.at_us for each in reversed(seen)}
        return [first[guest.connection] for guest in guests]

    def _wiring(self) -> list[str]:
        """Like a host's, without the fabric: a bridge with the gateway's addresses, taps."""
        length = self._host.guest_subnet.partition("/")[2]
        mtu = self._setting.mtu
        lines = [
            f"link add {BRIDGE} mtu {mtu} address {GATEWAY_MAC} type bridge",
            f"address add {self._host.gateway}/{length} dev {BRIDGE}",
            f"address add {GUEST_GATEWAY_V6} dev {BRIDGE} nodad",
            f"link set {BRIDGE} up",
        ]
        for index in range(1, self._seats + 1):
            lines += [
                f"tuntap add dev tap{index} mode tap vnet_hdr",
                f"link set tap{index} mtu {mtu} master {BRIDGE} up",
            ]
        return lines


def _enter(namespace: str) -> None:
    """Have this thread, and the QEMUs it starts, where the fabric's guests are: libvirt's control
    group gets one share of the processors, so that other work on the machine slows both alike."""
    enter_netns(namespace)
    with contextlib.suppress(OSError):  # version 2 of control groups takes whole processes only
        GUESTS_GROUP.write_text(str(threading.get_native_id()))


def _sample(clock: _Clock, departure_us: float, tier: str) -> Sample:
    phases: dict[str, float] = {}
    for step, us in clock.steps_us.items():
        phases[PHASES[step]] = phases.get(PHASES[step], 0.0) + us
    total = departure_us - clock.began_us
    # Below zero: it was out before the last step's answer had been read.
    phases[FIRST_PACKET] = total - sum(clock.steps_us.values())
    return Sample(_ms(total), {name: _ms(us) for name, us in phases.items()}, tier)


def _ms(us: float) -> float:
    return round(us / 1e3, 3)
