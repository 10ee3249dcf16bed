"""The rate benchmark: its client keeps the pace it was told, and figures say what happened."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from fabric.errors import UserError
from fabric.lab.bench import pacer
from fabric.lab.bench.rate import COLUMNS, Plan, figure, rows


@contextmanager
def server(delay: float = 0.0) -> Iterator[int]:
    """Answers each connection, ``delay`` seconds late; the port."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:

        def serve() -> None:
            while True:
                try:
                    link, _ = listener.accept()
                except OSError:
                    return
                with link:
                    time.sleep(delay)
                    link.sendall(link.recv(1))

        threading.Thread(target=serve, daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)


def paced(port: int, rate: float, seconds: float) -> list[dict[str, Any]]:
    command = {"source": "127.0.0.1", "target": ["127.0.0.1", port]}
    text = json.dumps({**command, "rate": rate, "seconds": seconds})
    argv = [sys.executable, "-m", pacer.__name__]
    done = subprocess.run(argv, input=text, capture_output=True, text=True, check=True)
    ready, answer = map(json.loads, done.stdout.splitlines())
    assert ready == {"ready": True}
    attempts: list[dict[str, Any]] = answer["attempts"]
    return attempts


def test_connections_are_opened_at_the_rate_and_answered() -> None:
    with server() as port:
        attempts = paced(port, 50, 0.5)
    assert len(attempts) == 25
    assert all(a["done_ms"] >= a["due_ms"] + a["connect_ms"] and not a["error"] for a in attempts)
    assert all(a["due_ms"] >= number * 20 for number, a in enumerate(attempts))


def test_a_slow_server_does_not_slow_the_offer() -> None:
    """One connection after the other would take 2 s to begin."""
    with server(0.2) as port:
        attempts = paced(port, 100, 0.1)
    dues = [a["due_ms"] for a in attempts]
    dones = [a["done_ms"] for a in attempts]
    assert max(dues) < max(dones) - 1000


def test_refusals_are_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    assert {a["error"] for a in paced(port, 50, 0.1)} == {"ECONNREFUSED"}


def attempt(due: float, took: float | None, error: str = "") -> dict[str, Any]:
    done = None if took is None else due + took + 1
    return {"due_ms": due, "connect_ms": took, "done_ms": done, "error": error}


def test_a_figure_tells_offered_served_refused_and_late() -> None:
    ours = [
        *(attempt(n * 1000, 10.0 + n) for n in range(8)),
        attempt(8000, 5000.0),  # served, but after the ten seconds
        attempt(9000, None, "ECONNREFUSED"),
    ]
    events = [{"name": "guest-ready", "tier": "prepared"}] * 9
    events.append({"name": "refused", "cause": "capacity", "limit": "guests"})
    bare = [attempt(n * 1000, 0.5) for n in range(10)]
    found = figure(Plan(rates=(1.0,), seconds=10), 1.0, ours, bare, events, 2.0)
    assert (found["opened"], found["served"], found["refused"]) == (10, 9, 1)
    assert found["served_per_s"] == 0.8 and not found["sustained"]
    assert found["refused_why"] == {"guests": 1}
    assert (found["connect_p50_ms"], found["connect_p99_ms"]) == (14.0, 5000.0)
    assert found["ratio"] == 28.0
    assert len(found["series"]) == len(found["reference_series"]) == 10
    (row,) = rows([found])
    assert len(row) == len(COLUMNS)


@pytest.mark.parametrize(
    "wrong", [{"tier": "hot"}, {"rates": ()}, {"rates": (0.0,)}, {"seconds": 500}, {"hops": 0}]
)
def test_plans_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError):
        Plan(**wrong)
