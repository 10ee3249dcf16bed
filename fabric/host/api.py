"""The local HTTP API of one orchestrator, on a unix socket.

Owns: paths, status codes, the OpenAPI document, Prometheus metrics. May import: errors, host.
Whoever can open the socket (root) is trusted; it is never bound to a network.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, Protocol

from fastapi import FastAPI, HTTPException, Response
from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from fabric import __version__
from fabric.errors import FabricError
from fabric.host import views
from fabric.host.control.connections import Connection, State
from fabric.host.control.orchestrator import Orchestrator
from fabric.host.control.topology_keeper import TopologyKeeper
from fabric.host.upkeep.reaper import Action


class Reap(Protocol):
    def __call__(self, *, dry_run: bool) -> Awaitable[list[Action]]: ...


def build_api(
    orchestrator: Orchestrator,
    status: Callable[[], views.Status],
    shutdown: Callable[[], None],
    reap: Reap,
    keeper: TopologyKeeper,
) -> FastAPI:
    """``status`` adds what only the process knows; ``shutdown`` asks it to end; ``reap`` is
    :meth:`fabric.host.upkeep.housekeeping.Housekeeper.run`; ``keeper`` knows the links."""
    app = FastAPI(title="fabric orchestrator", version=__version__)
    registry = CollectorRegistry()
    registry.register(_Metrics(orchestrator, status))

    @app.exception_handler(FabricError)
    async def on_error(_request: object, exc: FabricError) -> JSONResponse:
        return JSONResponse({"error": exc.message, "cure": exc.cure}, status_code=500)

    @app.get("/v1/status", summary="This host and its limits")
    async def get_status() -> views.Status:
        return status()

    @app.get("/v1/connections", summary="Connections, newest first, ended ones included")
    async def get_connections(live: bool = False) -> list[views.ConnectionView]:
        every = orchestrator.connections.all()
        return [
            views.connection_view(c, orchestrator.topology)
            for c in every
            if not live or c.state is not State.CLOSED
        ]

    def find(label: str) -> Connection:
        found = orchestrator.connections.find(label)
        if not found:
            raise HTTPException(404, f"no connection {label} on {orchestrator.config.host}")
        if (several := len({each.label for each in found})) > 1:
            raise HTTPException(409, f"{several} connections start with {label}")
        # Late packets may have brought one back that is remembered as ended, too.
        return next((each for each in found if each.state is not State.CLOSED), found[0])

    @app.get("/v1/connections/{connection}", summary="One connection")
    async def get_connection(connection: str) -> views.ConnectionView:
        return views.connection_view(find(connection), orchestrator.topology)

    @app.get("/v1/traces", summary="Traces of packets delivered on this host, newest last")
    async def get_traces(connection: str = "", last: int = 256) -> list[dict[str, Any]]:
        some = orchestrator.connections.find(connection)
        for each in some:
            await orchestrator.messages.refresh(each)
        traces = [trace for each in some for trace in each.traces.values()]
        traces.sort(key=lambda t: t["hops"][-1]["received_at_us"] if t["hops"] else 0)
        return traces[-last:]

    @app.get("/v1/explain/{connection}", summary="Why this host forwards it as it does")
    async def get_explain(connection: str) -> views.Explanation:
        return views.explanation(find(connection), orchestrator)

    @app.get("/v1/routes", summary="The forwarding table")
    async def get_routes(protocol: str = "") -> list[views.Route]:
        return views.routes(orchestrator, protocol)

    @app.get("/v1/links", summary="Links to neighbours as they are watched and measured")
    async def get_links() -> views.LinksView:
        return views.links_view(keeper, orchestrator.config.host)

    @app.get("/v1/tables", summary="Versions of the forwarding table, newest last")
    async def get_tables() -> list[views.TableVersion]:
        return [views.table_version(each) for each in orchestrator.history.all()]

    @app.get("/v1/tables/{version}", summary="A version: its topology, and its table's rows")
    async def get_table(version: int, destination: int = 0) -> views.TableDocument:
        recorded = orchestrator.history.find(version)
        if recorded is None:
            raise HTTPException(404, f"no table {version:08x} any more")
        return views.table_document(recorded, orchestrator.config.host, destination)

    @app.get("/v1/guests", summary="Guests alive on this host")
    async def get_guests() -> list[views.GuestView]:
        return [
            views.guest_view(c.guest, c) for c in orchestrator.connections if c.guest is not None
        ]

    @app.get("/v1/events", summary="Events as JSON lines", response_class=StreamingResponse)
    async def get_events(since: int = 0, follow: bool = False) -> StreamingResponse:
        events = orchestrator.events

        async def lines() -> AsyncIterator[str]:
            if follow:
                async for event in events.follow(since):
                    yield json.dumps(event.to_json()) + "\n"
            else:
                for event in events.since(since):
                    yield json.dumps(event.to_json()) + "\n"

        return StreamingResponse(lines(), media_type="application/x-ndjson")

    @app.delete("/v1/connections/{connection}", status_code=202, summary="End a connection")
    async def delete_connection(connection: str) -> dict[str, str]:
        found = find(connection)
        await orchestrator.end(found, "asked")
        return {"connection": found.label}

    @app.post("/v1/shutdown", status_code=202, summary="End all connections and the process")
    async def post_shutdown() -> dict[str, str]:
        shutdown()
        return {"host": orchestrator.config.host}

    @app.post("/v1/reap", summary="Compare what is there with what should be, and mend it")
    async def post_reap(dry_run: bool = False) -> list[views.ActionView]:
        return [views.action_view(action) for action in await reap(dry_run=dry_run)]

    @app.get("/metrics", summary="Prometheus metrics", response_class=PlainTextResponse)
    async def get_metrics() -> Response:
        return Response(generate_latest(registry), media_type="text/plain; version=0.0.4")

    return app


class _Metrics(Collector):
    """Reads the orchestrator at scrape time; keeps no state of its own."""

    def __init__(self, orchestrator: Orchestrator, status: Callable[[], views.Status]) -> None:
        self._orchestrator = orchestrator
        self._status = status

    def collect(self) -> Iterator[Metric]:
        table = self._orchestrator.connections
        states = GaugeMetricFamily(
            "fabric_connections", "Connections on this host", labels=["state"]
        )
        for state in (State.HELD, State.ESTABLISHED):
            states.add_metric([state.value], sum(c.state is state for c in table))
        yield states
        held = GaugeMetricFamily("fabric_held_packets", "Packets waiting for a guest")
        held.add_metric([], table.held_packets())
        yield held
        events = CounterMetricFamily("fabric_events", "Events by name", labels=["name"])
        for name, count in sorted(self._orchestrator.events.counts.items()):
            events.add_metric([name], count)
        yield events
        refused = CounterMetricFamily(
            "fabric_refused_packets", "Packets guests had no right to send", labels=["cause"]
        )
        for cause, count in self._status().refused_packets.items():
            refused.add_metric([cause], count)
        yield refused
        packets = GaugeMetricFamily(
            "fabric_agent_counter",
            "Agents' counters of live connections, summed",
            labels=["name"],
        )
        sums: dict[str, int] = {}
        for connection in table:
            for name, value in connection.counters.items():
                sums[name] = sums.get(name, 0) + value
        for name, value in sorted(sums.items()):
            packets.add_metric([name], value)
        yield packets
