"""One QEMU started by hand: the reference for what libvirt and the orchestrator add.

Owns: Monitor, RawGuest and the steps of its life. May import: errors, wire, host, lab. Its agent is
spoken to in the fabric's own control protocol, in the same order as by a real host; there is no
libvirt, no event loop and no other connection, only the steps, one after the other.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from fabric.errors import AgentLost, SpawnFailed
from fabric.host.guest.copies import ENTROPY_SIZE
from fabric.host.guest.host_key import HostKey
from fabric.host.guest.provision import SshKeys, connect, push_agent
from fabric.host.identity import GuestIdentity
from fabric.host.vmm.acceleration import ENDED_WITH_US
from fabric.wire.control import Configure, Decoder, Hello, Identified, Identify, Message
from fabric.wire.control import encode as encode_message

T = TypeVar("T")
DEADLINE = 240.0
"""Seconds any one step may take: a boot beside fifteen others takes two minutes."""
_POLL = 0.0005
"""Seconds between looks for a socket QEMU is about to make."""
_READ = 65536
_STATE = "state"
CAPABILITIES = [
    {"capability": "x-ignore-shared", "state": True},
]


class Monitor:
    """QEMU's monitor (QMP), without libvirt. Raises SpawnFailed."""

    def __init__(self, link: socket.socket) -> None:
        self._link = link
        self._lines = b""
        self._reply("return", "QMP")
        self("qmp_capabilities")

    def __call__(
        self, command: str, arguments: Mapping[str, Any] | None = None, files: Sequence[int] = ()
    ) -> Any:
        """Execute a command; its ``return``."""
        line = json.dumps({"execute": command, "arguments": dict(arguments or {})}).encode()
        socket.send_fds(self._link, [line + b"\n"], list(files))
        answer = self._reply("return", "error")
        if "error" in answer:
            raise SpawnFailed(f"{command}: {answer['error'].get('desc')}")
        return answer["return"]

    def close(self) -> None:
        self._link.close()

    def _reply(self, *wanted: str) -> dict[str, Any]:
        """The next line that has one of these keys."""
        while True:
            while b"\n" not in self._lines:
                data = self._link.recv(_READ)
                if not data:
                    raise SpawnFailed("QEMU closed its monitor")
                self._lines += data
            line, _, self._lines = self._lines.partition(b"\n")
            document: dict[str, Any] = json.loads(line)
            if any(key in document for key in wanted):
                return document


@dataclass(frozen=True)
class Setting:
    """What all reference guests of a measurement have in common."""

    template: Path | None
    """Directory with the saved devices' state; None where guests boot."""
    keys: SshKeys
    bundle: bytes
    """The agent, for guests that boot."""
    mtu: int
    """Of the guests' interfaces, bytes."""
    overlay_mtu: int
    """Of their TUNs, bytes."""
    instructions: Callable[[int, int], Configure]
    """Of the connection with this number, for the guest with this number; its first packet is among
    them."""


class RawGuest:
    """See the module docstring. Steps are called in the order of :data:`lab.bench.reference.WAYS`,
    on one thread that stands in the guest's namespace and outlives it."""

    def __init__(
        self,
        argv: list[str],
        identity: GuestIdentity,
        monitor: Path,
        setting: Setting,
    ) -> None:
        """``identity.channel`` and ``monitor``: sockets QEMU makes."""
        self._argv, self._identity, self._path, self._setting = argv, identity, monitor, setting
        self._key = HostKey.generate()
        self._log = monitor.with_suffix(".log")
        self.connection = 0
        """Number of the connection it serves, or serves next."""
        self._process: subprocess.Popen[bytes] | None = None
        self._monitor: Monitor | None = None
        self._channel: socket.socket | None = None
        self._decoder = Decoder()
        self._heard: list[Message] = []

    def start(self) -> None:
        """The process, until its sockets answer."""
        with self._log.open("wb") as log:
            argv = [*ENDED_WITH_US, *self._argv]
            self._process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            self._monitor = Monitor(connected(self._path, self._alive))
            self._channel = connected(self._identity.channel, self._alive)
        except SpawnFailed as exc:
            raise SpawnFailed(f"{exc.message}; QEMU says: {self._log.read_text()[-400:]}") from exc

    def _alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def arm(self) -> None:
        """All that can be said before the state is to be loaded."""
        assert self._monitor is not None
        assert self._setting.template is not None
        self._monitor("migrate-set-capabilities", {"capabilities": CAPABILITIES})
        self._monitor("migrate-set-parameters", {"announce-rounds": 0})
        descriptor = os.open(self._setting.template / "state", os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._monitor("getfd", {"fdname": _STATE}, [descriptor])
        finally:
            os.close(descriptor)

    def wake(self) -> None:
        """Tell it who it is and load its devices' state: it goes on by itself as soon as that is
        there, for it was saved running."""
        assert self._monitor is not None
        self._say(self._identity_message())
        self._monitor("migrate-incoming", {"uri": f"fd:{_STATE}"})

    def wake_instructed(self) -> None:
        """The same, with its instructions there before it wakes up."""
        assert self._monitor is not None
        self._say(self._identity_message())
        self.configure()
        self._monitor("migrate-incoming", {"uri": f"fd:{_STATE}"})

    def _identity_message(self) -> Identify:
        identity = self._identity
        return Identify(
            mac=identity.mac,
            address=identity.address,
            mtu=self._setting.mtu,
            overlay_mtu=self._setting.overlay_mtu,
            entropy=os.urandom(ENTROPY_SIZE).hex(),
            host_key=self._key.secret.hex(),
            host_now_us=time.time_ns() // 1000,
        )

    def identify(self) -> None:
        said = self._hear(Identified)
        if said.mac != self._identity.mac:
            raise AgentLost(f"the reference guest says it is {said.mac}")

    def boot(self) -> None:
        """Until its SSH server answers."""
        self._ssh = connect(self._identity.address, DEADLINE)

    def push(self) -> None:
        push_agent(self._ssh, self._setting.keys, self._setting.bundle, DEADLINE)

    def greet(self) -> None:
        self._hear(Hello)

    def configure(self) -> None:
        """Instructions with the first packet; when that comes out is for a capture to tell."""
        self._say(self._setting.instructions(self.connection, self._identity.index))

    def close(self) -> None:
        """End it, whatever state it is in."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        for each in (self._monitor, self._channel):
            if each is not None:
                each.close()
        self._process = self._monitor = self._channel = None

    def _say(self, message: Message) -> None:
        assert self._channel is not None
        self._channel.sendall(encode_message(message))

    def _hear(self, kind: type[T]) -> T:
        """The agent's next word of this kind; others are passed over. Raises AgentLost."""
        assert self._channel is not None
        while True:
            while self._heard:
                message = self._heard.pop(0)
                if isinstance(message, kind):
                    return message
            try:
                data = self._channel.recv(_READ)
            except TimeoutError:
                data = b""
            if not data:
                raise AgentLost(f"the reference guest said no {kind.__name__}")
            self._heard += self._decoder.feed(data)


def connected(path: Path, alive: Callable[[], bool]) -> socket.socket:
    """A connection to a unix socket that a QEMU is about to make. Raises SpawnFailed."""
    end = time.monotonic() + DEADLINE
    while True:
        link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        link.settimeout(DEADLINE)
        try:
            link.connect(str(path))
        except OSError as exc:
            link.close()
            if not alive() or time.monotonic() > end:
                raise SpawnFailed(f"{path}: {exc.strerror}") from exc
            time.sleep(_POLL)
        else:
            return link
