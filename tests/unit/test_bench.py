"""The benchmark's arithmetic and its traffic programs, without guests."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from fabric.errors import UserError
from fabric.lab.bench import guest_loop
from fabric.lab.bench.bed import line_topology
from fabric.lab.bench.forward import Plan
from fabric.lab.bench.measure import (
    HIGHEST,
    LOWEST,
    Trial,
    add_ratios,
    stream_figure,
    sustained_rate,
    udp_figure,
)
from fabric.lab.bench.report import COLUMNS, function_rows, markdown, page, rows
from fabric.lab.bench.traffic import BIN
from fabric.lab.topology_file import parse_topology


def path_of(capacity: float, *, buffers: bool) -> Callable[[float], Trial]:
    """A path that carries ``capacity`` packets/s; beyond, it loses them, or queues them."""

    def trial(rate: float) -> Trial:
        delivered = min(rate, capacity)
        loss = 0.0 if buffers else 1 - delivered / rate
        return Trial(rate, delivered, loss, delivered * 512 * 8 / 1e6)

    return trial


@pytest.mark.parametrize("capacity", [25.0, 990.0, 3100.0, 61_000.0])
@pytest.mark.parametrize("start", [30.0, 1000.0, 50_000.0])
@pytest.mark.parametrize("buffers", [False, True])
def test_the_search_ends_just_below_the_capacity(
    capacity: float, start: float, buffers: bool
) -> None:
    best, trials = sustained_rate(path_of(capacity, buffers=buffers), start)
    assert best.sustained
    # 2^(1/8) below, or as far above as a sustained trial tolerates.
    assert 0.88 * capacity <= best.delivered <= 1.01 * capacity
    assert len(trials) < 40
    assert all(LOWEST <= each.offered <= HIGHEST for each in trials)


def test_a_dead_path_ends_the_search_too() -> None:
    best, trials = sustained_rate(lambda rate: Trial(rate, 0.0, 1.0, 0.0), 1000.0)
    assert (best.sustained, best.delivered) == (False, 0.0)
    assert min(each.offered for each in trials) >= LOWEST


def test_one_disturbed_trial_does_not_end_the_climb() -> None:
    trial = path_of(8000.0, buffers=False)
    asked = 0

    def disturbed(rate: float) -> Trial:
        nonlocal asked
        asked += 1
        return Trial(rate, rate / 3, 0.6, 1.0) if asked == 2 else trial(rate)

    best, _ = sustained_rate(disturbed, 1000.0)
    assert best.delivered >= 0.88 * 8000


def test_overload_that_only_fills_queues_is_not_sustained() -> None:
    sent = {"sent": 4000, "seconds": 1.0}
    got: dict[str, Any] = {"packets": 4000, "octets": 1, "seconds": 2.0, "delay_us": {}}
    trial = Trial.of(512, sent, got, 0.8, 2)
    assert trial.loss == 0
    assert not trial.sustained
    assert trial.guest_cpu_us == 100.0
    assert trial.delivered == pytest.approx(1999.5)


def test_ratios_compare_like_with_like() -> None:
    def figure(hops: int, kind: str, size: int, rate: float) -> Any:
        return udp_figure(hops, kind, size, Trial(rate, rate, 0.0, rate * size * 8 / 1e6), [])

    figures = [
        figure(1, "fabric", 512, 100), figure(1, "kernel", 512, 400), figure(1, "loop", 512, 200),
        figure(2, "fabric", 512, 60), figure(2, "kernel", 512, 300), figure(2, "fabric", 64, 70),
    ]  # fmt: skip
    add_ratios(figures)
    assert [f.ratio_to_kernel for f in figures] == [0.25, None, 0.5, 0.2, None, None]
    assert [f.ratio_to_loop for f in figures] == [0.5, None, None, 0.3, None, None]


def test_a_stream_is_judged_by_its_whole_quarter_seconds() -> None:
    figure = stream_figure(1, "fabric", {"bin": BIN, "bytes": [1, 250_000, 750_000, 3]})
    assert figure.mbit_s == 16.0
    assert len(figure.series) == 4
    assert stream_figure(1, "fabric", {"bin": BIN, "bytes": []}).mbit_s == 0.0


def test_results_become_a_table() -> None:
    trial = Trial(100, 99.0, 0.005, 0.4, {"p50": 1500, "p99": None}, 80.0)
    result = udp_figure(2, "fabric", 512, trial, [trial]).to_json()
    (row,) = rows([result, {"kind": "profile"}])
    assert row[:8] == (2, "fabric", "udp 512 B", "99", "0.4", "0.50", "1.5", "")
    assert markdown(COLUMNS, [row]).count("\n") == 3
    profile: dict[str, Any] = {
        "kind": "profile", "mode": "calls", "role": "egress", "transport": "udp",
        "functions": [
            ["<method 'poll' of 'select.epoll' objects>", 1, 9.0, 9.0],
            ["<method 'sendmsg' of '_socket.socket' objects>", 5, 3.0, 4.0],
            ["<built-in method posix.readv>", 6, 1.0, 1.0],
        ],
    }  # fmt: skip
    assert function_rows(profile) == [
        ("_socket.socket.sendmsg", 5, "75.0"),
        ("posix.readv", 6, "25.0"),
    ]
    text = page([result, profile])
    assert "| 2 | fabric | udp 512 B | 99 |" in text
    assert "| egress, udp |" in text
    assert "| posix.readv 25.0 |" in text


@pytest.mark.parametrize(
    "wrong", [{"hops": ()}, {"hops": (0,)}, {"hops": (99,)}, {"sizes": (20,)}, {"seconds": 0.0}]
)
def test_a_plan_that_makes_no_sense_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError):
        Plan(**wrong)


def test_the_bed_is_a_line_without_impairments() -> None:
    model = parse_topology(line_topology("bench", 3))
    assert [host.name for host in model.hosts] == ["h1", "h2", "h3", "h4"]
    assert [(link.a, link.b) for link in model.links] == [("h1", "h2"), ("h2", "h3"), ("h3", "h4")]
    assert all(not link.latency_us and not link.loss for link in model.links)
    assert model.overlay_mtu >= 8000


class Talk:
    """A traffic program on this machine."""

    def __init__(self, *words: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "fabric.lab.bench.traffic", *words],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.read()

    def read(self) -> Any:
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())

    def ask(self, **command: Any) -> Any:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()
        return self.read()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@pytest.fixture
def talks() -> Iterator[tuple[Talk, Talk, int]]:
    """Sender, receiver and the receiver's port."""
    port = free_port()
    receiver, sender = Talk("receive", str(port)), Talk("send")
    try:
        yield sender, receiver, port
    finally:
        for talk in (sender, receiver):
            talk.process.kill()
            talk.process.communicate()


