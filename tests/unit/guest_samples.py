"""What the tests of the guest life cycle share: a host, an image, and an agent made of a socket."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from dataclasses import dataclass, field
from pathlib import Path

from fabric.errors import ProvisionFailed
from fabric.host.config import HostConfig
from fabric.host.identity import GuestIdentity
from fabric.host.vmm.domain_xml import DomainSpec
from fabric.host.vmm.domains import DomainHandle
from fabric.host.vmm.hypervisor_fake import FakeHypervisor
from fabric.wire.control import (
    AgentEvent,
    Configure,
    Decoder,
    Hello,
    Identified,
    Identify,
    Message,
    Quiesce,
    Quiesced,
    Ready,
    encode,
)
from fabric.wire.errors import ControlInvalid

LATE = 0.1
"""Seconds between the words of a late agent: enough for the host to act on the first."""

CONFIG = HostConfig(
    lab="demo",
    host="h1",
    tier="template",
    node=1,
    bridge="fbabcdh1",
    guest_interface="guests",
    overlay_addresses=("10.77.0.1/32",),
    overlay_prefixes=("10.77.0.0/16",),
    topology={},
)


def spec(domain_type: str = "qemu", machine: str = "microvm", index: int = 1) -> DomainSpec:
    """A guest as the templates see it."""
    return DomainSpec(
        identity=GuestIdentity.derive(CONFIG, index),
        connection=0x1_0000_002A,
        created_us=1_700_000_000_000_000,
        domain_type=domain_type,  # type: ignore[arg-type]
        machine=machine,  # type: ignore[arg-type]
        memory_mib=128,
        mtu=1500,
        kernel=Path("/var/lib/fabric/image/vmlinuz"),
        initrd=Path("/var/lib/fabric/image/boot-initrd.img"),
        rootfs=Path("/var/lib/fabric/image/rootfs.erofs"),
        kernel_arguments=("console=ttyS0", "quiet"),
    )


@dataclass(frozen=True)
class SampleImage:
    kernel: Path = Path("/image/vmlinuz")
    initrd: Path = Path("/image/initrd")
    rootfs: Path = Path("/image/rootfs")
    host_public_key: str = "ssh-ed25519 AAAA"
    client_key: Path = Path("/image/key")


@dataclass(frozen=True)
class SampleAccelerator:
    kind: str = "tcg"
    machine: str = "microvm"
    tsc_khz: int = 1_000_000


def configure(connection: int, identity: GuestIdentity) -> Configure:
    return Configure(
        connection=connection,
        lab=identity.lab,
        host=identity.host,
        node=identity.node,
        guest=identity.index,
        role="ingress",
        source_node=1,
        destination_node=2,
        table={},
        interfaces={},
        port=7704,
        overlay_mtu=1400,
        requested_at_us=0,
        host_now_us=0,
    )


@dataclass
class FakeAgents:
    """Provisioner and agents in one: pushing starts an agent on the guest's channel socket.

    The channel's server, which libvirt would be, is started when the guest is "reached".
    """

    unreachable: int = 0
    """How many of the next guests have no SSH server."""
    refusing: int = 0
    """How many of the next agents cannot use their configuration."""
    clinging: bool = False
    """Agents keep an address when they are told to be nobody."""
    confused: bool = False
    """Copies keep their template's MAC."""
    late: bool = False
    """Copies say who they are only behind their first packet."""
    copies: int = 0
    mute: bool = False
    """Agents start and never say anything."""
    clients: dict[str, asyncio.StreamWriter] = field(default_factory=dict)
    heard: list[Message] = field(default_factory=list)
    servers: dict[Path, asyncio.Server] = field(default_factory=dict)
    pushed: list[str] = field(default_factory=list)
    asleep: dict[str, list[Message]] = field(default_factory=dict)
    """What guests that are paused were told so far, by address."""
    _address_of: dict[int, str] = field(default_factory=dict)
    _kept_back: Identified | None = None

    async def serve(self, guest: GuestIdentity) -> None:
        """Make the channel's socket, as the hypervisor does."""

        decoder = Decoder()  # the agent's: it stays when the host's end is another

        async def client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self.clients[guest.address] = writer
            with contextlib.suppress(ConnectionError, asyncio.CancelledError):
                while data := await reader.read(65536):
                    for message in _understood(decoder, data):
                        self.heard.append(message)
                        if guest.address in self.asleep:
                            self.asleep[guest.address].append(message)
                        else:
                            self._answer(writer, message)

        guest.channel.parent.mkdir(parents=True, exist_ok=True)
        self.servers[guest.channel] = await asyncio.start_unix_server(client, guest.channel)

    def wake(self, address: str) -> None:
        """It finds in its channel what was said while it did not run."""
        for message in self.asleep.pop(address, []):
            self._answer(self.clients[address], message)

    def _answer(self, writer: asyncio.StreamWriter, message: Message) -> None:
        answer: Message | None = None
        if isinstance(message, Quiesce):
            answer = Quiesced(["10.0.0.1/8"] if self.clinging else [])
        elif isinstance(message, Identify):
            self.copies += 1
            mac = "02:00:00:00:00:00" if self.confused else message.mac
            key = message.host_key[64:]
            answer = Identified(mac, message.address, f"sample {self.copies}", key)
        elif isinstance(message, Configure) and self.refusing:
            self.refusing -= 1
            answer = AgentEvent("agent-error", {"error": "no table"}, 0)
        elif isinstance(message, Configure):
            answer = Ready(message.connection, 0, "shortest", "default", "", "test", 1)
        if isinstance(answer, Identified) and self.late:
            self._kept_back, answer = answer, None
        if answer is not None:
            writer.write(encode(answer))
        if isinstance(answer, Ready) and self._kept_back is not None:
            line, self._kept_back = encode(self._kept_back), None
            asyncio.get_running_loop().call_later(LATE, writer.write, line)

    async def reach(self, address: str, timeout: float) -> socket.socket:
        if self.unreachable:
            self.unreachable -= 1
            raise ProvisionFailed(f"{address}: told to be unreachable")
        link, _ = socket.socketpair()
        self._address_of[link.fileno()] = address
        return link

    async def push(self, link: socket.socket, timeout: float) -> None:
        address = self._address_of.pop(link.fileno())
        link.close()
        self.pushed.append(address)
        if not self.mute:
            self.clients[address].write(encode(Hello("digest", "3.11.2", 1)))

    async def explain(self, address: str, host_key: str) -> str:
        return "its last words"

    async def close(self) -> None:
        for server in self.servers.values():
            server.close()


