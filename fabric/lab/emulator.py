"""The link emulator: a process that delays and loses frames where the kernel has no netem.

Owns: the raw sockets, the timer and the loop of ``python -m fabric.lab.emulator CONFIG READY_FD``.
May import: errors, lab.delay_line. It runs in the namespace the lab's links meet in (see
fabric.lab.switch), sleeps until a frame, a deadline or a request comes, and ends on SIGTERM.

Links are changed while frames are in them: a client of the unix socket named in the configuration
sends a new list of links and gets ``{}`` when it is in force, or ``{"error": …}``.

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

from fabric.errors import ConfigError, EnvironmentFault, Unreachable
from fabric.host.promptness import be_prompt
from fabric.lab.delay_line import DelayLine

REALTIME_PRIORITY = 5
"""SCHED_RR. The most urgent nice value is not enough: beside fifty guests that compute, a process
with it was kept waiting for up to 230 ms (Linux 6.18, two processors)."""

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
REQUEST_TIMEOUT = 0.2
"""Seconds for a client's request to be there: it is sent in one piece."""
ANSWER_TIMEOUT = 5.0
"""Seconds a client waits."""


@dataclass(frozen=True)
class ImpairedLink:
    """One link through the emulator: its interfaces and what lies between them."""

    from_a: str
    """Where frames that left end A arrive; likewise for B."""
    from_b: str
    to_a: str
    """What is sent here arrives at end A; likewise for B."""
    to_b: str
    delay_us: int
    """One-way delay, microseconds, the same in both directions."""
    loss: float
    seed: int
    """Seed of the losses: the same lab loses the same frames of the same traffic."""
    jitter_us: int = 0

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


def open_port(interface: str, *, reads: bool = True) -> socket.socket:
    """A raw socket that sees what arrives on ``interface`` and nothing that we send ourselves;
    nothing at all unless it ``reads``.

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
        port.bind((interface, ETH_P_ALL if reads else 0))
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

    def __init__(self, links: Sequence[ImpairedLink], control: Path | None = None) -> None:
        """``control``: where to take requests for other links."""
        self._links = links
        self._control = control
        self._directions: dict[str, Direction] = {}
        """By the interface their frames are read from."""
        self._by_descriptor: dict[int, Direction] = {}
        self._epoll = select.epoll()
        self._sockets = ExitStack()

    def run(self, ready: int | None = None) -> None:
        """Carry frames until SIGTERM. ``ready``: descriptor that gets ``ready`` and is closed.

        Raises EnvironmentFault when an interface is missing.
        """
        with self._sockets as stack:
            stack.callback(self._epoll.close)
            self.set_links(self._links)
            timer = Timer()
            stack.callback(timer.close)
            self._epoll.register(timer.descriptor, select.EPOLLIN)
            listener = self._listen(stack) if self._control is not None else None
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, self._stop)
            if ready is not None:
                os.write(ready, b"ready\n")
                os.close(ready)
            self._loop(timer, listener)

    def set_links(self, links: Sequence[ImpairedLink]) -> None:
        """Have these links, keeping what is in them. Links not named stay as they are.

        Raises EnvironmentFault when an interface is missing; links before that one are changed.
        """
        for link in links:
            ways = ((link.from_a, link.to_b), (link.from_b, link.to_a))
            for number, (source, target) in enumerate(ways):
                direction = self._directions.get(source)
                if direction is None:
                    direction = self._open(source, target, Random(link.seed * 2 + number))
                direction.line.delay_ns = link.delay_us * 1000
                direction.line.jitter_ns = link.jitter_us * 1000
                direction.line.loss = link.loss

    def _open(self, source: str, target: str, rng: Random) -> Direction:
        reader = self._sockets.enter_context(open_port(source))
        writer = self._sockets.enter_context(open_port(target, reads=False))
        direction = Direction(reader, writer, DelayLine(0, 0.0, rng))
        self._directions[source] = self._by_descriptor[reader.fileno()] = direction
        self._epoll.register(reader.fileno(), select.EPOLLIN)
        return direction

    def _listen(self, stack: ExitStack) -> socket.socket:
        path = str(self._control)
        listener = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        Path(path).unlink(missing_ok=True)
        listener.bind(path)
        listener.listen()
        self._epoll.register(listener.fileno(), select.EPOLLIN)
        return listener

    def _serve(self, listener: socket.socket) -> None:
        """One request; frames wait meanwhile, so the client may not."""
        client, _ = listener.accept()
        with client, contextlib.suppress(OSError):
            client.settimeout(REQUEST_TIMEOUT)
            with client.makefile("r") as reader:
                text = reader.readline()
            try:
                self.set_links([ImpairedLink(**entry) for entry in json.loads(text)["links"]])
                answer = {}
            except (ValueError, TypeError, KeyError, EnvironmentFault) as exc:
                answer = {"error": str(exc)}
            client.sendall(json.dumps(answer).encode() + b"\n")

    def _loop(self, timer: Timer, listener: socket.socket | None) -> None:
        scratch = memoryview(bytearray(FRAME_BYTES))
        asked = listener.fileno() if listener else None
        while True:
            for descriptor, _events in self._epoll.poll():
                if descriptor == timer.descriptor:
                    timer.expired()
                elif descriptor == asked and listener is not None:
                    self._serve(listener)
                else:
                    self._by_descriptor[descriptor].read(scratch, time.monotonic_ns())
            now_ns = time.monotonic_ns()
            next_due: int | None = None
            for direction in self._by_descriptor.values():
                direction.write(now_ns)
                due = direction.line.next_due()
                if due is not None and (next_due is None or due < next_due):
                    next_due = due
            timer.arm(next_due)

    def _stop(self, _number: int, _frame: object) -> None:
        # The interrupted epoll.poll() is retried by Python (PEP 475) after this handler: leave it
        # by an exception, as there is nothing to save.
        raise SystemExit(0)


def change_links(control: Path, links: Sequence[ImpairedLink]) -> None:
    """Have a running emulator carry these links so. Raises Unreachable, EnvironmentFault."""
    document = {"links": [link.to_json() for link in links]}
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            client.settimeout(ANSWER_TIMEOUT)
            client.connect(str(control))
            client.sendall(json.dumps(document).encode() + b"\n")
            with client.makefile("r") as reader:
                answer = json.loads(reader.readline())
    except (OSError, ValueError) as exc:
        raise Unreachable(
            f"the link emulator does not answer at {control}: {exc}",
            cure="`fabric up FILE` starts it again",
        ) from exc
    if "error" in answer:
        raise EnvironmentFault(f"link emulator: {answer['error']}")


def load(path: Path) -> Emulator:
    """An emulator as the builder configured it. Raises ConfigError naming the file."""
    try:
        document = json.loads(path.read_text())
        control = document.get("control")
        links = [ImpairedLink(**entry) for entry in document["links"]]
    except (OSError, ValueError, TypeError, KeyError) as exc:
        raise ConfigError(f"link emulator configuration {path}: {exc}") from exc
    return Emulator(links, Path(control) if control else None)


if __name__ == "__main__":
    # A wire does not wait for guests that boot: what it adds would be measured as its delay, and a
    # tenth of a second of it is a dead link. The link watches come before it.
    be_prompt(REALTIME_PRIORITY)
    load(Path(sys.argv[1])).run(int(sys.argv[2]) if len(sys.argv) > 2 else None)
