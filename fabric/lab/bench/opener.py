"""Programs of the spawn benchmarks that run on the hosts: one opens connections, one answers.

Owns: ``python -m fabric.lab.bench.opener open|answer PORT``. May import: the standard library. They
are plain programs with plain sockets and know nothing of the fabric. The opener takes JSON lines on
standard input and answers each by one on standard output; times are its own, ms.
"""

from __future__ import annotations

import contextlib
import errno
import json
import select
import selectors
import socket
import struct
import sys
import time
from collections.abc import Callable
from typing import Any

CONNECT_TIMEOUT = 180.0
"""Seconds until connections of a burst stand: cold guests of several hosts boot all at once."""
REQUEST = b"?"
BACKLOG = 1024
_RESET_AT_CLOSE = struct.pack("=ii", 1, 0)  # struct linger: no FIN, nothing comes later


class Opener:
    """Commands: ``udp``, ``tcp`` and ``close``; see the methods."""

    def __init__(self) -> None:
        self._sockets: list[socket.socket] = []

    def answer(self, command: dict[str, Any]) -> dict[str, Any]:
        """Carry out one command."""
        act: Callable[[dict[str, Any]], dict[str, Any]] = getattr(self, command["do"])
        return act(command)

    def udp(self, command: dict[str, Any]) -> dict[str, Any]:
        """One datagram from each of ``ports`` to ``target``, as close together as can be."""
        links = self._bound(socket.SOCK_DGRAM, command)
        for link in links:
            link.connect(tuple(command["target"]))
        for link in links:
            link.send(REQUEST)
        return {"opened": len(links)}

    def tcp(self, command: dict[str, Any]) -> dict[str, Any]:
        """Connect from each of ``ports`` to ``target`` at once. ``connect_ms``: one for each port,
        None for one that failed."""
        links = self._bound(socket.SOCK_STREAM, command)
        ready = selectors.DefaultSelector()
        took: list[float | None] = [None] * len(links)
        begun = []
        for number, link in enumerate(links):
            link.setblocking(False)
            begun.append(time.perf_counter())
            if link.connect_ex(tuple(command["target"])) in (0, errno.EINPROGRESS):
                ready.register(link, selectors.EVENT_WRITE, number)
        end = time.monotonic() + CONNECT_TIMEOUT
        while ready.get_map() and (left := end - time.monotonic()) > 0:
            for key, _ in ready.select(left):
                now = time.perf_counter()
                link = links[key.data]
                if link.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0:
                    took[key.data] = round((now - begun[key.data]) * 1e3, 3)
                ready.unregister(link)
        ready.close()
        return {"connect_ms": took}

    def close(self, command: dict[str, Any]) -> dict[str, Any]:
        """Close what udp and tcp opened; TCP by a reset, so that nothing comes later that could
        pass for a new connection."""
        for link in self._sockets:
            if link.type == socket.SOCK_STREAM:
                link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_AT_CLOSE)
            link.close()
        closed, self._sockets = len(self._sockets), []
        return {"closed": closed}

    def _bound(self, kind: socket.SocketKind, command: dict[str, Any]) -> list[socket.socket]:
        links = []
        for port in command["ports"]:
            links.append(socket.socket(socket.AF_INET, kind))
            self._sockets.append(links[-1])
            links[-1].bind((command["source"], port))
        return links


def serve(port: int) -> None:
    """Give back what comes over TCP; take what comes over UDP, silently."""
    listener = socket.create_server(("0.0.0.0", port), backlog=BACKLOG)
    sink = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sink.bind(("0.0.0.0", port))
    links: list[Any] = []
    _say({"ready": True})
    while True:
        readable, _, _ = select.select([sys.stdin, listener, sink, *links], [], [])
        for link in readable:
            if link is sys.stdin:
                return
            if link is listener:
                links.append(listener.accept()[0])
            elif link is sink:
                sink.recv(2048)
            elif not _echo(link):
                links.remove(link)
                link.close()


def _echo(link: socket.socket) -> bool:
    """False at its end."""
    data = b""
    with contextlib.suppress(OSError):
        data = link.recv(2048)
        link.sendall(data)
    return bool(data)


def _say(answer: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


def main(words: list[str]) -> int:
    """See the module docstring."""
    if words[0] == "answer":
        serve(int(words[1]))
        return 0
    opener = Opener()
    _say({"ready": True})
    for line in sys.stdin:
        try:
            _say(opener.answer(json.loads(line)))
        except OSError as exc:
            _say({"error": str(exc)})
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
