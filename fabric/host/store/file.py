"""A store in a directory: for hosts on one machine.

Owns: the directory. May import: errors, host.store.interface.

One file per key, replaced by renaming, so that no reader ever sees half a value; changes are
noticed by inotify(7). The lease is the file's modification time: its owner touches it three times
per lease, and a value whose file is older is not there. Whoever finds one older than ten leases
removes it.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from asyncinotify import Inotify, Mask

from fabric.errors import EnvironmentFault, NoSpace
from fabric.host.store.interface import State, checked

LEASE = 10.0
"""Seconds."""
_TOUCHES = 3
_FORGOTTEN = 10
_DRAFT = ".new-"
_WATCHED = Mask.MOVED_TO | Mask.DELETE | Mask.DELETE_SELF | Mask.MOVE_SELF | Mask.ONLYDIR
_SEPARATOR = "+"
"""Stands for the slash of a key in the name of its file."""


class FileStore:
    """Implements :class:`fabric.host.store.interface.Store`."""

    def __init__(self, directory: Path, lease: float = LEASE) -> None:
        """``lease``: seconds after which what a dead session put is gone; the same for all."""
        self._directory = directory
        self._lease = lease
        self._own: dict[str, bytes] = {}
        """What this session put, by key."""
        self._touched_at = 0.0
        self._closed = False

    async def put(self, key: str, value: bytes) -> None:
        checked(key, value)
        self._own[key] = value
        self._write(key, value)

    async def watch(self) -> AsyncIterator[State | None]:
        last: object = self  # equal to no state
        while not self._closed:
            with Inotify() as notify:
                try:
                    # Watched before it is read: what changes in between is noticed.
                    self._directory.mkdir(parents=True, exist_ok=True)
                    notify.add_watch(self._directory, _WATCHED)
                    self._put_back()
                except (OSError, EnvironmentFault):
                    if last is not None:
                        last = None
                        yield None
                    await asyncio.sleep(self._lease / _TOUCHES)
                    continue
                while (state := self._read()) is not None:
                    if state != last:
                        last = state
                        yield state
                    if not await self._change(notify):
                        break

    async def close(self) -> None:
        self._closed = True
        for key in self._own:
            with contextlib.suppress(OSError):
                self._path(key).unlink()
        self._own.clear()

    async def _change(self, notify: Inotify) -> bool:
        """Wait for a change, or until leases want to be looked at. False: the directory is not the
        one that is watched."""
        patience = self._touched_at + self._lease / _TOUCHES - time.monotonic()
        try:
            async with asyncio.timeout(max(0.0, patience)):
                event = await notify.get()
        except TimeoutError:
            return self._touch()
        gone = Mask.DELETE_SELF | Mask.MOVE_SELF | Mask.IGNORED | Mask.UNMOUNT
        return not event.mask & gone

    def _touch(self) -> bool:
        self._touched_at = time.monotonic()
        try:
            for key in self._own:
                os.utime(self._path(key))
        except OSError:
            return False  # somebody took it away: it is put back
        return True

    def _put_back(self) -> None:
        for key, value in self._own.items():
            self._write(key, value)

    def _read(self) -> State | None:
        """None when the directory cannot be read."""
        now, found = time.time(), {}
        try:
            for path in self._directory.iterdir():
                if (value := self._value(path, now)) is not None:
                    found[path.name.replace(_SEPARATOR, "/")] = value
        except OSError:
            return None
        return found

    def _value(self, path: Path, now: float) -> bytes | None:
        with contextlib.suppress(OSError):
            age = now - path.stat().st_mtime
            if age > _FORGOTTEN * self._lease:
                path.unlink()
            elif age <= self._lease and not path.name.startswith(_DRAFT):
                return path.read_bytes()
        return None

    def _path(self, key: str) -> Path:
        return self._directory / key.replace("/", _SEPARATOR)

    def _write(self, key: str, value: bytes) -> None:
        path = self._path(key)
        draft = path.with_name(f"{_DRAFT}{os.getpid()}-{path.name}")
        with _translated(path):
            try:
                self._directory.mkdir(parents=True, exist_ok=True)
                draft.write_bytes(value)
                draft.rename(path)
            finally:
                draft.unlink(missing_ok=True)


@contextlib.contextmanager
def _translated(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        kind = NoSpace if exc.errno in (errno.ENOSPC, errno.EDQUOT) else EnvironmentFault
        raise kind(f"store: {path}: {exc.strerror}", cure="run as root with space left") from exc
