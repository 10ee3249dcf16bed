"""This host's word to the others through the store, and theirs to it.

Owns: the keys and documents of reports, the task that keeps both going, who a node id belongs to.
May import: errors, routing, host.store, host.control.topology_keeper.

Two hosts with one node id would each tell the others what the other one's links are like. So a host
says who it is in its report, and one that finds its id taken says nothing, and hears nothing, until
the first one has left.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
from collections.abc import Iterator

from fabric.errors import FabricError
from fabric.host.control.topology_keeper import TopologyKeeper
from fabric.host.events import EventLog
from fabric.host.store.interface import State, Store
from fabric.routing.link_state import NodeReport

log = logging.getLogger(__name__)

LINKS = "links/"
HOLDER = "holder"
"""Field of a report: who says it. In the report and not beside it, for a host must never be seen
without one: it would count as gone."""
RETRY = 1.0
"""Seconds until a value that could not be put is tried again."""
RETURN = 20.0
"""Seconds a store that was lost has to be whole again: whoever is not in it then has left. Also
what a host that has just started gives the others to start too: what they said before still holds
(graceful restart, RFC 4724 section 4.2), for their guests went on without them."""


class Publication:
    """Between one keeper and one store."""

    def __init__(
        self, keeper: TopologyKeeper, store: Store, events: EventLog, holder: str = ""
    ) -> None:
        """``holder``: this very host, in all its lives; empty: nobody asks whose an id is."""
        self._holder = holder
        self._alone = asyncio.Event()
        """Whether this host's node id is its own."""
        self._rival = ""
        self._told = b""
        self._keeper = keeper
        self._store = store
        self._events = events
        self._news = asyncio.Event()
        self._refused: dict[str, bytes] = {}
        """Values of others that make no report: told once."""
        self._latest: list[NodeReport] = []
        self._whole_at = math.inf
        """When absence from the store means something, by the loop's clock."""
        keeper.publish = lambda _report: self._news.set()

    async def run(self) -> None:
        """Until cancelled; then this host's word is gone from the store."""
        telling = asyncio.create_task(self._tell())
        try:
            async for state in self._store.watch():
                if state is None:
                    self._keeper.share(False)
                    self._whole_at = math.inf
                    continue
                if self._whole_at == math.inf:
                    loop = asyncio.get_running_loop()
                    self._whole_at = loop.time() + RETURN
                    loop.call_at(self._whole_at, self._hear)
                alone = self._look_around(state)
                if alone:
                    self._latest = list(self._reports(state))
                    self._hear()
                self._keeper.share(alone)
        finally:
            telling.cancel()
            await self._store.close()

    def _look_around(self, state: State) -> bool:
        """Whether this host's node id is its own; tells when that changes."""
        node = self._keeper.report.node
        word = state.get(f"{LINKS}{node}", self._told)
        holder = _holder_of(word)
        rival = holder if self._holder and holder != self._holder else ""
        if rival and rival != self._rival:
            name = self._keeper.topology.name_of(node)
            self._events.emit(
                "node-taken",
                node=node,
                holder=rival,
                error=f"another host is in the store as node {node} ({name}): this one waits",
                cure=f"end one of them, or give it another id (this is {self._holder})",
            )
        elif self._rival and not rival:
            self._events.emit("node-free", node=node)
        self._rival = rival
        if rival:
            self._alone.clear()
            return False
        self._alone.set()
        if word != self._told:  # a rival that came at the same moment may have spoken once
            self._news.set()
        return True

    def _hear(self) -> None:
        whole = asyncio.get_running_loop().time() >= self._whole_at
        said = {report.node for report in self._latest}
        gone = self._keeper.reports.keys() - said if whole else ()
        self._keeper.on_reports(self._latest, gone)

    async def _tell(self) -> None:
        while True:
            await self._alone.wait()
            await self._news.wait()
            self._news.clear()
            report = self._keeper.report
            try:
                word = {**report.to_json(), HOLDER: self._holder}
                self._told = value = json.dumps(word, separators=(",", ":")).encode()
                await self._store.put(f"{LINKS}{report.node}", value)
            except FabricError as exc:
                self._events.emit("store-refused", error=exc.message)
                await asyncio.sleep(RETRY)
                self._news.set()

    def _reports(self, state: State) -> Iterator[NodeReport]:
        for key, value in state.items():
            if not key.startswith(LINKS):
                continue
            try:
                yield NodeReport.from_json(json.loads(value))
            except (FabricError, ValueError) as exc:
                if self._refused.get(key) != value:
                    self._refused[key] = value
                    self._events.emit("report-refused", key=key, error=str(exc))


def _holder_of(value: bytes) -> str:
    """Who said this; empty when it does not say."""
    try:
        return str(json.loads(value).get(HOLDER, ""))
    except (ValueError, AttributeError):
        return ""
