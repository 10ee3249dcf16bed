"""What this host is about to own, written down before it exists.

Owns: the intent journal (one JSON object per line, append only). May import: errors.

A process may die between creating a thing and remembering that it did. So the intention is on disk
first (``intend``, synced), and is taken back only when absence was proven (``done``). Whoever comes
later reads ``open_entries`` and knows what may be there. ``done`` is not synced: losing it costs a
second look, never a leak.
"""

from __future__ import annotations

import errno
import json
import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from fabric.errors import EnvironmentFault, NoSpace

GUEST_KIND = "guest"
"""Kind of the entries that stand for domains."""

COMPACT_AFTER_LINES = 1024
"""Closed lines tolerated before the file is rewritten: bounds it to roughly 200 KiB."""


@dataclass(frozen=True)
class Entry:
    """One thing that may exist."""

    kind: str
    name: str
    details: Mapping[str, Any] = field(default_factory=dict)


class Journal:
    """Append-only journal at ``path``. Thread-safe. Use as a context manager, or open()/close()."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._open: dict[tuple[str, str], Entry] = {}
        self._lines = 0
        self._torn = False
        self._descriptor: int | None = None

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def open(self) -> None:
        """Read what is there and make ready to append.

        Raises EnvironmentFault when the file cannot be read or made, NoSpace when it is full.
        """
        with self._lock:
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._replay(self.path.read_bytes() if self.path.exists() else b"")
                # Rewriting at open also drops a torn last line, so that nothing is appended to it.
                self._rewrite()
            except OSError as exc:
                raise self._translated(exc) from exc

    def close(self) -> None:
        """Release the file. Idempotent."""
        with self._lock:
            if self._descriptor is not None:
                os.close(self._descriptor)
                self._descriptor = None

    def intend(self, kind: str, name: str, **details: Any) -> None:
        """Note that ``name`` is about to be created; on disk when this returns."""
        entry = Entry(kind, name, details)
        with self._lock:
            self._append({"intend": kind, "name": name, "details": details}, sync=True)
            self._open[kind, name] = entry

    def done(self, kind: str, name: str) -> None:
        """Note that ``name`` is proven absent. Unknown names are ignored: absence is idempotent."""
        with self._lock:
            if self._open.pop((kind, name), None) is None:
                return
            self._append({"done": kind, "name": name}, sync=False)
            if self._lines - len(self._open) > COMPACT_AFTER_LINES:
                try:
                    self._rewrite()
                except OSError as exc:
                    raise self._translated(exc) from exc

    def open_entries(self) -> tuple[Entry, ...]:
        """Everything intended and not done, oldest first."""
        with self._lock:
            return tuple(self._open.values())

    def _replay(self, content: bytes) -> None:
        self._open.clear()
        for line in content.split(b"\n"):
            try:
                record = json.loads(line)
                name = record["name"]
                if "intend" in record:
                    entry = Entry(record["intend"], name, record.get("details", {}))
                    self._open[entry.kind, name] = entry
                else:
                    self._open.pop((record["done"], name), None)
            except (ValueError, KeyError, TypeError):
                # Only a crash while writing tears a line, and then the creation it announced had
                # not begun: nothing is lost by passing over it.
                continue

    def _append(self, record: Mapping[str, Any], *, sync: bool) -> None:
        if self._descriptor is None:
            raise EnvironmentFault(f"{self.path}: the journal is not open")
        try:
            # A full disk cuts a write short without an error: the newline in front keeps such a
            # torn line from swallowing this one (empty lines are passed over).
            line = b"\n" * self._torn + json.dumps(record, sort_keys=True).encode() + b"\n"
            self._torn = os.write(self._descriptor, line) < len(line)
            if self._torn:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if sync:
                os.fdatasync(self._descriptor)
        except OSError as exc:
            raise self._translated(exc) from exc
        self._lines += 1

    def _rewrite(self) -> None:
        """Replace the file by its open entries, atomically."""
        draft = self.path.with_suffix(".new")
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC
        descriptor = os.open(draft, flags, 0o600)
        records = [
            {"intend": e.kind, "name": e.name, "details": dict(e.details)}
            for e in self._open.values()
        ]
        try:
            text = "".join(json.dumps(record, sort_keys=True) + "\n" for record in records)
            if os.write(descriptor, text.encode()) < len(text):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fdatasync(descriptor)
            draft.rename(self.path)
        except OSError:
            os.close(descriptor)
            raise
        if self._descriptor is not None:
            os.close(self._descriptor)
        self._descriptor = descriptor
        self._lines = len(records)
        self._torn = False

    def _translated(self, exc: OSError) -> EnvironmentFault:
        kind = NoSpace if exc.errno == errno.ENOSPC else EnvironmentFault
        return kind(
            f"journal {self.path}: {exc.strerror or exc}",
            cure="free space on its file system, or choose another run_dir",
        )
