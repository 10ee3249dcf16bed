"""Whole lives of a host among fakes: orchestrators come and are killed, the machine stays.

Owns: the machine (hypervisor, kernel, agents, files), one life on it, and killing at a named step.
A killed life does not tidy up: from that instant on nothing it does has any effect.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from fabric.errors import AgentLost, NameUnknown, ProvisionFailed
from fabric.host.assembly import Host, Parts
from fabric.host.config import HostConfig, PoolConfig
from fabric.host.control.connections import Connection, HeldPacket, State
from fabric.host.events import EventLog
from fabric.host.faults import Step
from fabric.host.guest.adoption import Inheritance
from fabric.host.guest.bundle import Bundle
from fabric.host.guest.guest import Guest
from fabric.host.guest.ingredients import Ingredients
from fabric.host.guest.lifecycle import GuestState
from fabric.host.guest.template import TemplateStore
from fabric.host.identity import GuestIdentity
from fabric.host.journal import Journal
from fabric.host.network.bridge_ports_fake import FakeBridgePorts
from fabric.host.network.steering import Entries
from fabric.host.network.steering_fake import FakeSteering
from fabric.host.vmm.domain_xml import OwnerMark
from fabric.routing.policy import ApplicationFacts
from fabric.wire.control import (
    ClockReading,
    Configure,
    Counters,
    Identity,
    Message,
    Query,
    Traces,
    encode,
)
from fabric.wire.inner import FiveTuple, parse_flow
from tests.unit.guest_samples import FakeAgents, SampleAccelerator, SampleImage, ServingHypervisor
from tests.unit.test_orchestrator import TOPOLOGY, FakeClock

INGREDIENTS = Ingredients("image", "boot", "agent", "qemu 7", "microvm", "tcg", "layout", 1)


class Killed(BaseException):
    """What a killed life's code runs into. No FabricError: nothing may handle it."""


class LivingAgents(FakeAgents):
    """Agents that remember what they serve, answer questions, and can die."""

    def __init__(self) -> None:
        super().__init__()
        self.homes: set[str] = set()
        """Addresses of guests that exist."""
        self.serving: dict[str, Configure] = {}
        """Address → what the agent there was told."""
        self.dead: set[str] = set()
        """Addresses whose agents died: the channel is open, nobody answers."""
        self.unplugged: set[str] = set()
        """Addresses that cannot be reached over the network."""

    async def serve(self, guest: GuestIdentity) -> None:
        await super().serve(guest)
        self.homes.add(guest.address)
        self.serving.pop(guest.address, None)
        self.dead.discard(guest.address)

    def end(self, guest: GuestIdentity) -> None:
        """The QEMU of this guest is gone, and with it all its sockets."""
        self.homes.discard(guest.address)
        if (server := self.servers.pop(guest.channel, None)) is not None:
            server.close()
        if (client := self.clients.pop(guest.address, None)) is not None:
            client.close()
        guest.channel.unlink(missing_ok=True)

    def _answer(self, writer: asyncio.StreamWriter, message: Message) -> None:
        address = next((a for a, client in self.clients.items() if client is writer), None)
        if address is None or address in self.dead:
            return
        if isinstance(message, Configure):
            self.serving[address] = message
        if isinstance(message, Query):
            writer.write(encode(self._told(address, message.what)))
        else:
            super()._answer(writer, message)

    def _told(self, address: str, what: str) -> Message:
        served = self.serving.get(address)
        if what == "identity" and served is not None:
            return Identity(served.connection, 0, served.table["version"], "digest")
        words: dict[str, Message] = {
            "identity": Identity(0, None, 0, "digest"),
            "counters": Counters({}, 0, False),
            "traces": Traces([]),
            "clock": ClockReading(0),
        }
        return words[what]

    async def reach(self, address: str, timeout: float) -> Any:
        if address not in self.homes:
            raise ProvisionFailed(f"{address}: nobody answers")
        return await super().reach(address, timeout)

    async def ping(self, address: str, timeout: float) -> None:
        """Implements :data:`fabric.host.network.ping.Ping`."""
        if address in self.unplugged or address not in self.homes:
            raise AgentLost(f"{address}: nobody answers")

    async def push(self, link: Any, timeout: float) -> None:
        address = self._address_of[link.fileno()]
        if address not in self.homes:
            raise ProvisionFailed(f"{address}: reset by peer")
        if address in self.dead:
            self._address_of.pop(link.fileno())
            link.close()
            self.pushed.append(address)
        else:
            await super().push(link, timeout)


class LivingHypervisor(ServingHypervisor):
    """Its domains take their sockets with them, and calls wait for a libvirtd that went away, as
    those of :class:`fabric.host.vmm.hypervisor.LibvirtHypervisor` do."""

    patience = 2.0
    """Seconds."""

    def destroy(self, name: str) -> None:
        mark = self.domains.get(name)
        super().destroy(name)
        self._end(mark)

    def crash(self, name: str) -> None:
        mark = self.domains.get(name)
        super().crash(name)
        self._end(mark)

    def come_back(self) -> None:
        """libvirtd is up again; its domains ran on."""
        self.down = False
        self.tell_reconnected()

    def _answer(self) -> None:
        for _ in range(int(self.patience / 0.01)):
            if not self.down:
                return
            time.sleep(0.01)  # on one of the host's threads, never the loop's
        super()._answer()

    def _end(self, mark: OwnerMark | None) -> None:
        if mark is not None:
            identity = GuestIdentity.derive(self.config, mark.index)
            agents = cast(LivingAgents, self.agents)
            self.loop.call_soon_threadsafe(agents.end, identity)


