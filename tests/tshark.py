"""Wireshark's command line with our dissector: a second opinion on what is in a packet."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

DISSECTOR = Path(__file__).parents[1] / "docs/fabric.lua"
DEADLINE = 60.0
"""Seconds; it takes one."""


def dissect(pcap: bytes, *words: str) -> str:
    """What tshark prints for a capture when it is given these further arguments."""
    nobody = pwd.getpwnam("nobody")
    somebody: dict[str, Any] = {}
    if os.geteuid() == 0:
        # As root, Wireshark 4.4 and later load no scripts.
        somebody = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        home.chmod(0o755)  # a place everybody may enter
        script = shutil.copy(DISSECTOR, home)
        done = subprocess.run(
            ["tshark", "-r", "-", "-X", f"lua_script:{script}", *words],
            input=pcap, capture_output=True, timeout=DEADLINE, check=False,
            env={**os.environ, "HOME": name}, **somebody,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()
    return str(done.stdout, "utf-8")
