"""What is killed comes back: connections survive their orchestrators, and guests their agents."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.vm.conftest import lab
from tests.vm.lab import ROOT, Lab, wait_for

LINE = (ROOT / "examples/line.yaml").read_text()
HOSTS = ("h1", "h2", "h3")


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    directory = tmp_path_factory.mktemp("restart")
    with lab("restart", LINE, directory, "--idle-timeout", "60") as made:
        yield made


def named(where: Lab, name: str, connection: str | None = None) -> list[dict[str, Any]]:
    found = [event for event in where.events() if event["name"] == name]
    return [event for event in found if connection in (None, event["connection"])]


def orchestrators(where: Lab) -> dict[str, int]:
    hosts = where.json("inspect")["hosts"]
    return {host["host"]: host["orchestrator"]["pid"] for host in hosts}


def kill(pid: int) -> None:
    """kill -9, and its end."""
    os.kill(pid, signal.SIGKILL)
    wait_for(f"the end of process {pid}", lambda: state_of(pid) in ("", "Z"), 10)


def state_of(pid: int) -> str:
    """One letter as in ps; empty when there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


class Pings:
    """A ping that goes on for as long as the block lasts; counts what came back."""

    def __init__(self, where: Lab, path: Path) -> None:
        self._where = where
        self._path = path

    def __enter__(self) -> Pings:
        self._file = self._path.open("w")
        words = ("ping", "-n", "-i", "0.2", "h3")
        self.process = self._where.start("h1", *words, stdout=self._file)
        wait_for("the first answer", lambda: self.answers() > 0, 120)
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            self.process.wait(30)
        self._file.close()

    def numbers(self) -> list[int]:
        return [int(n) for n in re.findall(r"icmp_seq=(\d+) ttl", self._path.read_text())]

    def answers(self) -> int:
        return len(self.numbers())

    def more(self, count: int, deadline: float = 60.0) -> None:
        """Wait for so many more answers."""
        target = self.answers() + count
        wait_for(f"{count} more answers", lambda: self.answers() >= target, deadline)


def connection(where: Lab) -> str:
    return str(where.json("connections")[0]["id"])


def test_established_connections_survive_every_orchestrator(line: Lab, tmp_path: Path) -> None:
    with Pings(line, tmp_path / "pings") as pings:
        wait_for("all three hosts", lambda: len(named(line, "steering-installed")) >= 3)
        number, domains = connection(line), line.domains()
        pings.more(10)
        for pid in orchestrators(line).values():
            kill(pid)
        before = pings.numbers()[-1]
        pings.more(15)
        line.up()
        pings.more(15)
        pings.stop()
        assert line.domains() == domains, "the very same guests"
        assert {e["host"] for e in named(line, "guest-adopted", number)} == set(HOSTS)
        adopted = named(line, "connection-adopted", number)
        assert {e["host"]: e["role"] for e in adopted} == {
            "h1": "ingress", "h2": "transit", "h3": "egress",
        }  # fmt: skip
        assert not named(line, "guest-spawning")
        after = [n for n in pings.numbers() if n > before]
        assert after == list(range(before + 1, before + 1 + len(after))), "none was lost"
        assert line.json("explain", number)["path"][0]["facts"]["executable"].endswith("/ping")
        assert line.traces(number), "its traces are still to be had"
