"""What a guest may leave where libvirt does not look any more: its QEMU process, its taps.

Owns: finding them, and ending a QEMU that libvirt has forgotten. May import: host.network.netns,
host.process. Reads /proc; a QEMU is known by the domain's whole name in its command line, ``-name
guest=NAME,…``.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import xml.etree.ElementTree as ET
from pathlib import Path

from fabric.host.network.netns import libvirt_process
from fabric.host.process import Process

STATUS_DIRECTORY = Path("/run/libvirt/qemu")
"""Where libvirt keeps NAME.xml and NAME.pid of every domain of qemu:///system that runs."""


def noted_pid(name: str) -> int | None:
    """What libvirt noted of a domain's QEMU; it may have ended."""
    with contextlib.suppress(OSError, ValueError):
        return int((STATUS_DIRECTORY / f"{name}.pid").read_text())
    return None


def process(name: str) -> Process | None:
    """A domain's QEMU, also where libvirt does not know it."""
    return Process.find(noted_pid(name), name) or qemus(name).get(name)


def qemus(prefix: str) -> dict[str, Process]:
    """Processes of domains whose names start with ``prefix``, by name."""
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            name = _domain_of((entry / "cmdline").read_bytes().split(b"\0"))
            process = Process.find(int(entry.name), name) if name.startswith(prefix) else None
            if process is not None:
                found[name] = process
    return found


def _domain_of(arguments: list[bytes]) -> str:
    for option, value in itertools.pairwise(arguments):
        if option == b"-name" and value.startswith(b"guest="):
            return value.removeprefix(b"guest=").partition(b",")[0].decode(errors="replace")
    return ""


def kill(process: Process, by: signal.Signals = signal.SIGKILL) -> None:
    """Signal it to end; it may be gone before this returns, or a moment later."""
    with contextlib.suppress(ProcessLookupError):
        descriptor = os.pidfd_open(process.pid)
        try:
            # Checked while the descriptor is held: the number cannot be another's any more.
            if process.is_alive():
                signal.pidfd_send_signal(descriptor, by)
        finally:
            os.close(descriptor)


def taps(xml: str) -> list[str]:
    """The interfaces a domain's XML names on the host's side."""
    targets = ET.fromstring(xml).findall("./devices/interface/target")
    return [dev for target in targets if (dev := target.get("dev"))]


def interfaces() -> set[str]:
    """Interfaces of the network namespace libvirt runs in, which need not be ours."""
    daemon = libvirt_process()
    with contextlib.suppress(OSError):
        lines = (daemon / "net/dev").read_text().splitlines() if daemon else []
        return {line.split(":")[0].strip() for line in lines if ":" in line}
    return set()
