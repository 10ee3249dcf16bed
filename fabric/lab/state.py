"""The record of a lab on this machine: ``<run_dir>/<lab>/lab.json``, and the lock around changes.

Owns: that file. May import: errors, host.process, lab.spec. The record is written before the first
change and removed after the last: while it exists, there may be something to take down.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fabric.errors import Conflict, EnvironmentFault, NameUnknown, NoSpace, NotRoot
from fabric.host.process import Process, boot_id
from fabric.lab.spec import LabSpec, LinkSpec
from fabric.lab.standing import Standing

FORMAT = 1
BUILDING, UP = "building", "up"
LOCK_DEADLINE = 120.0
"""Seconds to wait for another `up`, `down` or `gc`; longer than any of them takes."""
_LOCK_POLL = 0.1


@dataclass
class LabState:
    """What is recorded of one lab."""

    spec: LabSpec
    phase: str = BUILDING
    processes: dict[str, Process] = field(default_factory=dict)
    """Orchestrators by host name, and the emulator under names.LINKS_HOST."""
    standings: dict[int, Standing] = field(default_factory=dict)
    """Links that are not as the file has them, by number."""
    cuts: dict[int, Process] = field(default_factory=dict)
    """Links that a process has cut for as long as it lives, or until it gives them back."""

    def standing(self, link: LinkSpec) -> Standing:
        """What is in force on a link."""
        return self.standings.get(link.number, link.standing)

    @property
    def live(self) -> bool:
        """Whether any of its orchestrators still runs. What else may run serves them alone."""
        return any(
            process.is_alive()
            for name, process in self.processes.items()
            if self.spec.host(name) is not None
        )

    def save(self) -> None:
        """Write atomically. Raises NotRoot, NoSpace, EnvironmentFault."""
        path = record_path(Path(self.spec.hosts[0].run_dir), self.spec.name)
        document = {
            "format": FORMAT,
            "boot": boot_id(),
            "phase": self.phase,
            "digest": self.spec.digest,
            "spec": self.spec.to_json(),
            "processes": {name: _process(each) for name, each in sorted(self.processes.items())},
            "links": {str(number): each.to_json() for number, each in self.standings.items()},
            "cuts": {str(number): _process(each) for number, each in self.cuts.items()},
        }
        write_file(path, json.dumps(document, indent=1) + "\n")

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> LabState:
        processes = {name: Process(**entry) for name, entry in data["processes"].items()}
        if data.get("boot") != boot_id():
            processes = {}  # numbers of another boot: of these processes none lives
        standings = {int(n): Standing.from_json(x) for n, x in data.get("links", {}).items()}
        cuts = {int(n): Process(**x) for n, x in data.get("cuts", {}).items()}
        return cls(LabSpec.from_json(data["spec"]), data["phase"], processes, standings, cuts)


def _process(process: Process) -> dict[str, int]:
    return {"pid": process.pid, "start_ticks": process.start_ticks}


def record_path(run_dir: Path, lab: str) -> Path:
    return run_dir / lab / "lab.json"


def load(run_dir: Path, lab: str) -> LabState | None:
    """The record of a lab, None if there is none. Raises EnvironmentFault if it is unreadable."""
    path = record_path(run_dir, lab)
    try:
        return LabState.from_json(json.loads(path.read_text()))
    except FileNotFoundError:
        return None
    except PermissionError as exc:
        raise NotRoot(f"{path}: {exc.strerror}", cure="run as root") from exc
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise EnvironmentFault(
            f"{path}: unreadable record: {exc!r}", cure="run `fabric gc` to remove its remains"
        ) from exc


def recorded_labs(run_dir: Path) -> list[str]:
    """Names of all labs with a record, sorted; also of unreadable ones."""
    return sorted(path.parent.name for path in run_dir.glob("*/lab.json"))


def require(run_dir: Path, lab: str) -> LabState:
    """The record of a lab. Raises NameUnknown listing the labs there are."""
    state = load(run_dir, lab)
    if state is None:
        known = ", ".join(recorded_labs(run_dir)) or "none"
        raise NameUnknown(f"no lab {lab} is up (labs that are: {known})", cure="`fabric up FILE`")
    return state


def write_file(path: Path, text: str) -> None:
    """Replace a file atomically, making its directory.

    Raises NotRoot, NoSpace, EnvironmentFault.
    """
    draft = path.with_name(path.name + ".new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft.write_text(text)
        draft.rename(path)
    except OSError as exc:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)
        kinds = {errno.ENOSPC: NoSpace, errno.EACCES: NotRoot, errno.EPERM: NotRoot}
        kind = kinds.get(exc.errno or 0, EnvironmentFault)
        raise kind(f"{path}: {exc.strerror}", cure="run as root with space left there") from exc


@contextlib.contextmanager
def locked(run_dir: Path, wait: float = LOCK_DEADLINE) -> Iterator[None]:
    """One change at a time on this machine; also removes the directory when it became empty.

    Raises Conflict after ``wait`` seconds, NotRoot.
    """
    descriptor = _lock(run_dir, wait)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            run_dir.rmdir()
        os.close(descriptor)


def _lock(run_dir: Path, wait: float) -> int:
    give_up = time.monotonic() + wait
    while True:
        try:
            run_dir.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(run_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            continue  # removed by the last holder between the two calls
        except OSError as exc:
            raise NotRoot(f"{run_dir}: {exc.strerror}", cure="run as root") from exc
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The holder before us may have removed the directory: then this lock guards nothing.
            if (
                os.fstat(descriptor).st_nlink
                and run_dir.exists()
                and (os.fstat(descriptor).st_ino == run_dir.stat().st_ino)
            ):
                return descriptor
        except BlockingIOError:
            if time.monotonic() > give_up:
                os.close(descriptor)
                raise Conflict(
                    "another fabric command is changing labs on this machine",
                    cure="wait for it to end",
                ) from None
            time.sleep(_LOCK_POLL)
        except OSError:
            pass  # vanished between exists() and stat(): try again
        os.close(descriptor)