class FakeKernel:
    """Implements :class:`fabric.host.assembly.Kernel` for one life, over what stays."""

    def __init__(
        self, steering: FakeSteering, delivered: list[bytes], answers: list[bytes]
    ) -> None:
        self._steering = steering
        self._delivered = delivered
        self._answers = answers
        self._macs: dict[int, str] = {}
        steering.install()

    def attach(self, identity: GuestIdentity) -> None:
        self._macs[identity.index] = identity.mac
        self._steering.add_guest(identity.index, identity.mac)

    def detach(self, identity: GuestIdentity) -> None:
        self._steering.remove_guest(identity.index)
        self._macs.pop(identity.index, None)

    def admit(self, connection: Connection, guest_index: int) -> None:
        if (flow := connection.local_flow) is not None:
            self._steering.admit(guest_index, flow)

    def steer(self, connection: Connection, guest_index: int) -> None:
        flow = connection.local_flow
        self._steering.steer(guest_index, flows=[flow] if flow else [], connections=[connection.id])

    def unsteer(self, connection: Connection) -> None:
        flow = connection.local_flow
        self._steering.unsteer(flows=[flow] if flow else [], connections=[connection.id])

    def deliver(self, packets: list[HeldPacket], guest_index: int) -> None:
        self._delivered.extend(held.data for held in packets)

    def refused(self) -> dict[str, int]:
        return self._steering.refused()

    def answer(self, packet: bytes) -> None:
        self._answers.append(packet)

    def send(self, datagram: bytes, neighbour: str) -> None:
        return None

    def entries(self) -> Entries | None:
        try:
            return self._steering.entries()
        except NameUnknown:
            return None

    def neighbours(self) -> dict[int, str]:
        return self._steering.neighbours()

    def attached(self) -> dict[int, str]:
        return dict(self._macs)

    def reinstall(self) -> None:
        self._steering.install()

    def attach_again(self, slot: int) -> None:
        self._steering.add_guest(slot, self._macs[slot])

    def detach_slot(self, slot: int) -> None:
        self._steering.remove_guest(slot)

    def remove_entry(self, entry: FiveTuple | int) -> None:
        if isinstance(entry, FiveTuple):
            self._steering.unsteer(flows=[entry])
        else:
            self._steering.unsteer(connections=[entry])


class Wire:
    """Between a life and the machine: passes every call on, until it is cut."""

    def __init__(self, target: Any, cut: Callable[[], bool]) -> None:
        self._target = target
        self._cut = cut

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._target, name)
        if not callable(found):
            return found

        def call(*arguments: Any, **options: Any) -> Any:
            if self._cut():
                raise Killed(name)
            return found(*arguments, **options)

        return call

    def watch(self, watcher: Callable[..., None]) -> None:
        self._target.watch(lambda *news: None if self._cut() else watcher(*news))


@dataclass
class Machine:
    """What outlives an orchestrator."""

    config: HostConfig
    agents: LivingAgents = field(default_factory=LivingAgents)
    steering: FakeSteering = field(default_factory=FakeSteering)
    clock: FakeClock = field(default_factory=FakeClock)
    delivered: list[bytes] = field(default_factory=list)
    answers: list[bytes] = field(default_factory=list)
    """What applications were told instead of being served."""

    def __post_init__(self) -> None:
        self.hypervisor = LivingHypervisor(self.agents, self.config)

    def serving(self) -> set[int]:
        """Connections that are steered to a guest whose agent serves them."""
        slots = {
            served.connection: served.guest
            for address, served in self.agents.serving.items()
            if address in self.agents.homes - self.agents.dead
        }
        return {n for n, slot in self.steering.connections.items() if slots.get(n) == slot}

    def left(self) -> list[str]:
        """Everything of ours that is still there."""
        # Read from a copy: opening a journal rewrites it, under whoever writes to it.
        copy = Path(self.config.run_dir) / "copy.jsonl"
        copy.write_bytes((self.config.host_dir / "journal.jsonl").read_bytes())
        with Journal(copy) as journal:
            noted = [f"journal {entry.name}" for entry in journal.open_entries()]
        files = [*self.config.host_dir.glob("g*"), *self.config.host_dir.glob("connections/*")]
        drafts = Path(self.config.template_dir).glob(".draft*")
        steered = self.steering
        return [
            *noted,
            *self.hypervisor.domains,
            *(str(path) for path in (*files, *drafts)),
            *(f"neighbour {slot}" for slot in steered.guests),
            *(f"admission of {slot}" for slot in steered.admitted),
            *(f"steering {key}" for key in (*steered.flows, *steered.connections)),
        ]


