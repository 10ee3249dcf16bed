"""What is known of the established connections, kept for an orchestrator that comes after this one.

Owns: one small file per connection, ``connections/ID.json`` in the host's directory. May import:
errors, routing, wire, host.control.connections, host.guest.host_key.

A record appears before its connection is steered and goes after it was unsteered, each time whole
by one rename. Nothing is synced: a record is of no use after the machine's next boot, so it names
its boot and is not believed in another one.
"""

from __future__ import annotations

import contextlib
import errno
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from fabric.errors import EnvironmentFault, NoSpace
from fabric.host.control.connections import Connection, Role
from fabric.host.guest.host_key import HostKey
from fabric.routing.facts import ApplicationFacts
from fabric.wire.inner import FiveTuple

if TYPE_CHECKING:
    from fabric.host.guest.guest import Guest

FORMAT = 1
"""Raised when a record's meaning changes: an older one is then as good as none."""

_SUFFIX = ".json"
_DRAFT_SUFFIX = ".new"


@dataclass(frozen=True)
class SavedGuest:
    """The guest that carried the connection."""

    index: int
    uuid: str
    """Of the domain: its name is used again, this is not."""
    tier: str
    phases: Mapping[str, float] = field(default_factory=dict)
    host_key: str = ""
    """Hex of the public half of a copy's SSH key; empty: it has the image's."""

    @classmethod
    def of(cls, guest: Guest) -> Self:
        key = guest.host_key.public.hex() if guest.host_key else ""
        return cls(guest.index, guest.uuid, guest.tier, dict(guest.phases), key)

    def key(self) -> HostKey | None:
        """As much of the guest's key as its callers need."""
        return HostKey(bytes.fromhex(self.host_key), b"") if self.host_key else None


@dataclass(frozen=True)
class SavedConnection:
    """An established connection as it is written down. Names as in :class:`Connection`."""

    id: int
    role: str
    source_node: int
    destination_node: int
    requested_at_us: int
    flow: Mapping[str, Any] | None
    facts: Mapping[str, Any] | None
    protocol: int | None
    protocol_name: str
    need: str
    rule: str
    reason: str
    spawn_ms: float | None
    spawns: int
    guest: SavedGuest
    protect: bool = False

    @classmethod
    def of(cls, connection: Connection, guest: SavedGuest) -> Self:
        return cls(
            id=connection.id,
            role=connection.role.value,
            source_node=connection.source_node,
            destination_node=connection.destination_node,
            requested_at_us=connection.requested_at_us,
            flow=connection.flow.to_json() if connection.flow else None,
            facts=connection.facts.to_json() if connection.facts else None,
            protocol=connection.protocol,
            protocol_name=connection.protocol_name,
            need=connection.need,
            rule=connection.rule,
            reason=connection.reason,
            spawn_ms=connection.spawn_ms,
            spawns=connection.spawns,
            guest=guest,
            protect=connection.protect,
        )

    def restore(self) -> Connection:
        """The connection, held and without a guest."""
        return Connection(
            id=self.id,
            role=Role(self.role),
            source_node=self.source_node,
            destination_node=self.destination_node,
            requested_at_us=self.requested_at_us,
            flow=FiveTuple.from_json(dict(self.flow)) if self.flow else None,
            facts=ApplicationFacts.from_json(dict(self.facts)) if self.facts else None,
            protocol=self.protocol,
            protocol_name=self.protocol_name,
            need=self.need,
            rule=self.rule,
            reason=self.reason,
            spawn_ms=self.spawn_ms,
            spawns=self.spawns,
            protect=self.protect,
        )

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> Self:
        """Raises KeyError, TypeError or ValueError for anything that was not written by us whole:
        what would not restore is no record."""
        found = cls(**{**document, "guest": SavedGuest(**document["guest"])})
        found.restore()
        found.guest.key()
        return found


class Records:
    """The records of one host. A call takes 0.2 ms on a tmpfs; not for several threads at once.

    The constructor acquires nothing.
    """

    def __init__(self, directory: Path, boot: str) -> None:
        """``boot``: see :func:`fabric.host.process.boot_id`."""
        self.directory = directory
        self._boot = boot

    def save(self, record: SavedConnection) -> None:
        """Write or replace a connection's record. Raises NoSpace, EnvironmentFault."""
        path = self._path(record.id)
        draft = path.with_suffix(_DRAFT_SUFFIX)
        # What asdict would copy is only looked at here.
        fields = {**vars(record), "guest": vars(record.guest)}
        document = {"format": FORMAT, "boot": self._boot, "connection": fields}
        try:
            if not self.directory.is_dir():
                self.directory.mkdir(mode=0o700, parents=True)
            draft.write_text(json.dumps(document) + "\n")
            draft.rename(path)
        except OSError as exc:
            with contextlib.suppress(OSError):
                draft.unlink(missing_ok=True)
            kind = NoSpace if exc.errno == errno.ENOSPC else EnvironmentFault
            raise kind(f"{path}: {exc.strerror}", cure="free space on its file system") from exc

    def forget(self, connection: int) -> None:
        """Remove a connection's record. Idempotent."""
        self._path(connection).unlink(missing_ok=True)

    def ids(self) -> frozenset[int]:
        """Connections that have a record, readable or not."""
        return frozenset(
            int(path.stem, 16) for path in self.directory.glob("*" + _SUFFIX) if _is_id(path.stem)
        )

    def load(self) -> list[SavedConnection]:
        """All whole records of this boot, by connection id. The others are removed: they can be
        believed neither now nor later."""
        found = []
        for number in sorted(self.ids()):
            record = self._read(number)
            if record is None:
                self.forget(number)
            else:
                found.append(record)
        for draft in self.directory.glob("*" + _DRAFT_SUFFIX):
            draft.unlink(missing_ok=True)
        return found

    def _read(self, number: int) -> SavedConnection | None:
        try:
            document = json.loads(self._path(number).read_text())
            if (document["format"], document["boot"]) != (FORMAT, self._boot):
                return None
            record = SavedConnection.from_json(document["connection"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None
        return record if record.id == number else None

    def _path(self, connection: int) -> Path:
        return self.directory / f"{connection:016x}{_SUFFIX}"


def _is_id(name: str) -> bool:
    return len(name) == 16 and all(digit in "0123456789abcdef" for digit in name)
