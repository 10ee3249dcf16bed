"""The programs that checks run on hosts, on the loopback."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections import Counter
from collections.abc import Iterator

import pytest

from fabric.lab.checking import probe

HELD = 3
"""Datagrams of one question that wait until all are answered at once: as for a guest to appear."""


@contextlib.contextmanager
def holding_server(questions: int) -> Iterator[tuple[int, Counter[bytes]]]:
    """Its port, and how often it was asked what. It answers that many questions."""
    asked: Counter[bytes] = Counter()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        server.settimeout(0.05)
        over = threading.Event()

        def serve() -> None:
            while not over.is_set():
                with contextlib.suppress(TimeoutError):
                    question, client = server.recvfrom(65536)
                    asked[question] += 1
                    if asked[question] == HELD and len(asked) <= questions:
                        for _ in range(HELD):
                            server.sendto(question, client)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield server.getsockname()[1], asked
        finally:
            over.set()
            thread.join()


def ask(port: int, count: int, seconds: float, capfd: pytest.CaptureFixture[str]) -> int:
    """How many were answered."""
    probe.ask("udp", "127.0.0.1", port, count, seconds)
    return len(json.loads(capfd.readouterr().out.splitlines()[-1])["rtts_ms"])


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not answered at once is asked again."""
    monkeypatch.setattr(probe, "ASK_AGAIN", 0.05)


def test_an_answer_to_a_question_asked_again_is_not_one_to_the_next(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with holding_server(1) as (port, _):
        assert ask(port, 3, 1.0, capfd) == 1


def test_every_question_is_asked_until_it_is_answered_itself(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with holding_server(3) as (port, asked):
        assert ask(port, 3, 30.0, capfd) == 3
    assert len(asked) == 3
    assert min(asked.values()) >= HELD
