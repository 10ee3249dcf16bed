"""Programs of the benchmark that run on the hosts: a sender and a receiver.

Owns: ``python -m fabric.lab.bench.traffic send|receive PORT``. May import: the standard library.
They take JSON lines on standard input and answer each by one on standard output, so that one
socket, and so one connection of the fabric, serves a whole series.
"""

from __future__ import annotations

import contextlib
import json
import select
import socket
import sys
import time
from collections.abc import Callable
from struct import Struct
from typing import Any

STAMP = Struct("!IIQ")
"""Run, sequence, time of sending (ns, monotonic: all hosts of a lab share this machine's clock)."""
IP_UDP = 28
"""Bytes of IPv4 and UDP header: sizes are those of the inner packet."""
TICK = 0.001
"""Seconds between the sender's bursts: what a timer reaches without spinning."""
LONGEST_BURST = 256
"""Packets at once, when the sender has fallen behind: a scheduler's pause is not made up for by a
burst no application would send."""
BUFFER = 32 << 20
"""Bytes of the receiver's socket buffer: loss is to happen in the fabric, not behind it."""
QUIET = 0.3
"""Seconds without a packet after which what was sent counts as arrived or lost."""
DRAIN_LIMIT = 8.0
"""Seconds to wait for that, at most."""
SAMPLE_EVERY = 7
"""Every how many packets a delay is kept."""
BIN = 0.25
"""Seconds of one figure in the series of a TCP stream."""
TCP_CHUNK = 256 * 1024
CONNECT_TIMEOUT = 180.0
"""Seconds until a connection stands: guests of several hosts may boot one after the other."""
STALL_TIMEOUT = 30.0
"""Seconds a stream may stand still."""
END = b"end"
"""What fabric.lab.bench.guest_loop takes for its end."""
_SO_RCVBUFFORCE = 33


class Sender:
    """Commands: ``udp`` and ``tcp``; see the methods."""

    def __init__(self) -> None:
        self._sockets: dict[tuple[Any, ...], socket.socket] = {}

    def answer(self, command: dict[str, Any]) -> dict[str, Any]:
        """Carry out one command."""
        act: Callable[[dict[str, Any]], dict[str, Any]] = getattr(self, command["do"])
        return act(command)

    def udp(self, command: dict[str, Any]) -> dict[str, Any]:
        """``rate`` packets/s of ``size`` bytes for ``seconds``, from ``source`` to ``target``."""
        link = self._socket(socket.SOCK_DGRAM, command)
        payload = bytearray(max(STAMP.size, command["size"] - IP_UDP))
        rate, run, pack, clock = command["rate"], command["run"], STAMP.pack_into, time.monotonic_ns
        sent = refused = 0
        begin = clock()
        end = begin + int(command["seconds"] * 1e9)
        while (now := clock()) < end:
            due = int((now - begin) * rate / 1e9) + 1 - sent - refused
            for _ in range(min(due, LONGEST_BURST)):
                pack(payload, 0, run, sent, clock())
                try:
                    link.send(payload)
                    sent += 1
                except OSError:  # an ICMP error of an earlier packet; a full queue
                    refused += 1
            if due < LONGEST_BURST:
                time.sleep(TICK)
        return {"sent": sent, "refused": refused, "seconds": (clock() - begin) / 1e9}

    def tcp(self, command: dict[str, Any]) -> dict[str, Any]:
        """As much as goes through one stream in ``seconds``; 0 only connects."""
        link = self._socket(socket.SOCK_STREAM, command)
        data = bytes(TCP_CHUNK)
        begin = time.monotonic()
        sent = 0
        while time.monotonic() < begin + command["seconds"]:
            sent += link.send(data)
        return {"sent": sent, "seconds": time.monotonic() - begin}

    def end(self, command: dict[str, Any]) -> dict[str, Any]:
        """Tell a program in a guest that it is over."""
        link = self._socket(socket.SOCK_DGRAM, command)
        with contextlib.suppress(OSError):
            link.send(END)
        return {"sent": 1}

    def _socket(self, kind: socket.SocketKind, command: dict[str, Any]) -> socket.socket:
        source, target = tuple(command["source"]), tuple(command["target"])
        key = (kind, source, target)
        if key not in self._sockets:
            link = socket.socket(socket.AF_INET, kind)
            link.settimeout(CONNECT_TIMEOUT)
            link.bind(source)
            link.connect(target)
            link.settimeout(STALL_TIMEOUT)
            self._sockets[key] = link
        return self._sockets[key]


