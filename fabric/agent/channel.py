"""The agent's end of the control channel.

Owns: a non-blocking file descriptor, what waits to be written, what came in. May import: the
standard library, fabric.wire.control.

A virtio-serial port whose host side is closed is always "ready": it hangs up at every poll and
reads as empty. So a quiet channel is put to rest and tried again by the clock.
"""

from __future__ import annotations

import os

from fabric.errors import WireError
from fabric.wire.control import Decoder, encode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from fabric.wire.control import Message
    from fabric.wire.packet import Buffer

MAX_PENDING = 1024 * 1024
"""Bytes kept for a host that does not read; beyond it the newest news is dropped, never memory."""
_READ_SIZE = 65536
# Made when this is loaded: 64 KiB allocated at each read would have the kernel move the heap's end,
# and under emulation that costs a copy as much before its first packet as taking its address.
_buffer = bytearray(_READ_SIZE)
_view = memoryview(_buffer)


class Channel:
    """Messages to and from the host."""

    def __init__(self, path: str) -> None:
        """Open ``path``; ``fd:N`` takes an inherited descriptor. Raises OSError."""
        if path.startswith("fd:"):
            self._fd = int(path[3:])
            os.set_blocking(self._fd, False)
        else:
            self._fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        self._decoder = Decoder()
        self._pending = bytearray()

    def fileno(self) -> int:
        return self._fd

    def mute(self) -> Channel:
        """One that composes and decodes like this one, and says nothing to anybody."""
        other = Channel.__new__(Channel)
        other._fd, other._decoder, other._pending = -1, Decoder(), bytearray()
        return other

    @property
    def wants_to_write(self) -> bool:
        """Something waits for the host to read."""
        return bool(self._pending)

    def send(self, message: Message) -> None:
        """Queue a message and write what the host takes now."""
        line = encode(message)
        if len(self._pending) + len(line) <= MAX_PENDING:
            self._pending += line
        self.flush()

    def flush(self) -> None:
        """Write as much as the host takes."""
        if self._fd < 0:
            self._pending.clear()
        while self._pending:
            try:
                written = os.write(self._fd, self._pending)
            except OSError:
                return  # EAGAIN; or nobody is there yet (EPIPE): the clock tries again
            del self._pending[:written]

    def receive(self) -> tuple[list[Message], bool]:
        """Messages that have come, and whether the other side is there. Lines that cannot be
        understood are skipped: a newer host's, or cut by the host's restart."""
        messages: list[Message] = []
        while True:
            try:
                size = os.readv(self._fd, (_buffer,))
            except BlockingIOError:
                return messages, True
            except OSError:
                return messages, False
            if not size:
                return messages, False
            messages += self.decode(_view[:size])
            # Whether more is there, the next poll tells for less than an exception costs.
            if not self._decoder.unfinished:
                return messages, True

    def decode(self, data: Buffer) -> list[Message]:
        """Messages completed by ``data``."""
        messages: list[Message] = []
        while True:
            try:
                return messages + self._decoder.feed(data)
            except WireError:
                data = b""
