"""The control channel to one agent, over the unix socket of its virtio-serial port.

Owns: the asyncio end of the channel on the host. May import: errors, wire.control.

A guest may be corrupted: what it says is decoded by wire.control, lines that make no sense are
counted and passed over, and a guest that talks mostly nonsense, or stops reading, is given up.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from pathlib import Path

from fabric.errors import AgentLost, WireError
from fabric.wire.control import Decoder, Message, encode

log = logging.getLogger(__name__)

READ_SIZE = 64 * 1024
"""Bytes per read: a burst of traces is some 40 KB."""

MAX_UNREAD = 32 * 1024 * 1024
"""Bytes waiting for an agent that does not read: four of the largest tables."""

MAX_MALFORMED = 64
"""Malformed lines after which an agent is not worth listening to."""

_CONNECT_POLL = 0.02


class Channel:
    """One connected channel. Make it with :meth:`connect`."""

    def __init__(
        self, path: Path, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.path = path
        self.malformed = 0
        self._reader = reader
        self._writer = writer
        self._decoder = Decoder()

    @classmethod
    async def connect(cls, path: Path, timeout: float) -> Channel:
        """Connect within ``timeout`` seconds; the hypervisor may not have made the socket yet.

        Raises AgentLost when there is no socket to connect to in time.
        """
        deadline = asyncio.get_running_loop().time() + timeout
        while True:
            try:
                reader, writer = await asyncio.open_unix_connection(path)
                return cls(path, reader, writer)
            except OSError as exc:
                if asyncio.get_running_loop().time() >= deadline:
                    raise AgentLost(
                        f"control channel {path}: {exc.strerror or exc} after {timeout:g} s",
                        cure="the domain ended, or QEMU may not create sockets in this directory",
                    ) from exc
            await asyncio.sleep(_CONNECT_POLL)

    def send(self, message: Message) -> None:
        """Queue a message. Raises AgentLost when the channel is closed or the agent is stuck."""
        if self._writer.is_closing():
            raise AgentLost(f"control channel {self.path}: closed")
        if self._writer.transport.get_write_buffer_size() > MAX_UNREAD:
            raise AgentLost(
                f"control channel {self.path}: the agent left more than {MAX_UNREAD} bytes unread"
            )
        self._writer.write(encode(message))

    def resynchronise(self) -> None:
        """Begin a new line: whoever had the channel before may have died in the midst of one."""
        self._writer.write(b"\n")

    async def messages(self) -> AsyncIterator[Message]:
        """What the agent says, until the channel ends.

        Raises AgentLost when the agent sends too much that cannot be understood.
        """
        while True:
            try:
                data = await self._reader.read(READ_SIZE)
            except OSError as exc:
                log.debug("control channel %s: %s", self.path, exc)
                return
            if not data:
                return
            for message in self._decode(data):
                yield message

    def _decode(self, data: bytes) -> list[Message]:
        messages: list[Message] = []
        while True:
            try:
                messages += self._decoder.feed(data)
            except WireError as exc:
                # The decoder dropped the offending line and kept its neighbours: ask again.
                self.malformed += 1
                data = b""
                log.warning("control channel %s: %s", self.path, exc)
                if self.malformed > MAX_MALFORMED:
                    raise AgentLost(
                        f"control channel {self.path}: {self.malformed} malformed messages"
                    ) from exc
            else:
                return messages

    async def close(self) -> None:
        """Close. Idempotent."""
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()
