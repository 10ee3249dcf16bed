"""Agents in network namespaces, joined by veth pairs, without any guest or orchestrator.

Owns: AgentLab, for tests marked ``root``. May import: fabric, the standard library.

Per node two namespaces: ``app`` with the application (overlay routes over ``eth0``) and ``guest``
with the agent, whose ``eth0`` leads to the application, ``u<peer>`` to a neighbour.
"""

from __future__ import annotations

import itertools
import os
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from fabric.routing.table import ForwardingTable, NextHop
from fabric.wire.contract import GATEWAY_MAC
from fabric.wire.control import Configure, Decoder, Hello, Message, Query, Ready, encode

ROOT = Path(__file__).parent.parent.parent
DEADLINE = 15.0  # seconds: an agent starts in 0.2 s on an idle machine
_LABS = itertools.count()
CONNECTION = 0x0000000100000007


def ip(*words: str, ns: str = "") -> None:
    argv = ["ip", *(["-n", ns] if ns else []), *words]
    subprocess.run(argv, check=True, capture_output=True)


class AgentLab:
    """A line of nodes 1…n carrying one connection between their ends. Use as a context manager."""

    def __init__(
        self,
        nodes: int,
        link_mtu: int = 9000,
        overlay_mtu: int = 1400,
        zipapp: Path | None = None,
        *,
        configured: bool = True,
    ) -> None:
        """``zipapp``: the pushed form of the agent; None runs it from the sources. ``configured``:
        False leaves the agents as they are after their hello."""
        self.configured = configured
        self.nodes = nodes
        self.link_mtu = link_mtu
        self.overlay_mtu = overlay_mtu
        self.zipapp = zipapp
        self.prefix = f"fagent{os.getpid()}n{next(_LABS)}"
        self.messages: dict[int, list[Message]] = {}
        self._unread: dict[int, list[Message]] = {}
        self._sockets: dict[int, socket.socket] = {}
        self._decoders: dict[int, Decoder] = {}
        self._stack = ExitStack()

    def app(self, node: int) -> str:
        return f"{self.prefix}a{node}"

    def guest(self, node: int) -> str:
        return f"{self.prefix}g{node}"

    def __enter__(self) -> AgentLab:
        with ExitStack() as stack:
            self._stack = stack
            self._directory = Path(stack.enter_context(TemporaryDirectory()))
            for node in range(1, self.nodes + 1):
                self._make_node(node)
            for node in range(1, self.nodes):
                self._make_link(node, node + 1)
            for node in range(1, self.nodes + 1):
                self._start(node)
            for node in range(1, self.nodes + 1):
                # As the orchestrator does: the agent sets its clock by this message's arrival.
                self.wait(node, Hello)
                if self.configured:
                    self.send(node, self.configure(node))
            for node in range(1, self.nodes + 1 if self.configured else 1):
                self.wait(node, Ready)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _namespace(self, name: str) -> None:
        ip("netns", "add", name)
        self._stack.callback(ip, "netns", "del", name)
        ip("link", "set", "lo", "up", ns=name)

    def _make_node(self, node: int) -> None:
        app, guest = self.app(node), self.guest(node)
        self._namespace(app)
        self._namespace(guest)
        ip("link", "add", "eth0", "netns", app, "type", "veth", "peer", "eth0", "netns", guest)
        for name, v4, v6 in ((app, "100.115.0.1", "fe80::1"), (guest, "100.115.0.2", "fe80::2")):
            ip("link", "set", "eth0", "mtu", "9000", "up", ns=name)
            ip("addr", "add", f"{v4}/22", "dev", "eth0", ns=name)
            ip("addr", "add", f"{v6}/64", "dev", "eth0", "nodad", ns=name)
        ip("link", "set", "eth0", "address", GATEWAY_MAC, ns=app)
        ip("route", "add", "default", "via", "100.115.0.1", "dev", "eth0", ns=guest)
        ip("addr", "add", f"10.77.0.{node}/32", "dev", "lo", ns=app)
        ip("addr", "add", f"fd77::{node}/128", "dev", "lo", "nodad", ns=app)
        mtu = ("mtu", str(self.overlay_mtu))
        ip(
            "route",
            "add",
            "10.77.0.0/16",
            "via",
            "100.115.0.2",
            "src",
            f"10.77.0.{node}",
            *mtu,
            ns=app,
        )
        via6 = ("via", "fe80::2", "dev", "eth0", "src", f"fd77::{node}")
        ip("-6", "route", "add", "fd77::/64", *via6, *mtu, ns=app)

    def _make_link(self, a: int, b: int) -> None:
        names = (f"u{b}", "netns", self.guest(a), "type", "veth", "peer", f"u{a}", "netns")
        ip("link", "add", *names, self.guest(b))
        for node, peer in ((a, b), (b, a)):
            ip("link", "set", f"u{peer}", "mtu", str(self.link_mtu), "up", ns=self.guest(node))
            address = f"172.31.{min(a, b)}.{node}/24"
            ip("addr", "add", address, "dev", f"u{peer}", ns=self.guest(node))

    def table(self, node: int, version: int = 7) -> ForwardingTable:
        entries: dict[tuple[int, int], tuple[NextHop, ...]] = {}
        for destination in range(1, self.nodes + 1):
            if destination != node:
                peer = node + 1 if destination > node else node - 1
                hop = NextHop(peer, f"172.31.{min(node, peer)}.{peer}", peer, self.link_mtu, 1)
                entries[destination, 1] = (hop,)
        return ForwardingTable(node, version, entries)

    def configure(self, node: int, **changes: Any) -> Configure:
        now = time.time_ns() // 1000
        values: dict[str, Any] = {
            "connection": CONNECTION,
            "lab": "t",
            "host": f"h{node}",
            "node": node,
            "guest": 1,
            "role": "transit",
            "source_node": 1,
            "destination_node": self.nodes,
            "table": self.table(node).to_json(),
            "interfaces": {f"172.31.{min(node, p)}.{p}": p for p in (node - 1, node + 1)},
            "port": 7704,
            "overlay_mtu": self.overlay_mtu,
            "requested_at_us": now - 5000,
            "host_now_us": now,
            "protocol": 1,
        }
        return Configure(**(values | changes))

    def run_directory(self, node: int) -> Path:
        """What the guest has as /run."""
        directory = self._directory / str(node)
        directory.mkdir(exist_ok=True)
        return directory

    def _start(self, node: int) -> None:
        ours, theirs = socket.socketpair()
        self._stack.callback(ours.close)
        ours.settimeout(0.2)
        python = [sys.executable, "-I", "-S"]
        if self.zipapp:
            python += [str(self.zipapp)]
        else:
            start = "import sys; sys.path.insert(0, sys.argv.pop(1)); "
            python += ["-c", start + "from fabric.agent.main import main; main()", str(ROOT)]
        process = subprocess.Popen(
            [
                *("ip", "netns", "exec", self.guest(node), *python),
                *("--control", f"fd:{theirs.fileno()}"),
                *("--run", str(self.run_directory(node)), "--scrub", "no"),
            ],
            pass_fds=[theirs.fileno()],
        )
        theirs.close()
        self._stack.callback(process.wait, 10)
        self._stack.callback(process.kill)
        self.messages[node] = []
        self._unread[node] = []
        self._sockets[node] = ours
        self._decoders[node] = Decoder()

    def send(self, node: int, *messages: Message) -> None:
        self._sockets[node].sendall(b"".join(map(encode, messages)))

    def wait(self, node: int, kind: type[Message]) -> Any:
        """The next message of ``kind``; everything that came is kept in ``messages``."""
        end = time.monotonic() + DEADLINE
        unread = self._unread[node]
        while time.monotonic() < end:
            while unread:  # several may come at once, and more than one be waited for
                if isinstance(message := unread.pop(0), kind):
                    return message
            try:
                data = self._sockets[node].recv(65536)
            except TimeoutError:
                continue
            unread += self._decoders[node].feed(data)
            self.messages[node] += unread
            assert data, f"agent {node} is gone"
        raise AssertionError(f"agent {node}: no {kind.__name__}; had {self.messages[node]}")

    def hang_up(self, node: int) -> None:
        """Close the host's end of a control channel."""
        self._sockets[node].close()

    def _drain(self, node: int) -> None:
        # Reports that came unasked must not pass for the answer.
        self._unread[node].clear()
        with suppress(BlockingIOError, TimeoutError):
            while data := self._sockets[node].recv(65536, socket.MSG_DONTWAIT):
                self.messages[node] += self._decoders[node].feed(data)

    def run(self, node: int, *argv: str, timeout: float = 60) -> str:
        """A command beside the application's end of a node; its output."""
        result = subprocess.run(
            ["ip", "netns", "exec", self.app(node), *argv],
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout

    def query(self, node: int, what: str, kind: type[Message]) -> Any:
        """Ask an agent and return its answer."""
        self._drain(node)
        self.send(node, Query(what))
        return self.wait(node, kind)
