"""Domains whose start their libvirtd did not live to finish.

Owns: telling such a domain from one that is being started, and having libvirt forget it. May
import: host.network.netns, host.vmm.domain_xml. Reads and removes libvirt's own status files, of
domains that bear our mark only.

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

STATUS_DIRECTORY = Path("/run/libvirt/qemu")
"""Where libvirt keeps NAME.xml of every domain of qemu:///system that runs."""

_FILES = ("xml", "xml.new", "pid")


def is_stillborn(name: str, directory: Path = STATUS_DIRECTORY) -> bool:
    """Whether nobody will ever finish the start of our domain ``name``."""
    path = directory / f"{name}.xml"
    try:
        noted, text = path.stat().st_mtime, path.read_text()
        if ET.fromstring(text).get("pid") != "0" or read_mark(text) is None:
            return False
    except (OSError, ET.ParseError):
        return False
    daemon = libvirt_pid_file()
    with contextlib.suppress(OSError):
        # What the daemon that runs now noted, it may still be working on.
        return daemon is None or noted < daemon.stat().st_mtime
    return False


def forget(name: str, directory: Path = STATUS_DIRECTORY) -> None:
    """Keep the next libvirtd from reading of it; the one that runs goes on believing in it.

    Raises OSError."""
    for suffix in _FILES:
        (directory / f"{name}.{suffix}").unlink(missing_ok=True)


def forget_all(directory: Path = STATUS_DIRECTORY) -> None:
    """Before a libvirtd is started: none is to read of a stillborn domain of ours."""
    for path in directory.glob("*.xml"):
        with contextlib.suppress(OSError):
            if is_stillborn(path.stem, directory):
                forget(path.stem, directory)
