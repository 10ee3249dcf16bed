"""What every step of the image build uses: running commands, the lists, the fixed times.

Owns: nothing on disk. May import: errors.
"""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from fabric.errors import EnvironmentFault

HERE = Path(__file__).resolve().parent
# Any fixed moment does: it stands in every file time, so that two builds agree.
EPOCH = 1_700_000_000
PYTHON = "usr/bin/python3.11"
"""The guest's interpreter, relative to its root."""


def say(text: str) -> None:
    print(f"  image: {text}", flush=True)


def run(argv: Sequence[str], *, cwd: Path | None = None, env: dict[str, str] | None = None) -> str:
    """Run a command. Raises EnvironmentFault with what it printed, OSError when a disk is full."""
    # Untranslated messages: one of them is looked for below.
    environment = {**(os.environ if env is None else env), "LC_ALL": "C"}
    done = subprocess.run(argv, capture_output=True, text=True, cwd=cwd, env=environment)
    if done.returncode != 0:
        words = f"{done.stdout}\n{done.stderr}".strip()
        if os.strerror(errno.ENOSPC) in words:
            raise OSError(errno.ENOSPC, f"{argv[0]} found no space")
        last = " | ".join(words.splitlines()[-3:])
        raise EnvironmentFault(f"{argv[0]} failed ({done.returncode}): {last}")
    return done.stdout


def listed(name: str) -> list[str]:
    """The lines of one of the lists beside this file."""
    lines = (line.strip() for line in (HERE / name).read_text().splitlines())
    return [line for line in lines if line and not line.startswith("#")]
