"""The orchestrator's ear at the link watch.

Owns: LinkFeed: the connection to the watch's socket, kept up. May import: errors, host.links.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fabric.host.links.feed import Audience, socket_path

log = logging.getLogger(__name__)

RETRY = 0.5
"""Seconds between attempts to reach a watch that is not there."""
MAX_LINE = 1 << 22


class LinkFeed:
    """Calls ``on_line`` with each line of the watch, and ``on_silence`` when it goes away."""

    def __init__(
        self,
        host_dir: Path,
        on_line: Callable[[dict[str, Any]], None],
        on_silence: Callable[[], None],
    ) -> None:
        self._path = socket_path(host_dir)
        self._on_line = on_line
        self._on_silence = on_silence
        self._audience = Audience()
        self._writer: asyncio.StreamWriter | None = None

    def tell(self, audience: Audience) -> None:
        """These guests want to hear when a neighbour is dead."""
        if audience == self._audience:
            return
        self._audience = audience
        self._send()

    async def run(self) -> None:
        """Until cancelled."""
        heard = True
        while True:
            try:
                reader, writer = await asyncio.open_unix_connection(self._path, limit=MAX_LINE)
            except OSError:
                if heard:
                    self._on_silence()
                heard = False
                await asyncio.sleep(RETRY)
                continue
            heard, self._writer = True, writer
            try:
                self._send()
                async for line in reader:
                    self._on_line(json.loads(line))
            except (OSError, ValueError) as exc:
                log.warning("the link watch: %s", exc)
            finally:
                self._writer = None
                writer.close()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()

    def _send(self) -> None:
        if self._writer is not None:
            self._writer.write(self._audience.to_line())
