"""Processes of a lab: starting them inside a namespace, and ending exactly those.

Owns: daemons of a lab and signals to them. May import: errors, host.process, host.network.netns.
Signals go through a pidfd taken *before* the identity of the process is checked, so a recycled
process id can never be hit.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from fabric.errors import EnvironmentFault, ToolMissing
from fabric.host.network.netns import NETNS_DIR
from fabric.host.process import Process

TERM_GRACE = 3.0
"""Seconds a process gets between SIGTERM and SIGKILL."""
KILL_GRACE = 5.0
"""Seconds after SIGKILL; only a process stuck in the kernel needs them."""


def identify(pid: int) -> Process | None:
    """The process with this id now, None if there is none (or only its zombie)."""
    return Process.find(pid, "")


def start_in_namespace(
    namespace: str,
    argv: Sequence[str],
    log: Path,
    *,
    pass_fds: Sequence[int] = (),
    start_in: Path = Path("/"),
    environment: Mapping[str, str] | None = None,
) -> Process:
    """Start a daemon inside a namespace, in a session of its own, output appended to ``log``.

    ``ip netns exec`` replaces itself by the program (the pid stays) and mounts the namespace's
    /etc/netns files, which setns alone would not. One that ends at once is returned all the
    same: whoever asked for it knows best what that means. Raises ToolMissing.
    """
    added = [f"{name}={value}" for name, value in (environment or {}).items()]
    variables = ["env", *added] if added else []
    with log.open("ab") as output:
        try:
            child = subprocess.Popen(
                ["ip", "netns", "exec", namespace, *variables, *argv],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=start_in,  # not the caller's: `python -m` would import from there
                start_new_session=True,
                pass_fds=tuple(pass_fds),
            )
        except FileNotFoundError as exc:
            raise ToolMissing(
                "`ip` is not installed", cure="install the Debian package iproute2"
            ) from exc
    # Our child, so its number is its own until we wait for it, even if it has ended already.
    return Process.of_child(child.pid)


def end(process: Process, grace: float = TERM_GRACE) -> bool:
    """SIGTERM, then SIGKILL after ``grace`` seconds. False: that process was not there any more.

    Raises EnvironmentFault when it survives even that.
    """
    return _end(process.pid, process.is_alive, grace)


def wait(process: Process, seconds: float) -> bool:
    """Wait for a process (no child of ours, maybe) to end; whether it did."""
    with _pidfd(process.pid) as descriptor:
        return descriptor is None or not process.is_alive() or _ended(descriptor, seconds)


def is_inside(process: Process, namespace: str) -> bool:
    """Whether a process stands in the namespace that has this name now."""
    try:
        return _stands_in(process.pid, (NETNS_DIR / namespace).stat())
    except OSError:
        return False


def end_inside(namespace: str, grace: float = TERM_GRACE) -> int:
    """End whatever else still runs inside a namespace of ours; how many there were."""
    try:
        target = (NETNS_DIR / namespace).stat()
    except OSError:
        return 0
    everyone = (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())
    # Not ourselves: `fabric down` may be run by `fabric run`.
    pids = [pid for pid in everyone if pid != os.getpid() and _stands_in(pid, target)]
    for pid in pids:
        _end(pid, lambda pid=pid: _stands_in(pid, target), grace)  # type: ignore[misc]
    return len(pids)


def tail(path: Path, lines: int = 15) -> str:
    """The end of a log, for an error message; empty when there is none."""
    try:
        return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])
    except OSError:
        return ""


def _stands_in(pid: int, target: os.stat_result) -> bool:
    try:
        found = os.stat(f"/proc/{pid}/ns/net")  # noqa: PTH116 - a magic link, not a path
    except OSError:
        return False
    return (found.st_dev, found.st_ino) == (target.st_dev, target.st_ino)


def _end(pid: int, is_it: Callable[[], bool], grace: float) -> bool:
    with _pidfd(pid) as descriptor:
        if descriptor is None or not is_it():
            return False
        for number, patience in ((signal.SIGTERM, grace), (signal.SIGKILL, KILL_GRACE)):
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(descriptor, number)
            if _ended(descriptor, patience):
                return True
    raise EnvironmentFault(
        f"process {pid} does not end, not even by SIGKILL", cure="it hangs in the kernel: see dmesg"
    )


@contextlib.contextmanager
def _pidfd(pid: int) -> Iterator[int | None]:
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        yield None
        return
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _ended(descriptor: int, seconds: float) -> bool:
    """A pidfd becomes readable when its process ends, also as a zombie of another parent."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(max(0.0, seconds) * 1000))


def deadline(seconds: float) -> Callable[[], float]:
    """Seconds left, counted from now."""
    end_at = time.monotonic() + seconds
    return lambda: end_at - time.monotonic()