def _understood(decoder: Decoder, data: bytes) -> list[Message]:
    """As an agent does: what makes no sense is passed over."""
    messages: list[Message] = []
    while True:
        try:
            return messages + decoder.feed(data)
        except ControlInvalid:
            data = b""


class ServingHypervisor(FakeHypervisor):
    """A fake hypervisor whose domains have channel sockets."""

    def __init__(self, agents: FakeAgents, config: HostConfig) -> None:
        super().__init__()
        self.agents = agents
        self.config = config
        self.loop = asyncio.get_running_loop()

    def create(self, xml: str, *, paused: bool = False) -> DomainHandle:
        handle = super().create(xml, paused=paused)
        mark = self.domains[handle.name]
        assert mark is not None
        identity = GuestIdentity.derive(self.config, mark.index)
        self.agents.asleep.pop(identity.address, None)
        if paused:
            self.agents.asleep[identity.address] = []
        asyncio.run_coroutine_threadsafe(self.agents.serve(identity), self.loop).result(5)
        return handle

    def resume(self, name: str) -> None:
        super().resume(name)
        self._wake(name)

    def wake(self, name: str) -> None:
        super().wake(name)
        self._wake(name)

    def _wake(self, name: str) -> None:
        mark = self.domains[name]
        assert mark is not None
        address = GuestIdentity.derive(self.config, mark.index).address
        self.loop.call_soon_threadsafe(self.agents.wake, address)
