"""Being on time on a busy machine.

Owns: what a process asks of the kernel, and of its interpreter, so that it runs when it has to. May
import: nothing of fabric.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
from collections.abc import Iterator

_MCL_CURRENT, _MCL_FUTURE = 1, 2
NICENESS = -15


def be_prompt(priority: int = 0) -> str:
    """Keep this process's memory where it is and run it before others, as far as it may.

    ``priority``: real-time, 1 … 99, for those that compute little (sched(7), SCHED_RR); 0: only
    before what is niced less. A program whose pages were taken away waits for a disk where it
    should answer (mlockall(2)). What was not allowed, in words; empty: all was.
    """
    refused = []
    if ctypes.CDLL(None, use_errno=True).mlockall(_MCL_CURRENT | _MCL_FUTURE):
        refused.append(f"memory not locked: {os.strerror(ctypes.get_errno())}")
    try:
        if priority:
            os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(priority))
            return "; ".join(refused)
    except OSError as exc:
        refused.append(f"no real-time priority: {exc.strerror}")
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, NICENESS)
    return "; ".join(refused)


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """No search for garbage meanwhile, on any thread: for work of less than a second that makes
    many objects. To look through a large network's tables takes longer than to compute them."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()
