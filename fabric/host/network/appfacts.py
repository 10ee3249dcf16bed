"""Application facts: who is behind a connection request, found out from the kernel.

Owns: the way from a flow to its process, and what /proc says about that process. May import: wire,
routing, host.network.sockdiag. Nothing here raises: a program that cannot be identified has facts
of None, and its connection is carried nevertheless.
"""
# ruff: noqa: PTH115, PTH116, PTH208 - thousands of calls per request: Path objects double the cost

from __future__ import annotations

import os
import pwd
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

from fabric.host.network.sockdiag import SocketOwner, find_socket
from fabric.routing.policy import ApplicationFacts
from fabric.wire.inner import FiveTuple, dscp

PROC = Path("/proc")
_CGROUP_ROOTS = (Path("/sys/fs/cgroup/unified"), Path("/sys/fs/cgroup"))

# Facts travel to the guest in one message line: a command line of megabytes must not.
_MAX_ARGUMENTS = 32
_MAX_ARGUMENT_CHARACTERS = 256
# A machine with more cgroups than this gets no name for the cgroup of a vanished process.
_MAX_CGROUPS = 4096

RECENT = 2
"""Programs to remember: each costs a look at its descriptors, for those that come after it."""

NEED_VARIABLE = "FABRIC_NEED"
PROTOCOL_VARIABLE = "FABRIC_PROTOCOL"


def find_facts(
    flow: FiveTuple, packet: bytes, lately: deque[int] | None = None
) -> ApplicationFacts:
    """Everything the kernel tells about the sender of ``packet``, the first of ``flow``.

    ``lately``: process ids that were found before; they are looked at first, and a new one is put
    in front of them. Takes 0.5 ms for those and for a program just started, as most are;
    otherwise 25 to 50 µs more for every younger process of the namespace, each of which must be
    looked through. Fields are None where nobody knows: forwarded packets, the kernel's own,
    processes that ended already.
    """
    code_point = dscp(packet)
    candidates = find_socket(flow)
    found = _find_process([owner.inode for owner in candidates], flow, lately or ())
    if found is None:
        return _without_process(flow, code_point, candidates)
    pid, inode = found
    if lately is not None and pid not in lately:
        lately.appendleft(pid)
    owner = next(owner for owner in candidates if owner.inode == inode)
    cgroup = _cgroup_of(pid)
    declared = _declared(pid)
    return ApplicationFacts(
        flow=flow,
        pid=pid,
        executable=_executable(pid),
        arguments=_arguments(pid),
        user=_user_name(owner.uid),
        uid=owner.uid,
        cgroup=cgroup,
        unit=unit_of(cgroup),
        dscp=code_point,
        declared_need=declared.get(NEED_VARIABLE),
        declared_protocol=declared.get(PROTOCOL_VARIABLE),
    )


def unit_of(cgroup: str | None) -> str | None:
    """The innermost systemd service or scope of a cgroup path."""
    for part in reversed((cgroup or "").split("/")):
        if part.endswith((".service", ".scope")):
            return part
    return None


def _without_process(
    flow: FiveTuple, code_point: int, candidates: list[SocketOwner]
) -> ApplicationFacts:
    """The socket alone still tells the user and the cgroup, if it is the only one in question."""
    if len(candidates) != 1:
        return ApplicationFacts(flow=flow, dscp=code_point)
    owner = candidates[0]
    cgroup = _cgroup_named(owner.cgroup_id)
    return ApplicationFacts(
        flow=flow,
        user=_user_name(owner.uid),
        uid=owner.uid,
        cgroup=cgroup,
        unit=unit_of(cgroup),
        dscp=code_point,
    )


def _find_process(
    inodes: list[int], flow: FiveTuple, lately: Iterable[int]
) -> tuple[int, int] | None:
    """(pid, inode) of a process of this network namespace that holds one of the sockets."""
    if not inodes:
        return None
    targets = {f"socket:[{inode}]": inode for inode in inodes}
    holders: list[tuple[int, int]] = []
    # Whoever holds the socket is right, whenever it was started, and whatever had that id before.
    known = lately if len(inodes) == 1 else ()
    for pid in chain(known, _pids_here()):
        inode = next((targets[t] for t in _descriptors(pid) if t in targets), None)
        if inode is None:
            continue
        if len(inodes) == 1:
            return pid, inode
        holders.append((pid, inode))
    # Several raw ICMP sockets: programs commonly use their pid as the echo identifier (ping does).
    by_identifier = [holder for holder in holders if holder[0] & 0xFFFF == flow.source_port]
    return next(iter(by_identifier or holders), None)


def _pids_here() -> Iterator[int]:
    """Processes of the calling thread's network namespace, newest first: whoever asks for a
    connection has usually just been started."""
    here = _namespace(PROC / "thread-self")
    pids = sorted((int(entry) for entry in os.listdir(PROC) if entry.isdigit()), reverse=True)
    for pid in pids:
        if _namespace(PROC / str(pid)) == here:
            yield pid


def _namespace(process: Path) -> tuple[int, int] | None:
    try:
        found = os.stat(f"{process}/ns/net")
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _descriptors(pid: int) -> Iterable[str]:
    """What the process's descriptors point to; nothing if it ends meanwhile."""
    directory = f"{PROC}/{pid}/fd"
    try:
        names = os.listdir(directory)
    except OSError:
        return
    for name in names:
        try:
            yield os.readlink(f"{directory}/{name}")
        except OSError:
            continue


def _executable(pid: int) -> str | None:
    try:
        # An upgraded program runs on from a file that is gone; its name is still its name.
        return os.readlink(f"{PROC}/{pid}/exe").removesuffix(" (deleted)")
    except OSError:
        return None


def _arguments(pid: int) -> tuple[str, ...]:
    words = _read(pid, "cmdline").rstrip("\0").split("\0")
    return tuple(word[:_MAX_ARGUMENT_CHARACTERS] for word in words[:_MAX_ARGUMENTS] if word)


def _declared(pid: int) -> dict[str, str]:
    """FABRIC_* variables of the environment the program was started with."""
    pairs = (entry.partition("=") for entry in _read(pid, "environ").split("\0"))
    wanted = (NEED_VARIABLE, PROTOCOL_VARIABLE)
    return {name: value for name, _, value in pairs if name in wanted and value}


def _cgroup_of(pid: int) -> str | None:
    """Path in the unified hierarchy; on hybrid systems that leave it empty, systemd's own."""
    paths = {}
    for line in _read(pid, "cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        paths[controllers] = path
    unified = paths.get("")
    if unified in (None, "/"):
        return paths.get("name=systemd", unified)
    return unified


def _cgroup_named(cgroup_id: int | None) -> str | None:
    """The path of a cgroup by its id, which is its directory's inode number."""
    root = next((path for path in _CGROUP_ROOTS if (path / "cgroup.procs").exists()), None)
    if not cgroup_id or root is None:
        return None
    for visited, (directory, _, _) in enumerate(os.walk(root)):
        if visited >= _MAX_CGROUPS:
            return None
        try:
            if os.stat(directory).st_ino == cgroup_id:
                return "/" + directory.removeprefix(str(root)).lstrip("/")
        except OSError:
            continue
    return None


def _user_name(uid: int) -> str | None:
    try:
        return pwd.getpwuid(uid).pw_name
    except (KeyError, OSError):
        return None


def _read(pid: int, name: str) -> str:
    try:
        return (PROC / str(pid) / name).read_bytes().decode(errors="replace")
    except OSError:
        return ""
