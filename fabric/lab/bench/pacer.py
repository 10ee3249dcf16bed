"""A program of the rate benchmark: opens connections at a constant rate, whatever becomes of them.

Owns: ``python -m fabric.lab.bench.pacer``. May import: the standard library. It takes JSON lines
on standard input and answers each by one on standard output; times are its own, ms since the
command. A slow answer never delays the next connection: what is offered is offered.
"""

from __future__ import annotations

import errno
import json
import selectors
import socket
import sys
import time
from typing import Any

STRAGGLERS = 60.0
"""Seconds the last connections may take after the last was begun."""
QUESTION = b"?"


class Attempt:
    """One connection: connect, ask, be answered, close."""

    def __init__(self, source: str, target: tuple[str, int], begin: float) -> None:
        self.due_ms = (time.perf_counter() - begin) * 1e3
        self.connect_ms: float | None = None
        self.done_ms: float | None = None
        self.error = ""
        self.asked = False
        self.link = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self.link.setblocking(False)
        self.link.bind((source, 0))
        code = self.link.connect_ex(target)
        if code not in (0, errno.EINPROGRESS):
            self.fail(code)

    def go_on(self, begin: float) -> bool:
        """The socket is ready; whether there is more to come."""
        now = (time.perf_counter() - begin) * 1e3
        if self.connect_ms is None:
            if code := self.link.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                return self.fail(code)
            self.connect_ms = now - self.due_ms
        try:
            if self.done_ms is None and not self.asked:
                self.link.send(QUESTION)
                self.asked = True
                return True
            answered = self.link.recv(len(QUESTION)) == QUESTION
        except OSError as exc:
            return self.fail(exc.errno or 0)
        if not answered:
            return self.fail(errno.ECONNRESET)
        self.done_ms = now
        self.link.close()
        return False

    def fail(self, code: int) -> bool:
        self.error = errno.errorcode.get(code, str(code))
        self.link.close()
        return False

    def to_json(self) -> dict[str, Any]:
        times = {"due_ms": self.due_ms, "connect_ms": self.connect_ms, "done_ms": self.done_ms}
        shown = {name: None if ms is None else round(ms, 3) for name, ms in times.items()}
        return {**shown, "error": self.error}


def pace(source: str, target: tuple[str, int], rate: float, seconds: float) -> list[Attempt]:
    """``rate`` connections a second for ``seconds``, and their ends."""
    ready = selectors.DefaultSelector()
    attempts: list[Attempt] = []
    begin = time.perf_counter()
    total = max(1, round(rate * seconds))
    end = begin + seconds + STRAGGLERS
    while (now := time.perf_counter()) < end and (len(attempts) < total or ready.get_map()):
        due = begin + len(attempts) / rate if len(attempts) < total else end
        if now >= due:
            attempts.append(attempt := Attempt(source, target, begin))
            if not attempt.error:
                ready.register(attempt.link, selectors.EVENT_WRITE, attempt)
            continue
        for key, _ in ready.select(due - now):
            attempt = key.data
            ready.unregister(attempt.link)
            if attempt.go_on(begin):
                ready.register(attempt.link, selectors.EVENT_READ, attempt)
    for key in list(ready.get_map().values()):
        key.data.fail(errno.ETIMEDOUT)
    ready.close()
    return attempts


def main() -> int:
    """See the module docstring."""
    _say({"ready": True})
    for line in sys.stdin:
        command = json.loads(line)
        try:
            target = (command["target"][0], command["target"][1])
            done = pace(command["source"], target, command["rate"], command["seconds"])
            _say({"attempts": [attempt.to_json() for attempt in done]})
        except OSError as exc:
            _say({"error": str(exc)})
    return 0


def _say(answer: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
