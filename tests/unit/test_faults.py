"""The stop for tests: exactly there, once, and only when asked for."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from pathlib import Path

from fabric.host.faults import Step, StopAt

ROOT = Path(__file__).parents[2]
STORY = """
import sys, threading
from pathlib import Path
from fabric.host.faults import Step, StopAt

stop = StopAt(Path(sys.argv[1]))

def walk():
    for step in (Step.INTENDED, Step.CREATED, Step.CREATED):
        print(step.value, flush=True)
        stop(step)

thread = threading.Thread(target=walk)
thread.start()
thread.join()
"""


def test_without_the_file_nothing_stops(tmp_path: Path) -> None:
    for step in Step:
        StopAt(tmp_path / "stop-at")(step)


def test_the_process_stops_at_the_step_and_goes_on_when_told(tmp_path: Path) -> None:
    file = tmp_path / "stop-at"
    file.write_text("created\n")
    words = [sys.executable, "-c", STORY, str(file)]
    process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        _, status = os.waitpid(process.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status) and os.WSTOPSIG(status) == signal.SIGSTOP
        assert not file.exists()
        # What it said before it stopped, and not a word more.
        assert os.read(process.stdout.fileno(), 1000) == b"intended\ncreated\n"
        assert select.select([process.stdout], [], [], 0)[0] == []
        os.kill(process.pid, signal.SIGCONT)
        assert process.wait(10) == 0
        assert process.stdout.read() == b"created\n"
    finally:
        process.kill()
