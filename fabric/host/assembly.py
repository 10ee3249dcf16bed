"""One host's parts, put together: what an orchestrator process consists of, but for its loop.

Owns: which part hears of what, and the order of coming up and going down. May import: errors,
routing, wire, host. Everything that reaches outside comes in through :class:`Parts`, so that whole
lives of a host, and their violent ends, run in a unit test.
"""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from fabric.host.config import HostConfig
from fabric.host.control.intake import Intake
from fabric.host.control.keyring import Keyring
from fabric.host.control.link_feed import LinkFeed
from fabric.host.control.orchestrator import Orchestrator
from fabric.host.control.ports import Clock, Datapath
from fabric.host.control.publication import Publication
from fabric.host.control.records import Records
from fabric.host.control.succession import Succession
from fabric.host.control.topology_keeper import TopologyKeeper, table_version
from fabric.host.control.vigil import AgentWatch
from fabric.host.events import EventLog
from fabric.host.faults import OnStep, pass_by
from fabric.host.guest.adoption import Inheritance
from fabric.host.guest.bundle import Bundle
from fabric.host.guest.guest import NO_CONNECTION, Accelerator, Guest, Image
from fabric.host.guest.guests import GuestManager
from fabric.host.guest.provision import Provisioner
from fabric.host.guest.template import TemplateStore
from fabric.host.identity import GuestIdentity
from fabric.host.journal import Journal
from fabric.host.links.feed import Audience
from fabric.host.memory import Memory, available_mib
from fabric.host.network.bridge_ports import BridgePorts
from fabric.host.network.ping import Ping, ping
from fabric.host.process import boot_id
from fabric.host.store.interface import Store
from fabric.host.upkeep.housekeeping import House, Housekeeper, KernelState
from fabric.host.vmm.domains import Hypervisor
from fabric.routing.policy import ApplicationFacts, Policy
from fabric.routing.protocols import compute_table
from fabric.routing.topology import Topology
from fabric.wire.control import Message
from fabric.wire.inner import FiveTuple


class Kernel(Datapath, KernelState, Protocol):
    """Everything a host asks of its kernel, see
    :class:`fabric.host.control.datapath.KernelDatapath`."""

    def attach(self, identity: GuestIdentity) -> None: ...
    def detach(self, identity: GuestIdentity) -> None: ...
    def refused(self) -> dict[str, int]: ...


@dataclass(frozen=True)
class Parts:
    """What of a host reaches outside the process."""

    config: HostConfig
    image: Image
    acceleration: Accelerator
    bundle: Bundle
    hypervisor: Hypervisor
    kernel: Kernel
    ports: BridgePorts
    events: EventLog
    clock: Clock
    find_facts: Callable[[FiveTuple, bytes], ApplicationFacts]
    templates: TemplateStore | None = None
    pooled: tuple[str, ...] = ()
    """Tiers guests are kept ready for."""
    provisioner: Provisioner | None = None
    """None: SSH."""
    ping: Ping = ping
    memory: Memory = available_mib
    on_step: OnStep = pass_by
    watches_links: bool = False
    """Whether there is a link watch beside this process."""
    keyring: Keyring = field(default_factory=Keyring)
    """By which guests know this host's word."""
    store: Store | None = None
    """None: nothing is shared with other hosts, and tables stay as they are."""


