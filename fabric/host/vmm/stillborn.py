"""Domains whose start their libvirtd did not live to finish.

Owns: telling such a domain from one that is being started, and having libvirt forget it. May
import: host.network.netns, host.vmm.{domain_xml,remains}. Reads and removes libvirt's own status
files, of domains that bear our mark only.

libvirt notes a domain before its QEMU has a process (``pid='0'``). When it dies right then, its
successor (libvirt 9.0, ``qemuProcessReconnectHelper``) takes the domain for inactive, does not
look after it, and keeps the start job it read from the file: the domain is listed for ever, and
every call that would change it waits 30 s for a lock nobody holds. Only a libvirtd that never read
the file is free of it.
"""

from __future__ import annotations

import contextlib
import xml.etree.ElementTree as ET
from pathlib import Path

from fabric.host.network.netns import libvirt_pid_file
from fabric.host.vmm.domain_xml import read_mark
from fabric.host.vmm.remains import STATUS_DIRECTORY

_FILES = ("xml", "xml.new", "pid")


def is_stillborn(name: str, directory: Path = STATUS_DIRECTORY) -> bool:
    """Whether the libvirtd that runs will never finish the start of our domain ``name``."""
    path, daemon = directory / f"{name}.xml", libvirt_pid_file()
    with contextlib.suppress(OSError):
        # What it noted itself, it may still be working on.
        before = daemon is None or path.stat().st_mtime < daemon.stat().st_mtime
        return before and _is_starting(path)
    return False


def _is_starting(path: Path) -> bool:
    try:
        text = path.read_text()
        return ET.fromstring(text).get("pid") == "0" and read_mark(text) is not None
    except (OSError, ET.ParseError):
        return False


def forget(name: str, directory: Path = STATUS_DIRECTORY) -> None:
    """Keep the next libvirtd from reading of it; the one that runs goes on believing in it.

    Raises OSError."""
    for suffix in _FILES:
        (directory / f"{name}.{suffix}").unlink(missing_ok=True)


def forget_all(directory: Path = STATUS_DIRECTORY) -> None:
    """Before a libvirtd is started, while none runs: it is not to read of our domains that the last
    one was starting."""
    for path in directory.glob("*.xml"):
        with contextlib.suppress(OSError):
            if _is_starting(path):
                forget(path.stem, directory)
