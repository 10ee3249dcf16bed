"""Programs of the blackout benchmark: one packet after another at a constant rate, and who counts.

Owns: ``python -m fabric.lab.bench.stream send|receive ADDRESS PORT``. May import: the standard
library. JSON lines, as fabric.lab.bench.traffic has them.
"""

from __future__ import annotations

import contextlib
import json
import socket
import sys
import threading
import time
from struct import Struct
from typing import Any

_PACKET = Struct("!QQ")
"""Sequence, time of sending (ns, monotonic)."""


class Sender:
    """``{"do": "start", "to": ADDRESS, "port": PORT, "rate": PACKETS/S}``, then ``{"do": "stop"}``,
    answered by the times at which packets left, ns, in order of sequence."""

    def __init__(self, address: str) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind((address, 0))
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()
        self._left: list[int] = []

    def answer(self, command: dict[str, Any]) -> dict[str, Any]:
        if command["do"] == "start":
            self._stop.clear()
            self._left = []
            target = (command["to"], command["port"])
            self._thread = threading.Thread(target=self._run, args=(target, command["rate"]))
            self._thread.start()
            return {"port": self._socket.getsockname()[1]}
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        return {"left": self._left}

    def _run(self, target: tuple[str, int], rate: float) -> None:
        interval, begin = 1e9 / rate, time.monotonic_ns()
        while not self._stop.is_set():
            due = begin + len(self._left) * interval
            time.sleep(max(0.0, (due - time.monotonic_ns()) / 1e9))
            now = time.monotonic_ns()
            with contextlib.suppress(OSError):  # an unreachable moment: as lost as any other
                self._socket.sendto(_PACKET.pack(len(self._left), now), target)
            self._left.append(now)


class Receiver:
    """``{"do": "collect"}`` is answered by the sequences that arrived since the last time."""

    def __init__(self, address: str, port: int) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind((address, port))
        self._arrived: list[int] = []
        threading.Thread(target=self._run, daemon=True).start()

    def answer(self, _command: dict[str, Any]) -> dict[str, Any]:
        arrived, self._arrived = self._arrived, []
        return {"arrived": arrived}

    def _run(self) -> None:
        while True:
            data = self._socket.recv(2048)
            self._arrived.append(_PACKET.unpack(data)[0])


def main(words: list[str]) -> int:
    """See the module docstring."""
    end = Sender(words[1]) if words[0] == "send" else Receiver(words[1], int(words[2]))
    sys.stdout.write('{"ready": true}\n')
    sys.stdout.flush()
    for line in sys.stdin:
        sys.stdout.write(json.dumps(end.answer(json.loads(line))) + "\n")
        sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
