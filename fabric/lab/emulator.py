"""The link emulator: a process that delays and loses frames where the kernel has no netem.

Owns: the raw sockets, the timer and the loop of ``python -m fabric.lab.emulator CONFIG READY_FD``.
May import: errors, lab.delay_line. It runs in a namespace of its own, between two veth pairs per
impaired link, sleeps until a frame or a deadline comes, and ends on SIGTERM.

Frames are moved with their virtio-net header (packet(7), PACKET_VNET_HDR): a TCP super-frame of
64 KiB passes as one, with its checksum still to be filled in by whoever cuts it. That is what lets
a Python loop carry hundreds of Mb/s.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any

from fabric.errors import ConfigError, EnvironmentFault
from fabric.lab.delay_line import DelayLine

# linux/if_packet.h; the socket module of Python 3.11 does not have them.
SOL_PACKET = 263
PACKET_VNET_HDR = 15
PACKET_IGNORE_OUTGOING = 23
ETH_P_ALL = 3
SO_RCVBUFFORCE = 33
# linux/timerfd.h
TFD_NONBLOCK = os.O_NONBLOCK
TFD_CLOEXEC = os.O_CLOEXEC
TFD_TIMER_ABSTIME = 1

FRAME_BYTES = 1 << 17
"""Largest frame read: 64 KiB of GSO payload with headers, doubled for good measure."""
RECEIVE_BUFFER_BYTES = 8 << 20
"""Kernel buffer per socket: 64 ms of 1 Gb/s, for when this process is not scheduled at once."""
BURST_FRAMES = 64
"""Frames read from one socket before the others and the timer get their turn."""
NANOSECONDS = 1_000_000_000


@dataclass(frozen=True)
class ImpairedLink:
    """One link through the emulator: two of its interfaces and what lies between them."""

    a: str
    b: str
    delay_us: int
    """One-way delay, microseconds, the same in both directions."""
    loss: float
    seed: int
    """Seed of the losses: the same lab loses the same frames of the same traffic."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class Timer:
    """A timerfd on CLOCK_MONOTONIC. epoll's own timeout counts whole milliseconds, this does not.

    Python has no wrapper for timerfd before 3.13.
    """

    def __init__(self) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self._settime = libc.timerfd_settime
        self._value = (ctypes.c_long * 4)()  # struct itimerspec: interval s, ns; value s, ns
        self._armed: int | None = None
        self.descriptor: int = libc.timerfd_create(time.CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC)
        if self.descriptor < 0:
            number = ctypes.get_errno()
            raise EnvironmentFault(f"timerfd_create: {os.strerror(number)}")

    def arm(self, due_ns: int | None) -> None:
        """Fire at ``due_ns`` of the monotonic clock; None disarms."""
        if due_ns == self._armed:
            return
        self._armed = due_ns
        # A value of zero would disarm, so an overdue deadline is at least 1 ns.
        seconds, nanoseconds = divmod(max(due_ns, 1), NANOSECONDS) if due_ns is not None else (0, 0)
        self._value[2], self._value[3] = seconds, nanoseconds
        self._settime(self.descriptor, TFD_TIMER_ABSTIME, ctypes.byref(self._value), None)

    def expired(self) -> None:
        """Take note that it fired, so that it can fire again."""
        self._armed = None
        # Re-armed between the wake-up and this read means: not expired after all.
        with contextlib.suppress(BlockingIOError):
            os.read(self.descriptor, 8)

    def close(self) -> None:
        os.close(self.descriptor)


def open_port(interface: str) -> socket.socket:
    """A raw socket that sees what arrives on ``interface`` and nothing that we send ourselves.

    Raises EnvironmentFault when the interface is missing or root is not given.
    """
    try:
        # Protocol 0 receives nothing until bind() names the interface: no stray frames before.
        port = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    except OSError as exc:
        raise EnvironmentFault(f"raw socket: {exc.strerror}", cure="run as root") from exc
    try:
        port.setblocking(False)
        port.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
        port.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
        port.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, RECEIVE_BUFFER_BYTES)
        port.bind((interface, ETH_P_ALL))
    except OSError as exc:
        port.close()
        raise EnvironmentFault(f"link emulator, interface {interface}: {exc.strerror}") from exc
    return port


