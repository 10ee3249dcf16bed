"""A QEMU is found by its domain's whole name, and ended only while it is that very process."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator

import pytest

from fabric.host.process import Process
from fabric.host.vmm.remains import kill, qemus

PREFIX = f"fabric-remains{os.getpid()}-h1-"


@pytest.fixture
def qemu() -> Iterator[subprocess.Popen[bytes]]:
    """A process with the command line of a domain's QEMU."""
    words = ["sh", "-c", "echo; read never", "qemu", "-name", f"guest={PREFIX}g12,debug-threads=on"]
    pipe = subprocess.PIPE
    with subprocess.Popen(words, stdin=pipe, stdout=pipe) as process:
        assert process.stdout is not None
        process.stdout.read(1)  # it runs the program by now
        yield process
        process.kill()


def test_it_is_known_by_its_whole_name(qemu: subprocess.Popen[bytes]) -> None:
    found = qemus(PREFIX)
    assert {name: process.pid for name, process in found.items()} == {f"{PREFIX}g12": qemu.pid}
    assert qemus(f"{PREFIX}g12x") == {}


def test_it_is_ended(qemu: subprocess.Popen[bytes]) -> None:
    (process,) = qemus(PREFIX).values()
    kill(process)
    assert qemu.wait(10) == -9
    kill(process)
    assert qemus(PREFIX) == {}


def test_another_process_with_its_number_is_spared(qemu: subprocess.Popen[bytes]) -> None:
    (process,) = qemus(PREFIX).values()
    kill(Process(process.pid, process.start_ticks - 1))
    assert process.is_alive()
