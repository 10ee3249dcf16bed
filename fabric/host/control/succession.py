"""What a connection leaves to an orchestrator that comes after this one.

Owns: when a connection's record is written and when it goes. May import: errors,
host.control.connections, host.events, host.control.records. Records that cannot be written cost the
connection nothing but its survival of a restart.
"""

from __future__ import annotations

from fabric.errors import EnvironmentFault
from fabric.host.control.connections import Connection
from fabric.host.control.records import Records, SavedConnection, SavedGuest
from fabric.host.events import EventLog


class Succession:
    """Keeps the records of one host in step with its connections."""

    def __init__(self, records: Records | None, events: EventLog) -> None:
        """``records``: None where nobody will come after."""
        self._records = records
        self._events = events

    def write_down(self, connection: Connection) -> None:
        """It has a guest now, and is about to be steered to it."""
        guest = connection.guest
        if self._records is None or guest is None:
            return
        try:
            self._records.save(SavedConnection.of(connection, SavedGuest.of(guest)))
        except EnvironmentFault as exc:
            self._events.emit("record-failed", connection.label, reason=str(exc))

    def forget(self, connection: Connection) -> None:
        """It has ended. One whose guest was lost is not forgotten: it gets another."""
        if self._records is not None:
            self._records.forget(connection.id)
