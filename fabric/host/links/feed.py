"""How the link watch and whoever wants to know speak: JSON lines over a unix socket of the host.

Owns: Feed, the watch's end; the form of both sides' lines. May import: errors, stdlib.

Each line of the watch is the standing of all links, so nobody can miss anything. A line back says
which guests want to hear of it, and by which key each knows that it is us.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fabric.errors import Conflict, EnvironmentFault

MAX_PENDING = 1 << 20
"""Bytes a listener may be behind before it is cut off; it will connect again."""


def socket_path(host_dir: Path) -> Path:
    """Where the watch of a host listens."""
    return host_dir / "links.sock"


@dataclass(frozen=True)
class Audience:
    """The guests to be told."""

    keys: Mapping[str, bytes] = field(default_factory=dict)
    """By address."""

    def to_line(self) -> bytes:
        guests = {address: key.hex() for address, key in self.keys.items()}
        return json.dumps({"guests": guests}).encode() + b"\n"

    @classmethod
    def from_line(cls, line: bytes) -> Audience:
        """Raises ValueError, KeyError, TypeError, AttributeError."""
        guests = json.loads(line)["guests"]
        return cls({address: bytes.fromhex(key) for address, key in guests.items()})


class Listener:
    """One connected orchestrator."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self.socket = connection
        self._in = bytearray()
        self._out = bytearray()

    def fileno(self) -> int:
        return self.socket.fileno()

    def send(self, line: bytes) -> bool:
        """False: it is gone, or hopelessly behind."""
        self._out += line
        try:
            while self._out:
                del self._out[: self.socket.send(self._out)]
        except BlockingIOError:
            pass
        except OSError:
            return False
        return len(self._out) <= MAX_PENDING

    def lines(self) -> list[bytes] | None:
        """Whole lines that came; None: it is gone."""
        while True:
            try:
                data = self.socket.recv(65536)
            except BlockingIOError:
                break
            except OSError:
                return None
            if not data:
                return None
            self._in += data
        *whole, rest = bytes(self._in).split(b"\n")
        self._in = bytearray(rest)
        return whole


class Feed:
    """The listening socket and those who listen."""

    def __init__(self, path: Path) -> None:
        """Raises Conflict when another process serves this path, EnvironmentFault."""
        self._path = path
        if _answers(path):
            raise Conflict(
                f"{path}: another process watches this host's links already",
                cure="end it, or leave this one away",
            )
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.setblocking(False)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)
            previous = os.umask(0o077)
            try:
                self._socket.bind(str(path))
            finally:
                os.umask(previous)
            self._socket.listen(8)
        except OSError as exc:
            self._socket.close()
            raise EnvironmentFault(f"{path}: {exc.strerror}", cure="run as root") from exc

    def fileno(self) -> int:
        return self._socket.fileno()

    def accept(self) -> Listener | None:
        """Somebody who wants to know; None: it has left already."""
        with contextlib.suppress(OSError):
            return Listener(self._socket.accept()[0])
        return None

    def close(self) -> None:
        self._socket.close()
        self._path.unlink(missing_ok=True)


def links_line(links: Iterable[dict[str, Any]], *, late_us: int) -> bytes:
    """The watch's line. ``late_us``: by how much it woke up too late at most, since it said so
    last."""
    document = {"links": list(links), "late_us": late_us}
    return json.dumps(document, separators=(",", ":")).encode() + b"\n"


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
        return True
