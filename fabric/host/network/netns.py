"""Named network namespaces, compatible with ``ip netns``, and what kernel error numbers mean to us.

Owns: /run/netns, namespace system calls, the translation of errno values of network configuration.
May import: errors.
"""

from __future__ import annotations

import ctypes
import errno
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from fabric.errors import (
    Conflict,
    EnvironmentFault,
    FabricError,
    KernelLacks,
    NameUnknown,
    NotRoot,
)

NETNS_DIR = Path("/run/netns")
"""Where ``ip netns`` keeps its names; ours are visible to it and the other way round."""

_LIBVIRT_PIDS = (Path("/run/libvirtd.pid"), Path("/run/virtqemud.pid"))
"""The monolithic daemon's and the modular one's."""

# <sched.h>, <sys/mount.h>
_CLONE_NEWNET = 0x40000000
_MS_BIND, _MS_REC, _MS_SHARED, _MNT_DETACH = 0x1000, 0x4000, 0x100000, 2


def create_netns(name: str) -> None:
    """A named namespace as ``ip netns add`` makes it, loopback down. Raises Conflict, NotRoot."""
    path = NETNS_DIR / name
    _share_netns_dir()
    try:
        path.touch(mode=0o400, exist_ok=False)
    except OSError as exc:
        raise translate(exc.errno or 0, f"create namespace {name}") from exc

    def make() -> None:
        _libc("unshare", _CLONE_NEWNET)
        _libc("mount", b"/proc/thread-self/ns/net", bytes(path), b"none", _MS_BIND, None)

    try:
        _on_new_thread(make)
    except OSError as exc:
        path.unlink(missing_ok=True)
        raise translate(exc.errno or 0, f"create namespace {name}") from exc


def delete_netns(name: str) -> bool:
    """Forget the name; the kernel frees the namespace with its last process. False: was none."""
    path = NETNS_DIR / name
    try:
        _libc("umount2", bytes(path), _MNT_DETACH)
    except OSError as exc:
        if exc.errno not in (errno.EINVAL, errno.ENOENT):  # not mounted: half-made by somebody
            raise translate(exc.errno or 0, f"delete namespace {name}") from exc
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    return True


def list_netns() -> list[str]:
    """Names of all named namespaces, sorted."""
    return sorted(entry.name for entry in NETNS_DIR.iterdir()) if NETNS_DIR.is_dir() else []


def libvirt_process() -> Path | None:
    """/proc/PID of the daemon that makes the taps, in the network namespace it stands in; None
    where none runs."""
    file = libvirt_pid_file()
    return None if file is None else _process_of(file)


def libvirt_pid_file() -> Path | None:
    """Written by that daemon when it started, before it looked at anything."""
    return next((file for file in _LIBVIRT_PIDS if _process_of(file) is not None), None)


def _process_of(pid_file: Path) -> Path | None:
    with suppress(OSError, ValueError):
        process = Path(f"/proc/{int(pid_file.read_text())}")
        return process if process.exists() else None
    return None


def enter_netns(name: str) -> None:
    """Move the *calling thread* into the namespace (a name, or an absolute path), for good.

    Raises NameUnknown, NotRoot.
    """
    try:
        descriptor = os.open(NETNS_DIR / name, os.O_RDONLY | os.O_CLOEXEC)
        try:
            _libc("setns", descriptor, _CLONE_NEWNET)
        finally:
            os.close(descriptor)
    except OSError as exc:
        raise translate(exc.errno or 0, f"enter namespace {name}") from exc


def translate(code: int, what: str) -> FabricError:
    """The fabric error for an errno of the kernel's network configuration."""
    text = f"{what}: {os.strerror(code)}"
    if code in (errno.EPERM, errno.EACCES):
        return NotRoot(text, cure="run as root")
    if code in (errno.EEXIST, errno.EBUSY):
        return Conflict(text)
    if code in (errno.ENODEV, errno.ENXIO, errno.ENOENT, errno.ESRCH, errno.EADDRNOTAVAIL):
        return NameUnknown(text)
    if code in (errno.EOPNOTSUPP, errno.ENOSYS, errno.EAFNOSUPPORT):
        return KernelLacks(text, cure="fabric doctor tells what this kernel lacks")
    return EnvironmentFault(text)


def _share_netns_dir() -> None:
    """Make /run/netns a shared mount, as iproute2 does, so every mount namespace sees new names."""
    try:
        NETNS_DIR.mkdir(mode=0o755, parents=True, exist_ok=True)
        directory = bytes(NETNS_DIR)
        try:
            _libc("mount", b"", directory, b"none", _MS_SHARED | _MS_REC, None)
        except OSError as exc:
            if exc.errno != errno.EINVAL:  # EINVAL: not a mount point yet
                raise
            _libc("mount", directory, directory, b"none", _MS_BIND | _MS_REC, None)
            _libc("mount", b"", directory, b"none", _MS_SHARED | _MS_REC, None)
    except OSError as exc:
        raise translate(exc.errno or 0, f"prepare {NETNS_DIR}") from exc


def _libc(function: str, *arguments: Any) -> None:
    library = ctypes.CDLL(None, use_errno=True)
    if getattr(library, function)(*arguments) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{function}: {os.strerror(code)}")


def _on_new_thread(action: Callable[[], None]) -> None:
    """Run on a thread that ends afterwards: it may leave its namespace and need not come back."""
    failures: list[OSError] = []

    def run() -> None:
        try:
            action()
        except OSError as exc:
            failures.append(exc)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    for failure in failures:
        raise failure