def test_every_packet_sent_is_counted_once_and_for_its_own_run(
    talks: tuple[Talk, Talk, int],
) -> None:
    sender, receiver, port = talks
    ends = {"source": ["127.0.0.1", 0], "target": ["127.0.0.1", port]}
    for number, size in ((1, 64), (2, 1400)):
        sent = sender.ask(do="udp", **ends, size=size, rate=500, seconds=0.2, run=number)
        got = receiver.ask(do="run", run=number)
        assert got["packets"] == sent["sent"] > 0
        assert got["octets"] == sent["sent"] * (size - 28)
        assert got["delay_us"]["p50"] >= 0
    assert receiver.ask(do="run", run=1)["packets"] == 0


def test_a_stream_is_counted_to_its_last_byte(talks: tuple[Talk, Talk, int]) -> None:
    sender, receiver, port = talks
    ends = {"source": ["127.0.0.1", 0], "target": ["127.0.0.1", port]}
    sender.ask(do="tcp", **ends, seconds=0)
    assert receiver.ask(do="stream")["bytes"] == []
    sent = sender.ask(do="tcp", **ends, seconds=0.3)
    assert sum(receiver.ask(do="stream")["bytes"]) == sent["sent"] > 0


def test_a_sender_that_cannot_says_so(talks: tuple[Talk, Talk, int]) -> None:
    sender, _, _ = talks
    ends = {"source": ["127.0.0.1", 0], "target": ["127.0.0.1", free_port()]}
    assert "refused" in sender.ask(do="tcp", **ends, seconds=1)["error"]
    assert sender.process.poll() is None


def test_the_reference_loop_sends_back_what_it_receives_until_told_to_end() -> None:
    port = free_port()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as link:
        link.bind(("127.0.0.1", 0))
        link.settimeout(10)
        argv = [str(port), "127.0.0.1", str(link.getsockname()[1])]
        with open(guest_loop.__file__, "rb") as script:  # noqa: PTH123
            loop = subprocess.Popen([sys.executable, "-I", "-S", "-", *argv], stdin=script)
        try:
            link.settimeout(0.1)
            for _ in range(100):
                link.sendto(b"packet", ("127.0.0.1", port))
                try:
                    assert link.recv(100) == b"packet"
                    break
                except TimeoutError:
                    continue
            else:
                pytest.fail("no answer")
            link.sendto(b"end", ("127.0.0.1", port))
            assert loop.wait(10) == 0
        finally:
            loop.kill()
            loop.wait()