class Receiver:
    """Counts UDP by run number and TCP by time. Commands: ``run`` and ``stream``."""

    def __init__(self, port: int) -> None:
        self._udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._listener = socket.create_server(("0.0.0.0", port))
        with contextlib.suppress(OSError):
            self._udp.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, BUFFER)
        self._udp.bind(("0.0.0.0", port))
        self._udp.setblocking(False)
        self._streams: list[socket.socket] = []
        self._buffer = memoryview(bytearray(1 << 20))
        self._runs: dict[int, _Run] = {}
        self._bins: dict[int, int] = {}
        self._last = 0.0

    def serve(self) -> None:
        """Until standard input ends."""
        while True:
            waiting = [sys.stdin, self._udp, self._listener, *self._streams]
            readable, _, _ = select.select(waiting, [], [])
            self._take(readable)
            if sys.stdin in readable:
                line = sys.stdin.readline()
                if not line:
                    return
                command = json.loads(line)
                self._drain()
                _say(self._stream() if command["do"] == "stream" else self._report(command["run"]))

    def _drain(self) -> None:
        # What is on its way is still to be counted.
        limit = time.monotonic() + DRAIN_LIMIT
        self._last = time.monotonic()
        while time.monotonic() < min(self._last + QUIET, limit):
            waiting = [self._udp, self._listener, *self._streams]
            self._take(select.select(waiting, [], [], QUIET / 3)[0])

    def _take(self, readable: list[Any]) -> None:
        for link in readable:
            if link is self._udp:
                self._take_datagrams()
            elif link is self._listener:
                self._streams.append(self._listener.accept()[0])
            elif link in self._streams:
                self._take_stream(link)

    def _take_datagrams(self) -> None:
        receive, buffer, unpack = self._udp.recv_into, self._buffer, STAMP.unpack_from
        run = None
        for _ in range(LONGEST_BURST):
            try:
                size = receive(buffer)
            except BlockingIOError:
                break
            now = time.monotonic_ns()
            number, sequence, sent = unpack(buffer)
            if run is None or run.number != number:
                run = self._runs.setdefault(number, _Run(number))
            run.count(size, sequence, now, now - sent)
        self._last = time.monotonic()

    def _take_stream(self, link: socket.socket) -> None:
        try:
            size = link.recv_into(self._buffer)
        except OSError:
            size = 0
        if not size:
            self._streams.remove(link)
            link.close()
            return
        self._last = time.monotonic()
        number = int(self._last / BIN)
        self._bins[number] = self._bins.get(number, 0) + size

    def _report(self, number: int) -> dict[str, Any]:
        return self._runs.pop(number, _Run(number)).to_json()

    def _stream(self) -> dict[str, Any]:
        bins, self._bins = self._bins, {}
        first, last = min(bins, default=0), max(bins, default=-1)
        return {"bin": BIN, "bytes": [bins.get(n, 0) for n in range(first, last + 1)]}


class _Run:
    """What arrived of one run."""

    def __init__(self, number: int) -> None:
        self.number = number
        self._packets = self._octets = self._first = self._last = 0
        self._delays: list[int] = []

    def count(self, size: int, sequence: int, now_ns: int, delay_ns: int) -> None:
        self._first = self._first or now_ns
        self._last = now_ns
        self._packets += 1
        self._octets += size
        if sequence % SAMPLE_EVERY == 0:
            self._delays.append(delay_ns)

    def to_json(self) -> dict[str, Any]:
        delays = sorted(self._delays)
        shares = {"p50": 0.5, "p90": 0.9, "p99": 0.99}
        return {
            "packets": self._packets,
            "octets": self._octets,
            "seconds": (self._last - self._first) / 1e9,
            "delay_us": {
                name: delays[int(share * (len(delays) - 1))] // 1000 if delays else None
                for name, share in shares.items()
            },
        }


def _say(answer: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


def main(words: list[str]) -> int:
    """See the module docstring."""
    if words[0] == "receive":
        receiver = Receiver(int(words[1]))
        _say({"ready": True})
        receiver.serve()
        return 0
    sender = Sender()
    _say({"ready": True})
    for line in sys.stdin:
        try:
            _say(sender.answer(json.loads(line)))
        except OSError as exc:
            _say({"error": str(exc)})
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
