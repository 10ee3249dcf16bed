"""The SSH door of a copied guest: a listening socket, and a server for each caller.

Owns: port 22 of a guest that woke up as a copy. May import: the standard library.

A template holds no SSH server: it would hold its key, and every copy would show the same. A copy
writes down the key it was given and listens; whoever calls is handed to dropbear in the manner of
inetd. So nothing of it runs before somebody calls.
"""

from __future__ import annotations

import os
import socket

PORT = 22
SERVER = "/usr/sbin/dropbear"
OPTIONS = ("-i", "-s", "-j", "-k", "-m", "-r")
"""One caller on standard input; keys only; no forwarding either way; no message of the day."""
_HOST_KEY, _DAEMON_PID = "keys/host_key", "dropbear.pid"
_ALGORITHM = b"ssh-ed25519"
_BACKLOG = 4
_SIGTERM, _SIGCHLD, _SIG_IGN = 15, 17, 1


def shut(run: str) -> None:
    """End the server this guest booted with, and its key; ``run`` is where the guest keeps what
    lasts until it ends. Idempotent."""
    path = f"{run}/{_HOST_KEY}"
    try:
        with open(f"{run}/{_DAEMON_PID}") as file:  # noqa: PTH123 - pathlib costs 8 ms to import
            os.kill(int(file.read()), _SIGTERM)
    except (OSError, ValueError):
        pass  # none runs
    try:
        # Overwritten in place first: what is only unlinked stays in memory.
        with open(path, "r+b") as key:  # noqa: PTH123
            key.write(bytes(os.fstat(key.fileno()).st_size))
        os.unlink(path)  # noqa: PTH108
    except FileNotFoundError:
        pass


class Door:
    """Listens from construction on. Raises OSError."""

    def __init__(self, host_key: bytes, run: str, port: int = PORT) -> None:
        """``host_key``: Ed25519 seed and public half, 32 bytes each (RFC 8032)."""
        import _signal  # type: ignore[import-not-found]  # signal itself would import enum

        # Whoever ends is reaped by the kernel; nobody waits for a caller's server.
        _signal.signal(_SIGCHLD, _SIG_IGN)
        self._key = f"{run}/{_HOST_KEY}"
        _write_key(self._key, host_key)
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.setblocking(False)
        self._socket.bind(("0.0.0.0", port))
        self._socket.listen(_BACKLOG)

    def fileno(self) -> int:
        return self._socket.fileno()

    def answer(self) -> None:
        """Hand the caller who waits to a server of its own; nobody waiting is no error."""
        try:
            caller, _ = self._socket.accept()
        except OSError:
            return
        with caller:
            caller.setblocking(True)
            streams = [(os.POSIX_SPAWN_DUP2, caller.fileno(), number) for number in (0, 1)]
            os.posix_spawn(
                SERVER,
                (SERVER, *OPTIONS, self._key),
                {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/run/home"},
                file_actions=streams,
                setsigdef=(_SIGCHLD,),
                setsid=True,
            )


def _write_key(path: str, host_key: bytes) -> None:
    """In dropbear's own format: two strings (RFC 4251), the algorithm, seed and public half."""
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)  # noqa: PTH103, PTH120
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, b"".join(len(s).to_bytes(4, "big") + s for s in (_ALGORITHM, host_key)))
    finally:
        os.close(fd)
