"""What the control plane asks of a store.

Owns: Store, State, keys. May import: errors.

A store holds small values by key. What a session put is there as long as the session lives: it goes
at once when the session is closed, and after its lease when it died. Whoever watches gets the whole
state each time something changed, never a difference, so nobody can miss anything, whatever was
lost on the way.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping
from typing import Protocol

from fabric.errors import UserError

State = Mapping[str, bytes]
"""Every key that is there, with its value."""

MAX_VALUE = 256 * 1024
"""Bytes of one value."""
_KEY = re.compile(r"[a-z0-9]([a-z0-9._-]{0,62}[a-z0-9])?(/[a-z0-9]([a-z0-9._-]{0,62}[a-z0-9])?)?")


class Store(Protocol):
    """One session with a store. For one event loop."""

    async def put(self, key: str, value: bytes) -> None:
        """Have the others know a value. It may be on its way when this returns: while the store is
        lost it waits, and only the newest value of a key is told. Raises UserError for a key or
        value that cannot be, NoSpace, EnvironmentFault."""

    def watch(self) -> AsyncIterator[State | None]:
        """The state now, and again after every change, own ones too; None when the store is lost,
        and the whole state when it is back. One watcher per session."""

    async def close(self) -> None:
        """End the session; what it put is gone for everybody."""


def checked(key: str, value: bytes) -> None:
    """Raises UserError for what no store takes."""
    if not _KEY.fullmatch(key):
        raise UserError(f"store key {key!r}", cure="use one or two words such as links/7")
    if len(value) > MAX_VALUE:
        raise UserError(f"store key {key}: {len(value)} bytes", cure=f"at most {MAX_VALUE} bytes")
