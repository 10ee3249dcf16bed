"""One guest, and what it is made from.

Owns: the record of a guest, the facts a guest is built from, and its blueprint. May import: errors,
wire.control, host.guest.channel, host.config, host.vmm.domain_xml, host.identity,
host.guest.lifecycle.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast, get_args

from fabric.errors import AgentLost, EnvironmentFault
from fabric.host.config import HostConfig
from fabric.host.guest.channel import Channel
from fabric.host.guest.host_key import HostKey
from fabric.host.guest.lifecycle import GuestEvent, GuestState, advance
from fabric.host.identity import GuestIdentity
from fabric.host.vmm.domain_xml import DomainSpec, Machine
from fabric.host.vmm.image import kernel_arguments
from fabric.wire.control import Hello, Identified, Identity, Message, Quiesced, Ready

if TYPE_CHECKING:
    from fabric.host.guest.template import Template  # it imports this module

NO_CONNECTION = 0
"""The "connection" of guests that are kept ready, or made into a template; a real one has a node id
in it, never 0."""

DEFAULT_MTU = 1500
"""Bytes; Ethernet's, used where the topology names none."""


_T = TypeVar("_T")

STEP_DEADLINES = {"kvm": 30.0, "tcg": 240.0}
"""Seconds one step of a spawn may take. Emulated, dozens of guests that boot at once on two cores
take a minute; a deadline is there for guests that never come, not for slow ones."""

AGENT_DEADLINES = {"kvm": 10.0, "tcg": 60.0}
"""Seconds an agent may take to say hello, and to be ready: the guest is up by then, and Python's
start under emulation takes 2 s, 5 s beside three others."""


class Image(Protocol):
    """What a guest is made of, see :class:`fabric.host.vmm.image.GuestImage`."""

    @property
    def kernel(self) -> Path: ...
    @property
    def initrd(self) -> Path: ...
    @property
    def rootfs(self) -> Path: ...
    @property
    def host_public_key(self) -> str: ...
    @property
    def client_key(self) -> Path: ...


class Accelerator(Protocol):
    """How guests run, see :class:`fabric.host.vmm.acceleration.Acceleration`."""

    @property
    def kind(self) -> Any: ...
    @property
    def machine(self) -> Any: ...
    @property
    def tsc_khz(self) -> int: ...


class Guest:
    """One guest. Made by :class:`GuestManager`; others read it and ``send``."""

    def __init__(self, identity: GuestIdentity, connection: int) -> None:
        loop = asyncio.get_running_loop()
        self.identity = identity
        self.connection = connection
        """64-bit id; NO_CONNECTION until there is one."""
        self.state = GuestState.REQUESTED
        self.phases: dict[str, float] = {}
        """Milliseconds: queue_ms (for its turn); domain_ms (libvirt, and
        port_ms of it for its tap); boot_ms (to SSH), ssh_ms
        (push), agent_ms (to its hello), or arm_ms, state_ms (loading, going on), identify_ms;
        ready_ms (configured); total_ms of the request."""
        self.tier = ""
        """Where it came from; empty until that is decided."""
        self.uuid = ""
        """The domain's, once it exists: its name is used again, this is not."""
        self.stops: set[str] = set()
        """Ends of domains of this name that were reported before ``uuid`` was known."""
        self.template: Template | None = None
        """What it is a copy of; None for a guest that booted."""
        self.host_key: HostKey | None = None
        """The SSH key a copy was given; None: it has the image's."""
        self.sample = ""
        """What a copy drew from its random generator; empty for others."""
        self.key_digest = ""
        """Of its connection's key, as its agent last said; empty: it was not asked yet."""
        self.hello: Hello | None = None
        self.ready: Ready | None = None
        self.channel: Channel | None = None
        self.quarantined = False
        """Something that is not provably this guest holds its name: keep off."""
        self.said_hello: asyncio.Future[Hello] = loop.create_future()
        self.said_ready: asyncio.Future[Ready] = loop.create_future()
        self.said_quiesced: asyncio.Future[Quiesced] = loop.create_future()
        self.said_identified: asyncio.Future[Identified] = loop.create_future()
        self.said_identity: asyncio.Future[Identity] | None = None
        """Only of one that may be adopted; a running guest's answers are its watch's."""
        self.fault: asyncio.Future[str] = loop.create_future()
        """Resolved with the reason when the guest is lost while a spawn waits for it."""
        self.creation: asyncio.Future[Any] | None = None
        self.listening: asyncio.Task[None] | None = None
        self.ending: asyncio.Task[None] | None = None

    @property
    def name(self) -> str:
        """The domain's name."""
        return self.identity.domain

    @property
    def index(self) -> int:
        return self.identity.index

    def advance(self, event: GuestEvent) -> None:
        """Go on as the table says. Raises IllegalTransition."""
        self.state = advance(self.state, event)

    def expect(self, state: GuestState) -> None:
        """After a wait: it may have been destroyed on purpose meanwhile. Raises AgentLost."""
        if self.state is not state:
            raise AgentLost(f"{self.name}: destroyed while it was coming up")

    def expect_identity(self) -> asyncio.Future[Identity]:
        """What it says next to the question who it is."""
        self.said_identity = asyncio.get_running_loop().create_future()
        return self.said_identity

    def hear(self, message: Message) -> bool:
        """Take a word somebody waits for; False when it is none, or was said before."""
        words: dict[type, asyncio.Future[Any] | None] = {
            Hello: self.said_hello,
            Ready: self.said_ready,
            Quiesced: self.said_quiesced,
            Identified: self.said_identified,
            Identity: self.said_identity,
        }
        waiting = words.get(type(message))
        if waiting is None or waiting.done():
            return False
        waiting.set_result(message)
        return True

    def send(self, message: Message) -> None:
        """Say something to the agent. Raises AgentLost when there is none to listen."""
        if self.channel is None or self.state not in (GuestState.RUNNING, GuestState.DRAINING):
            raise AgentLost(f"guest {self.name} is {self.state.value}: no agent listens")
        self.channel.send(message)


