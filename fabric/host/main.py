"""The orchestrator process: ``python -m fabric.host.main CONFIG.json``.

Owns: what of a host reaches outside, the event loop, signals. May import: errors, routing, host.
Runs inside the host's network namespace; on a real machine that is the machine's own.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import signal
import sys
import time
from collections import deque
from contextlib import AsyncExitStack
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import uvicorn
from fastapi import FastAPI

from fabric import __version__
from fabric.errors import FabricError
from fabric.host.api import build_api
from fabric.host.assembly import Host, Parts
from fabric.host.config import HostConfig
from fabric.host.control.datapath import KernelDatapath
from fabric.host.control.keyring import Keyring
from fabric.host.events import EventLog
from fabric.host.faults import StopAt
from fabric.host.guest.bundle import Bundle, build_bundle, compiler_for
from fabric.host.guest.ingredients import Ingredients
from fabric.host.guest.template import TemplateStore
from fabric.host.guest.template_archive import TEMPLATE_COPIES, TemplateArchive
from fabric.host.network.appfacts import RECENT, find_facts
from fabric.host.network.bridge_ports import KernelBridgePorts
from fabric.host.store.opening import open_store
from fabric.host.views import Status
from fabric.host.vmm import libvirtd
from fabric.host.vmm.acceleration import Acceleration, QemuBooter, probe
from fabric.host.vmm.image import GuestImage, load_image
from fabric.routing.policy import Policy
from fabric.routing.topology import Topology

log = logging.getLogger(__name__)

SECRET_SIZE = 32
"""Bytes from which the keys of this host's guests come."""

SWEEP_INTERVAL = 1.0


class SystemClock:
    """Real time. The only place of the host that asks for it on the orchestrator's behalf."""

    def monotonic(self) -> float:
        return time.monotonic()

    def unix_us(self) -> int:
        return time.time_ns() // 1000


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
    config.host_dir.mkdir(parents=True, exist_ok=True)
    state_dir = Path(config.state_dir)
    image = load_image(state_dir)
    acceleration = await asyncio.to_thread(probe, image, state_dir)
    async with AsyncExitStack() as stack:
        events = EventLog(config.host, clock.unix_us, config.host_dir / "events.jsonl")
        stack.callback(events.close)
        hypervisor = libvirtd.hypervisor(config.libvirt_uri, patient=True)
        stack.callback(hypervisor.close)
        topology = Topology.from_json(config.topology)
        kernel = stack.enter_context(KernelDatapath(config, topology))
        bundle = build_bundle(compiler=compiler_for(image))
        policy = Policy.from_json(config.policy, topology.protocol_names)
        templates = None
        tiers = (config.tier, *policy.tiers()) if config.spawning else ("cold",)
        if set(tiers) != {"cold"}:
            templates = await asyncio.to_thread(
                _template_store, config, image, acceleration, bundle
            )
        parts = Parts(
            config=config,
            image=image,
            acceleration=acceleration,
            bundle=bundle,
            hypervisor=hypervisor,
            kernel=kernel,
            ports=stack.enter_context(KernelBridgePorts()),
            events=events,
            clock=clock,
            find_facts=partial(find_facts, lately=deque(maxlen=RECENT)),
            templates=templates,
            pooled=tiers,
            on_step=StopAt(config.host_dir / "stop-at"),
            watches_links=config.liveness.enabled,
            store=open_store(config.store),
            keyring=Keyring(_secret(config.host_dir / "keyring")),
        )
        host = Host(parts)
        await host.start()
        intake = host.intake
        loop.add_reader(kernel.miss_fd, lambda: intake.on_miss(kernel.read_miss()))
        loop.add_reader(kernel.underlay_fd, lambda: intake.on_underlay(kernel.read_underlay()))
        status = partial(_status, config, host, acceleration, _now())
        app = build_api(host.orchestrator, status, stop.set, host.housekeeper.run, host.keeper)
        await _run(app, config, host, events, stop)


def _secret(path: Path) -> bytes:
    """The same in every life of this host: guests of an earlier one are adopted with it."""
    with contextlib.suppress(OSError):
        if len(found := path.read_bytes()) == SECRET_SIZE:
            return found
    secret = secrets.token_bytes(SECRET_SIZE)
    path.touch(mode=0o600)
    path.write_bytes(secret)
    return secret


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")


def _template_store(
    config: HostConfig, image: GuestImage, acceleration: Acceleration, bundle: Bundle
) -> TemplateStore:
    """Where this host's template is, or will be. Asks QEMU for its version."""
    qemu = QemuBooter().version()
    made_of = Ingredients.gather(image, acceleration, bundle, qemu, config.guest_memory_mib)
    archive = TemplateArchive(Path(config.state_dir) / TEMPLATE_COPIES)
    return TemplateStore(Path(config.template_dir), made_of, archive)


async def _run(
    app: FastAPI, config: HostConfig, host: Host, events: EventLog, stop: asyncio.Event
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
    events.emit("started", version=__version__, pid=os.getpid())
    try:
        while not stop.is_set() and not serving.done():
            host.tick()
            try:
                await asyncio.wait_for(stop.wait(), SWEEP_INTERVAL)
            except TimeoutError:
                continue
    finally:
        events.emit("stopping")
        await host.close()
        server.should_exit = True
        await serving
        config.api_socket.unlink(missing_ok=True)


def _status(config: HostConfig, host: Host, acceleration: Acceleration, started_at: str) -> Status:
    return Status(
        lab=config.lab,
        host=config.host,
        node=config.node,
        pid=os.getpid(),
        started_at=started_at,
        version=__version__,
        table_version=host.orchestrator.table.version,
        guests=host.manager.alive(),
        connections=len(host.orchestrator.connections),
        tier=config.tier,
        kept_ready=host.manager.kept_ready(),
        preparing=host.manager.preparing(),
        acceleration=asdict(acceleration),
        limits=asdict(config.limits),
        protocols=list(host.orchestrator.topology.protocol_names.values()),
        overlay_addresses=list(config.overlay_addresses),
        refused_packets=host.refused(),
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
