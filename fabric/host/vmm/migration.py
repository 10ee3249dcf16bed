"""Saving a stopped guest's devices into a file, and loading them into another QEMU.

Owns: which monitor commands, in which order. May import: errors. The monitor is passed in, so this
runs against a fake in tests. Sources: QEMU's qapi/migration.json (QMP), docs/devel/migration.

The guest's memory is not in the stream: it is in a file both QEMUs know (``x-ignore-shared``), and
what is left is some 60 KB of device state. The stream goes through a descriptor handed over with
``getfd``: no socket in the file system, and QEMU needs no right to any path.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from fabric.errors import SpawnFailed

DEADLINE = 20.0
"""Seconds a transfer may take: 10 ms on an idle machine."""

_POLL = 0.002
_NAME = "fabric-state"
_CAPABILITIES = [{"capability": "x-ignore-shared", "state": True}]


class Monitor(Protocol):
    """Executes one QMP command with its descriptors; its ``return``. Raises FabricError."""

    def __call__(
        self, command: str, arguments: Mapping[str, Any] | None = None, files: Sequence[int] = ()
    ) -> Any: ...


def save(monitor: Monitor, descriptor: int) -> None:
    """Stop a running guest for good and write its device state. Raises SpawnFailed.

    QEMU stops it itself, when all but the last is written. It must run until then: the stream says
    whether it did, and a copy goes on as the stream says.
    """
    monitor("migrate-set-capabilities", {"capabilities": _CAPABILITIES})
    monitor("getfd", {"fdname": _NAME}, [descriptor])
    monitor("migrate", {"uri": f"fd:{_NAME}"})
    _completed(monitor, "saving")


def arm(monitor: Monitor, descriptor: int) -> None:
    """Do everything but :func:`load` for a QEMU that was started with ``-incoming defer``.

    Raises SpawnFailed."""
    monitor("migrate-set-capabilities", {"capabilities": _CAPABILITIES})
    # QEMU would announce the NIC to the network after a migration: under the template's MAC, which
    # another guest may have by now.
    monitor("migrate-set-parameters", {"announce-rounds": 0})
    monitor("getfd", {"fdname": _NAME}, [descriptor])


def load(monitor: Monitor) -> None:
    """Read the device state. Raises SpawnFailed.

    Returns when that has begun: told to go on, QEMU does so as soon as it is done, and asking when
    that is would take longer. A QEMU that cannot read it ends.
    """
    monitor("migrate-incoming", {"uri": f"fd:{_NAME}"})


def _completed(monitor: Monitor, doing: str) -> None:
    deadline = time.monotonic() + DEADLINE
    while True:
        found = monitor("query-migrate")
        status = found.get("status", "none")
        if status == "completed":
            return
        if status in ("failed", "cancelled"):
            raise SpawnFailed(f"{doing} a guest's state: {found.get('error-desc', status)}")
        if time.monotonic() > deadline:
            raise SpawnFailed(f"{doing} a guest's state: still {status} after {DEADLINE:g} s")
        time.sleep(_POLL)