class Life:
    """One orchestrator on the machine. ``on_step`` is a test's own, called at every step."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.dead = False
        self.on_step: Callable[[Step], None] = lambda _step: None
        config = machine.config
        config.host_dir.mkdir(parents=True, exist_ok=True)
        self.events = EventLog(config.host, machine.clock.unix_us)
        kernel = FakeKernel(machine.steering, machine.delivered, machine.answers)
        image = SampleImage(kernel=Path(config.run_dir) / "vmlinuz")
        image.kernel.write_bytes(bytes(1000))
        templates = None
        if config.tier != "cold":
            templates = TemplateStore(Path(config.template_dir), INGREDIENTS)
        self._older = asyncio.all_tasks()
        self.host = Host(
            Parts(
                config=config,
                image=image,
                acceleration=SampleAccelerator(),
                bundle=Bundle(b"", "digest", True, ()),
                hypervisor=cast(Any, Wire(machine.hypervisor, lambda: self.dead)),
                ports=cast(Any, Wire(FakeBridgePorts(), lambda: self.dead)),
                kernel=cast(Any, Wire(kernel, lambda: self.dead)),
                events=self.events,
                clock=machine.clock,
                find_facts=lambda flow, _packet: ApplicationFacts(flow=flow),
                templates=templates,
                pooled=(config.tier,),
                ping=Wire(machine.agents, lambda: self.dead).ping,
                provisioner=cast(Any, Wire(machine.agents, lambda: self.dead)),
                on_step=self._step,
            )
        )

    def _step(self, step: Step) -> None:
        if not self.dead:
            self.on_step(step)
        if self.dead:
            raise Killed(step.value)

    async def start(self) -> Inheritance:
        inheritance = await self.host.start()
        if self.machine.config.tier != "cold":
            await until(lambda: "template-ready" in self.names())
        await until(lambda: all(self.host.manager.kept_ready().values()))
        return inheritance

    def kill(self) -> None:
        """From now on nothing it does has any effect. May be called in the midst of a step."""
        self.dead = True

    async def bury(self) -> None:
        """What the kernel does for a killed process: end its tasks, close its sockets."""
        self.dead = True
        mine = asyncio.all_tasks() - self._older - {asyncio.current_task()}
        for task in mine:
            task.cancel()
        await asyncio.gather(*mine, return_exceptions=True)

    def miss(self, *packets: bytes) -> None:
        self.host.intake.on_miss([(packet, parse_flow(packet)) for packet in packets])

    def tick(self, seconds: int = 1) -> None:
        for _ in range(seconds):
            self.machine.clock.now += 1
            self.host.tick()

    def names(self) -> list[str]:
        return [event.name for event in self.events.since(0)]

    def told(self, name: str) -> list[dict[str, Any]]:
        return [event.fields for event in self.events.since(0) if event.name == name]

    def connections_of(self, *names: str) -> list[str | None]:
        """Labels of the connections events of these names tell of."""
        return [event.connection for event in self.events.since(0) if event.name in names]

    def connections(self) -> list[Connection]:
        return list(self.host.orchestrator.connections)

    def guest(self) -> Guest:
        """The guest of the one connection there is."""
        (connection,) = self.connections()
        assert connection.guest is not None
        return connection.guest

    def works(self) -> bool:
        """One connection, carried by a guest that lives, its agent too."""
        connections = self.connections()
        if len(connections) != 1 or connections[0].state is not State.ESTABLISHED:
            return False
        guest, flow = connections[0].guest, connections[0].local_flow
        return (
            guest is not None
            and flow in self.machine.steering.admitted.get(guest.index, ())
            and guest.state is GuestState.RUNNING
            and guest.name in self.machine.hypervisor.domains
            and guest.identity.address not in self.machine.agents.dead
            and self.machine.steering.connections.get(connections[0].id) == guest.index
        )


@contextlib.asynccontextmanager
async def machine(directory: Path, tier: str = "cold", **changes: Any) -> AsyncIterator[Machine]:
    config = HostConfig(
        lab="demo", host="h1", node=1, bridge="b", guest_interface="guests",
        overlay_addresses=("10.77.0.1/32",), overlay_prefixes=("10.77.0.0/16",),
        tier=tier, pool=PoolConfig(minimum=1, maximum=1, memory_floor_mib=0),
        topology=TOPOLOGY.to_json(), run_dir=str(directory / "run"),
        template_dir=str(directory / "templates"), libvirt_uri="fake:///",
    )  # fmt: skip
    made = Machine(replace(config, **changes))
    Path(made.config.run_dir).mkdir(exist_ok=True)
    asyncio.get_running_loop().set_exception_handler(_report)
    try:
        yield made
    finally:
        await made.agents.close()


def _report(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Nobody asks a killed life's tasks how they ended. Telling it would also format a trace from
    within the garbage collector, which Python 3.11 does not survive inside ast.parse (gh-106905).
    """
    if not isinstance(context.get("exception"), Killed):
        loop.default_exception_handler(context)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)
