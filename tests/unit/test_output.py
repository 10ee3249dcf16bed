"""Where the command line writes."""

from __future__ import annotations

import os
import subprocess
import sys

WORK = """
import sys
from fabric.cli.output import note, say
for step in range(3):
    note(f"step {step}")
say("done")
"""


def test_progress_that_nobody_reads_does_not_end_the_work() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            [sys.executable, "-c", WORK],
            stdout=subprocess.PIPE,
            stderr=writing,
            timeout=60,
            check=False,
        )
    finally:
        os.close(writing)
    assert (done.returncode, done.stdout) == (0, b"done\n")
