"""Memory of this machine.

Owns: reading it. May import: nothing of fabric.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

Memory = Callable[[], int]
"""Memory that programs could have now without swapping, MiB."""

MEMINFO = Path("/proc/meminfo")


def available_mib() -> int:
    """By the kernel's own estimate, MemAvailable in proc(5). Costs some 50 µs."""
    lines = MEMINFO.read_text().splitlines()
    return next(int(line.split()[1]) >> 10 for line in lines if line.startswith("MemAvailable"))