@dataclass
class Direction:
    """Frames read from one port, delayed, written to the other."""

    source: socket.socket
    target: socket.socket
    line: DelayLine
    refused: int = 0

    def read(self, scratch: memoryview, now_ns: int) -> None:
        """Take up to a burst of frames off the source."""
        for _ in range(BURST_FRAMES):
            try:
                size = self.source.recv_into(scratch)
            except BlockingIOError:
                return
            except OSError as exc:
                if exc.errno != errno.ENETDOWN:
                    raise
                return  # the far end was taken down: said once per socket, nothing to read
            self.line.push(bytes(scratch[:size]), now_ns)

    def write(self, now_ns: int) -> None:
        """Put the frames that are due onto the target."""
        for frame in self.line.pop_due(now_ns):
            try:
                self.target.send(frame)
            except OSError:
                # A real wire does not wait either: a full device queue or a link that is down
                # loses the frame.
                self.refused += 1


class Emulator:
    """All impaired links of one lab in one loop."""

    def __init__(self, links: Sequence[ImpairedLink]) -> None:
        self._links = links
        self._directions: list[Direction] = []
        self._stopping = False

    def run(self, ready: int | None = None) -> None:
        """Carry frames until SIGTERM. ``ready``: descriptor that gets ``ready`` and is closed.

        Raises EnvironmentFault when an interface is missing.
        """
        with ExitStack() as stack:
            epoll = stack.enter_context(select.epoll())
            by_descriptor = self._open(stack, epoll)
            timer = Timer()
            stack.callback(timer.close)
            epoll.register(timer.descriptor, select.EPOLLIN)
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, self._stop)
            if ready is not None:
                os.write(ready, b"ready\n")
                os.close(ready)
            self._loop(epoll, timer, by_descriptor)

    def _open(self, stack: ExitStack, epoll: select.epoll) -> dict[int, Direction]:
        by_descriptor: dict[int, Direction] = {}
        for link in self._links:
            a, b = (stack.enter_context(open_port(name)) for name in (link.a, link.b))
            for number, (source, target) in enumerate(((a, b), (b, a))):
                rng = Random(link.seed * 2 + number)
                line = DelayLine(link.delay_us * 1000, link.loss, rng)
                by_descriptor[source.fileno()] = Direction(source, target, line)
                epoll.register(source.fileno(), select.EPOLLIN)
        self._directions = list(by_descriptor.values())
        return by_descriptor

    def _loop(self, epoll: select.epoll, timer: Timer, by_descriptor: dict[int, Direction]) -> None:
        scratch = memoryview(bytearray(FRAME_BYTES))
        while not self._stopping:
            for descriptor, _events in epoll.poll():
                if descriptor == timer.descriptor:
                    timer.expired()
                else:
                    by_descriptor[descriptor].read(scratch, time.monotonic_ns())
            now_ns = time.monotonic_ns()
            next_due: int | None = None
            for direction in self._directions:
                direction.write(now_ns)
                due = direction.line.next_due()
                if due is not None and (next_due is None or due < next_due):
                    next_due = due
            timer.arm(next_due)

    def _stop(self, _number: int, _frame: object) -> None:
        # The interrupted epoll.poll() is retried by Python (PEP 475) after this handler: leave it
        # by an exception, as there is nothing to save.
        self._stopping = True
        raise SystemExit(0)


def load_links(path: Path) -> list[ImpairedLink]:
    """Read the configuration the builder wrote. Raises ConfigError naming the file."""
    try:
        return [ImpairedLink(**entry) for entry in json.loads(path.read_text())["links"]]
    except (OSError, ValueError, TypeError, KeyError) as exc:
        raise ConfigError(f"link emulator configuration {path}: {exc}") from exc


if __name__ == "__main__":
    Emulator(load_links(Path(sys.argv[1]))).run(int(sys.argv[2]) if len(sys.argv) > 2 else None)
