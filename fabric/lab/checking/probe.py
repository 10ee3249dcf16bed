"""The programs checks run on hosts: ordinary clients and servers that know nothing of the fabric.

Owns: ``python -m fabric.lab.checking.probe`` and its sub-commands. May import: nothing of ours;
standard library only. What they have to say goes to standard output as JSON lines, flushed, except
for streams, which are told packet by packet in fixed records.

    echo tcp|udp ADDRESS            answers what it gets; says its port
    ask tcp|udp|http ADDRESS PORT COUNT SECONDS   sends and waits, one after the other
    send ADDRESS PORT               a stream: slow until a line comes on standard input, then fast
    receive ADDRESS                 the other end
"""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import os
import select
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

RECORD = struct.Struct("!QQ")
"""Number of a packet and when it was seen, in ns of the monotonic clock (one machine, one clock).
The first record of a stream holds the local port instead."""
PACKETS_PER_SECOND = 200
SLOWLY = 0.25
"""Seconds between packets while guests appear: what is held for them is bounded."""
MESSAGE = b"fabric check".ljust(64, b".")
ASK_AGAIN = 1.0
"""Seconds after which a datagram without an answer is sent again, as resolvers do."""


def say(**what: Any) -> None:
    os.write(1, json.dumps(what).encode() + b"\n")


def listen(transport: str, address: str) -> socket.socket:
    kind = socket.SOCK_STREAM if transport == "tcp" else socket.SOCK_DGRAM
    server = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, kind)
    server.bind((address, 0))
    return server


def echo(transport: str, address: str) -> None:
    """Serve one client (tcp) or everyone (udp) until killed."""
    with listen(transport, address) as server:
        if transport == "udp":
            say(port=server.getsockname()[1])
            while True:
                data, client = server.recvfrom(65536)
                server.sendto(data, client)
        server.listen()
        say(port=server.getsockname()[1])
        connection, _ = server.accept()
        with connection:
            while data := connection.recv(65536):
                connection.sendall(data)


class Asked:
    """What came of questions: said at the end, and the local port as soon as it is known."""

    def __init__(self, seconds: float) -> None:
        self.end = time.monotonic() + seconds
        self.rtts_ms: list[float] = []
        self.error = ""

    def left(self) -> float:
        left = self.end - time.monotonic()
        if left <= 0:
            raise TimeoutError("no answer in time")
        return left

    def repeat(self, count: int, once: Callable[[], None]) -> None:
        try:
            for _ in range(count):
                started = time.monotonic()
                once()
                self.rtts_ms.append((time.monotonic() - started) * 1000)
        except (OSError, http.client.HTTPException) as exc:
            self.error = str(exc) or type(exc).__name__


def ask(transport: str, address: str, port: int, count: int, seconds: float) -> None:
    asked = Asked(seconds)
    try:
        {"tcp": ask_tcp, "udp": ask_udp, "http": ask_http}[transport](address, port, count, asked)
    except (OSError, http.client.HTTPException) as exc:
        asked.error = str(exc) or type(exc).__name__
    say(rtts_ms=asked.rtts_ms, error=asked.error)


def ask_tcp(address: str, port: int, count: int, asked: Asked) -> None:
    with socket.create_connection((address, port), timeout=asked.left()) as connection:
        say(port=connection.getsockname()[1])

        def once() -> None:
            connection.sendall(MESSAGE)
            missing = len(MESSAGE)
            while missing:
                connection.settimeout(asked.left())
                data = connection.recv(missing)
                if not data:
                    raise ConnectionError("closed by the other end")
                missing -= len(data)

        asked.repeat(count, once)


def ask_udp(address: str, port: int, count: int, asked: Asked) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as connection:
        connection.connect((address, port))
        say(port=connection.getsockname()[1])
        questions = itertools.count()

        def once() -> None:
            # Numbered: what was asked again while guests appeared is answered again, later.
            question = next(questions).to_bytes(4, "big") + MESSAGE
            while True:
                connection.send(question)
                connection.settimeout(min(ASK_AGAIN, asked.left()))
                with contextlib.suppress(TimeoutError):
                    while connection.recv(65536) != question:
                        pass  # an answer to an earlier one: as many at most as were sent
                    return
                asked.left()

        asked.repeat(count, once)


def ask_http(address: str, port: int, count: int, asked: Asked) -> None:
    client = http.client.HTTPConnection(address, port, timeout=asked.left())
    client.connect()
    say(port=client.sock.getsockname()[1])

    def once() -> None:
        client.request("GET", "/")
        answer = client.getresponse()
        answer.read()
        if answer.status >= 400:
            raise ConnectionError(f"HTTP status {answer.status}")

    asked.repeat(count, once)
    client.close()


def send(address: str, port: int) -> None:
    """Numbered datagrams at a constant rate until standard input ends."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as stream:
        stream.connect((address, port))
        os.write(1, RECORD.pack(stream.getsockname()[1], 0))
        number, gap, due = 0, SLOWLY, time.monotonic()
        while True:
            now = time.monotonic_ns()
            with contextlib.suppress(OSError):  # refused, unreachable: lost like any other
                stream.send(RECORD.pack(number, now).ljust(64, b"."))
            os.write(1, RECORD.pack(number, now))
            number, due = number + 1, due + gap
            ready, _, _ = select.select([0], [], [], max(0.0, due - time.monotonic()))
            if ready:
                if not os.read(0, 64):
                    return
                gap, due = 1 / PACKETS_PER_SECOND, time.monotonic()


def receive(address: str) -> None:
    with listen("udp", address) as stream:
        os.write(1, RECORD.pack(stream.getsockname()[1], 0))
        while True:
            data = stream.recv(65536)
            os.write(1, RECORD.pack(RECORD.unpack_from(data)[0], time.monotonic_ns()))


def end_with_parent() -> None:
    """Whoever started us holds our standard input open; where it is not read, a thread does."""

    def wait() -> None:
        while os.read(0, 4096):
            pass
        os._exit(0)

    threading.Thread(target=wait, daemon=True).start()


def main(command: str, *words: str) -> None:
    if command == "send":
        send(words[0], int(words[1]))
        return
    end_with_parent()
    if command == "echo":
        echo(*words)
    elif command == "receive":
        receive(*words)
    else:
        ask(words[0], words[1], int(words[2]), int(words[3]), float(words[4]))


if __name__ == "__main__":
    main(*sys.argv[1:])
