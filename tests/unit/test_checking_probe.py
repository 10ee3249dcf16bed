"""The programs that checks run on hosts, on the loopback."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from fabric.lab.checking import probe

Answers = Callable[[socket.socket, int, bytes, tuple[str, int]], None]
"""(server, how many came before, datagram, client)."""


@contextlib.contextmanager
def udp_server(answers: Answers) -> Iterator[int]:
    """Its port."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        server.settimeout(0.05)
        over = threading.Event()

        def serve() -> None:
            number = 0
            while not over.is_set():
                with contextlib.suppress(TimeoutError):
                    data, client = server.recvfrom(65536)
                    answers(server, number, data, client)
                    number += 1

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield server.getsockname()[1]
        finally:
            over.set()
            thread.join()


def asked(port: int, count: int, seconds: float, capfd: pytest.CaptureFixture[str]) -> list[float]:
    probe.ask("udp", "127.0.0.1", port, count, seconds)
    rtts: list[float] = json.loads(capfd.readouterr().out.splitlines()[-1])["rtts_ms"]
    return rtts


def test_an_answer_to_a_question_asked_again_is_not_one_to_the_next(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(probe, "ASK_AGAIN", 0.05)
    held: list[tuple[bytes, tuple[str, int]]] = []

    def hold_three_and_answer_no_more(
        server: socket.socket, number: int, data: bytes, client: tuple[str, int]
    ) -> None:
        if number < 3:
            held.append((data, client))
        if number == 2:
            for each in held:
                server.sendto(*each)

    with udp_server(hold_three_and_answer_no_more) as port:
        assert len(asked(port, 3, 1.0, capfd)) == 1


def test_the_time_to_an_answer_is_that_of_its_question(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(probe, "ASK_AGAIN", 0.05)

    def slowly(server: socket.socket, _number: int, data: bytes, client: tuple[str, int]) -> None:
        threading.Timer(0.12, server.sendto, (data, client)).start()

    with udp_server(slowly) as port:
        rtts = asked(port, 3, 5.0, capfd)
        time.sleep(0.2)  # answers still under way use the server's socket
    assert len(rtts) == 3
    assert min(rtts) >= 120