async def unless_lost(guest: Guest, work: Awaitable[_T]) -> _T:
    """Wait for ``work``, or for the guest to be lost, whichever is first.

    Raises AgentLost with the reason of the loss, or what ``work`` raises; leaves nothing running.
    """
    task = asyncio.ensure_future(work)
    try:
        waiting: set[asyncio.Future[Any]] = {task, guest.fault}
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        # A word that came together with the news of the loss is worth nothing.
        if guest.fault.done():
            raise AgentLost(f"{guest.name}: {guest.fault.result()}")
        return task.result()
    finally:
        if not task.done():
            task.cancel()
            await asyncio.wait({task})
        if not task.cancelled():
            task.exception()  # looked at, whoever else wants to know


def milliseconds_since(begun: float) -> float:
    """Milliseconds since ``begun`` (time.perf_counter), to a tenth."""
    return round((time.perf_counter() - begun) * 1e3, 1)


@contextlib.contextmanager
def phase(guest: Guest, name: str) -> Iterator[None]:
    """Note how long the body took, also when it failed: that says where a spawn got stuck."""
    begun = time.perf_counter()
    try:
        yield
    finally:
        guest.phases[name] = milliseconds_since(begun)


def underlay_mtu(config: HostConfig) -> int:
    """MTU of a guest's interface: packets of the host's widest link must fit through it, bytes."""
    links = config.topology.get("links", [])
    return max([DEFAULT_MTU, *(int(link.get("mtu", 0)) for link in links)])


def blueprint(
    guest: Guest, config: HostConfig, image: Image, acceleration: Accelerator
) -> DomainSpec:
    """What to build. Raises EnvironmentFault for a machine type nobody made a template for."""
    kind, machine = str(acceleration.kind), str(acceleration.machine)
    return DomainSpec(
        identity=guest.identity,
        connection=guest.connection,
        created_us=time.time_ns() // 1000,
        domain_type="kvm" if kind == "kvm" else "qemu",
        machine=_machine(machine),
        memory_mib=config.guest_memory_mib,
        mtu=underlay_mtu(config),
        kernel=image.kernel,
        initrd=image.initrd,
        rootfs=image.rootfs,
        kernel_arguments=tuple(kernel_arguments(kind, machine, acceleration.tsc_khz)),
    )


def _machine(name: str) -> Machine:
    for known in get_args(Machine):
        if name == known:
            return cast(Machine, known)
    raise EnvironmentFault(f"machine type {name!r}: only microvm and q35 are known")