class Host:
    """The constructor acquires nothing; :meth:`close` ends everything."""

    def __init__(self, parts: Parts) -> None:
        config, kernel = parts.config, parts.kernel
        self._events = parts.events
        self._watching = config.watch_agents
        self.refused = kernel.refused
        journal = Journal(config.host_dir / "journal.jsonl")
        made_of = (config, parts.image, parts.acceleration, parts.hypervisor, parts.bundle)
        self.manager = manager = GuestManager(
            *made_of,
            ports=parts.ports,
            provisioner=parts.provisioner,
            journal=journal,
            templates=parts.templates,
            pooled=parts.pooled,
            ping=parts.ping,
            memory=parts.memory,
        )
        self._records = Records(config.host_dir / "connections", boot_id())
        succession = Succession(self._records, parts.events)
        topology = Topology.from_json(config.topology)
        table = compute_table(topology, config.node, table_version(topology))
        self.orchestrator = Orchestrator(
            config,
            topology,
            table,
            Policy.from_json(config.policy, topology.protocol_names),
            datapath=kernel,
            guests=manager,
            events=parts.events,
            clock=parts.clock,
            succession=succession,
            on_step=parts.on_step,
            keyring=parts.keyring,
        )
        self._limits = config.limits
        self.keeper = TopologyKeeper(
            config,
            topology,
            table,
            install=self.orchestrator.install,
            events=parts.events,
            clock=parts.clock,
        )
        self._publication = (
            Publication(self.keeper, parts.store, parts.events, parts.keyring.name)
            if parts.store
            else None
        )
        self._feed = LinkFeed(config.host_dir, self._on_links, self.keeper.on_silence)
        self._listens = config.liveness.enabled and parts.watches_links
        self._keyring = parts.keyring
        self.intake = Intake(self.orchestrator, parts.find_facts, secrets.randbits(32))
        self.watch = AgentWatch(manager, str(parts.acceleration.kind), parts.clock)
        self.housekeeper = Housekeeper(
            House(
                config=config,
                hypervisor=parts.hypervisor,
                journal=journal,
                guests=manager,
                connections=self.orchestrator.connections,
                kernel=kernel,
                records=self._records,
                succession=succession,
                events=parts.events,
            )
        )
        self._keeping: list[asyncio.Task[None]] = []
        self.orchestrator.on_audience = self._tell_audience
        self.orchestrator.down = lambda: self.keeper.down
        manager.on_step = parts.on_step
        manager.on_event = self._on_guest_event
        manager.on_notice = self._on_notice
        manager.on_message = self._on_message
        manager.on_lost = self.orchestrator.on_guest_lost
        manager.on_attach, manager.on_detach = kernel.attach, kernel.detach

    async def start(self) -> Inheritance:
        """Take over what an earlier life left, and put in order what differs. Packets may come in
        from now on.

        Raises HypervisorDown, EnvironmentFault; then what was there goes on without us.
        """
        inheritance = await self.manager.start(self._records.load())
        self.orchestrator.inherit(inheritance)
        if inheritance.ended:
            self._events.emit("leftovers-destroyed", guests=inheritance.ended)
        await self.housekeeper.run(quick=True)
        self._keeping.append(asyncio.create_task(self.housekeeper.keep()))
        if self._listens:
            self._keeping.append(asyncio.create_task(self._feed.run()))
        if self._publication is not None:
            self._keeping.append(asyncio.create_task(self._publication.run()))
        self._tell_audience()
        return inheritance

    def tick(self) -> None:
        """Call about once a second."""
        self.orchestrator.sweep()
        if self._watching:
            self.watch.tick()

    async def close(self) -> None:
        """End everything; afterwards no guest and no rule of ours is left."""
        for task in self._keeping:
            task.cancel()
        await asyncio.gather(*self._keeping, return_exceptions=True)
        self.keeper.close()
        await self.housekeeper.close()
        await self.orchestrator.close()

    def _on_links(self, line: dict[str, Any]) -> None:
        self.keeper.on_links(line, self._load())

    def _load(self) -> float:
        """0 … 1: what is fuller, the room for guests or the processors."""
        processors = os.getloadavg()[0] / (os.cpu_count() or 1)
        return min(1.0, max(self.manager.alive() / max(1, self._limits.guests), processors))

    def _tell_audience(self) -> None:
        """The link watch tells these guests when a neighbour is dead."""
        keys = {}
        for connection in self.orchestrator.connections:
            if connection.guest is not None:
                address = str(connection.guest.identity.address)
                keys[address] = self._keyring.key(connection.id, address)
        self._feed.tell(Audience(keys))

    def _on_guest_event(self, name: str, guest: Guest, fields: dict[str, Any]) -> None:
        label = f"{guest.connection:016x}" if guest.connection != NO_CONNECTION else None
        self._events.emit(name, label, **{"guest": guest.name, **fields})
        if name == "guest-ready":
            self.watch.on_ready(guest)

    def _on_notice(self, name: str, fields: dict[str, Any]) -> None:
        self._events.emit(name, **fields)

    def _on_message(self, guest: Guest, message: Message) -> None:
        self.watch.on_message(guest, message)
        self.orchestrator.messages.on_message(guest, message)
