"""The orchestrator process: ``python -m fabric.host.main CONFIG.json``.

Owns: assembly of one host's parts, the event loop, signals. May import: errors, routing, host. Runs
inside the host's network namespace; on a real machine that is the machine's own.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import secrets
import signal
import sys
import time
from contextlib import AsyncExitStack
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI

from fabric import __version__
from fabric.errors import FabricError
from fabric.host.acceleration import Acceleration, QemuBooter, probe
from fabric.host.api import build_api
from fabric.host.appfacts import find_facts
from fabric.host.bridge_ports import KernelBridgePorts
from fabric.host.bundle import Bundle, build_bundle, compiler_for
from fabric.host.config import HostConfig
from fabric.host.datapath import KernelDatapath
from fabric.host.events import EventLog
from fabric.host.guest import NO_CONNECTION
from fabric.host.guests import Guest, GuestManager
from fabric.host.hypervisor import LibvirtHypervisor
from fabric.host.image import GuestImage, load_image
from fabric.host.orchestrator import Orchestrator
from fabric.host.template import Ingredients, TemplateStore
from fabric.host.views import Status
from fabric.routing.policy import Policy
from fabric.routing.protocols import compute_table
from fabric.routing.topology import Topology

log = logging.getLogger(__name__)

SWEEP_INTERVAL = 1.0


class SystemClock:
    """Real time. The only place of the host that asks for it on the orchestrator's behalf."""

    def monotonic(self) -> float:
        return time.monotonic()

    def unix_us(self) -> int:
        return time.time_ns() // 1000


def table_version(topology: Topology) -> int:
    """Version of a table computed from a static topology: 32 bits of its content's digest."""
    text = json.dumps(topology.to_json(), sort_keys=True).encode()
    return int.from_bytes(hashlib.blake2s(text, digest_size=4).digest(), "big")


class Server(uvicorn.Server):
    """uvicorn without its own signal handling: the orchestrator decides when to end."""

    def install_signal_handlers(self) -> None:
        return None


async def serve(config: HostConfig) -> None:
    """Run until told to stop; afterwards nothing of this host is left."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    clock = SystemClock()
    started_at = datetime.now(UTC).isoformat(timespec="microseconds")
    config.host_dir.mkdir(parents=True, exist_ok=True)
    events = EventLog(config.host, clock.unix_us, config.host_dir / "events.jsonl")
    state_dir = Path(config.state_dir)
    image = load_image(state_dir)
    acceleration = await asyncio.to_thread(probe, image, state_dir)
    topology = Topology.from_json(config.topology)
    table = compute_table(topology, config.node, table_version(topology))
    async with AsyncExitStack() as stack:
        stack.callback(events.close)
        hypervisor = LibvirtHypervisor(config.libvirt_uri)
        stack.callback(hypervisor.close)
        datapath = stack.enter_context(KernelDatapath(config, topology))
        bundle = build_bundle(compiler=compiler_for(image))
        policy = Policy.from_json(config.policy, topology.protocol_names)
        tiers = {config.tier, *policy.tiers()} if config.spawning else {"cold"}
        templates = None
        if tiers != {"cold"}:
            templates = await asyncio.to_thread(
                _template_store, config, image, acceleration, bundle
            )
        ports = stack.enter_context(KernelBridgePorts())
        manager = GuestManager(
            config,
            image,
            acceleration,
            hypervisor,
            bundle,
            ports=ports,
            templates=templates,
            pooled=tuple(tiers),
        )
        orchestrator = Orchestrator(
            config,
            topology,
            table,
            policy,
            datapath=datapath,
            guests=manager,
            find_facts=find_facts,
            events=events,
            clock=clock,
            first_serial=secrets.randbits(32),
        )
        manager.on_event = partial(_on_guest_event, events)
        manager.on_notice = partial(_on_notice, events)
        manager.on_message = orchestrator.messages.on_message
        manager.on_lost = orchestrator.on_guest_lost
        manager.on_attach, manager.on_detach = datapath.attach, datapath.detach
        leftovers = await manager.start()
        if leftovers:
            events.emit("leftovers-destroyed", guests=leftovers)
        loop.add_reader(datapath.miss_fd, lambda: orchestrator.on_miss(datapath.read_miss()))
        loop.add_reader(
            datapath.underlay_fd, lambda: orchestrator.on_underlay(datapath.read_underlay())
        )
        status = partial(_status, config, orchestrator, manager, datapath, acceleration, started_at)
        app = build_api(orchestrator, status, stop.set)
        await _run(app, config, orchestrator, stop)


def _template_store(
    config: HostConfig, image: GuestImage, acceleration: Acceleration, bundle: Bundle
) -> TemplateStore:
    """Where this host's template is, or will be. Asks QEMU for its version."""
    qemu = QemuBooter().version()
    made_of = Ingredients.gather(image, acceleration, bundle, qemu, config.guest_memory_mib)
    return TemplateStore(Path(config.template_dir), made_of)


async def _run(
    app: FastAPI, config: HostConfig, orchestrator: Orchestrator, stop: asyncio.Event
) -> None:
    """Serve the API until everything has ended after ``stop``.

    The socket appears only now, so it means *ready*; it goes last, so while it is there somebody is
    still cleaning up.
    """
    config.api_socket.unlink(missing_ok=True)
    server = Server(
        uvicorn.Config(
            app,
            uds=str(config.api_socket),
            log_level="warning",
            timeout_graceful_shutdown=2,
        )
    )
    serving = asyncio.create_task(server._serve())
    orchestrator.events.emit("started", version=__version__, pid=os.getpid())
    try:
        while not stop.is_set() and not serving.done():
            orchestrator.sweep()
            try:
                await asyncio.wait_for(stop.wait(), SWEEP_INTERVAL)
            except TimeoutError:
                continue
    finally:
        orchestrator.events.emit("stopping")
        await orchestrator.close()
        server.should_exit = True
        await serving
        config.api_socket.unlink(missing_ok=True)


def _on_guest_event(events: EventLog, name: str, guest: Guest, fields: dict[str, Any]) -> None:
    label = f"{guest.connection:016x}" if guest.connection != NO_CONNECTION else None
    events.emit(name, label, **{"guest": guest.name, **fields})


def _on_notice(events: EventLog, name: str, fields: dict[str, Any]) -> None:
    events.emit(name, **fields)


def _status(
    config: HostConfig,
    orchestrator: Orchestrator,
    manager: GuestManager,
    datapath: KernelDatapath,
    acceleration: Acceleration,
    started_at: str,
) -> Status:
    return Status(
        lab=config.lab,
        host=config.host,
        node=config.node,
        pid=os.getpid(),
        started_at=started_at,
        version=__version__,
        table_version=orchestrator.table.version,
        guests=manager.alive(),
        connections=len(orchestrator.connections),
        tier=config.tier,
        kept_ready=manager.kept_ready(),
        acceleration=asdict(acceleration),
        limits=asdict(config.limits),
        protocols=list(orchestrator.topology.protocol_names.values()),
        overlay_addresses=list(config.overlay_addresses),
        refused_packets=datapath.refused(),
    )


def main() -> int:
    """Entry point. Exit codes are those of :mod:`fabric.errors`."""
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    try:
        asyncio.run(serve(HostConfig.load(Path(sys.argv[1]))))
    except FabricError as exc:
        log.error("%s", exc)  # noqa: TRY400 - the message is for people, the trace is not
        return exc.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
