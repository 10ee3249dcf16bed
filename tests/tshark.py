"""Wireshark's command line with our dissector: a second opinion on what is in a packet."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

DISSECTOR = Path(__file__).parents[1] / "docs/fabric.lua"
DEADLINE = 60.0
"""Seconds; it takes one."""


def dissect(pcap: bytes, *words: str) -> str:
    """What tshark prints for a capture when it is given these further arguments."""
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        # As root, Wireshark 4.4 and later load no scripts: nobody can, from a place he may enter.
        home.chmod(0o755)
        script = shutil.copy(DISSECTOR, home)
        done = subprocess.run(
            ["tshark", "-r", "-", "-X", f"lua_script:{script}", *words],
            input=pcap, capture_output=True, timeout=DEADLINE, check=False,
            user="nobody" if os.geteuid() == 0 else None, env={**os.environ, "HOME": name},
        )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()
