"""A running libvirt, where none is supervised.

Owns: starting ``libvirtd`` (and ``virtlogd``) when nothing answers, on machines without an init
system that would. May import: errors, host.hypervisor. Never stops a daemon: others may use it.
"""

from __future__ import annotations

import shutil
import subprocess
import time
from pathlib import Path

from fabric.errors import HypervisorDown, ToolMissing
from fabric.host.hypervisor import LibvirtHypervisor

START_DEADLINE = 30.0
"""Seconds until a started libvirtd must answer; its first start probes QEMU's capabilities, which
takes about 8 s on a slow machine."""

_POLL = 0.1
_SBIN = "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin"
"""Where daemons live: not on every user's PATH."""

_VIRTLOGD_SOCKET = Path("/run/libvirt/virtlogd-sock")


def answers(uri: str = "qemu:///system") -> bool:
    """Whether libvirt answers at ``uri`` now."""
    hypervisor = LibvirtHypervisor(uri)
    try:
        return hypervisor.is_alive()
    finally:
        hypervisor.close()


def ensure_libvirtd(uri: str = "qemu:///system", deadline: float = START_DEADLINE) -> bool:
    """Have libvirt answer at ``uri`` within ``deadline`` seconds; True if it was started here.

    Raises ToolMissing when libvirtd is not installed, HypervisorDown when it does not answer.
    """
    if answers(uri):
        return False
    end = time.monotonic() + deadline
    if not _VIRTLOGD_SOCKET.exists():
        _start("virtlogd", required=False)
    _start("libvirtd", required=True)
    while not answers(uri):
        if time.monotonic() > end:
            raise HypervisorDown(
                f"libvirtd was started but {uri} did not answer within {deadline:g} s",
                cure="run `libvirtd` in a terminal to see why; `fabric doctor` checks the rest",
            )
        time.sleep(_POLL)
    return True


def _start(program: str, *, required: bool) -> None:
    """Start a daemon that puts itself into the background."""
    path = shutil.which(program, path=_SBIN)
    if path is None:
        if required:
            raise ToolMissing(
                f"{program} is not installed",
                cure="install the Debian packages libvirt-daemon-system and qemu-system-x86",
            )
        return
    try:
        result = subprocess.run(
            [path, "-d"], capture_output=True, text=True, timeout=START_DEADLINE, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise HypervisorDown(f"{path} -d: {exc}", cure=f"start {program} by hand") from exc
    # A loser of a race against another starter fails on the pid file; the answer decides.
    if result.returncode != 0 and required and "pid file" not in result.stderr:
        raise HypervisorDown(
            f"{path} -d ended with status {result.returncode}: {result.stderr.strip()}",
            cure="run it in a terminal to see why",
        )
