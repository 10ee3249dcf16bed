"""Drives a lab as a user does (the CLI), and gathers evidence the fabric has no part in."""

from __future__ import annotations

import json
import os
import re
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from fabric.cli.client import LabClient
from fabric.lab import state
from fabric.lab.inspection import inspect_lab
from fabric.lab.state import LabState

ROOT = Path(__file__).parents[2]
FABRIC = ROOT / ".venv/bin/fabric"
RUN = Path("/run/fabric")
WEB_SERVER = ROOT / "examples/web_server.py"
T = TypeVar("T")


def wait_for(what: str, look: Callable[[], T], deadline: float = 60.0) -> T:
    """The first true value of ``look``; fails with the last one when there is none in time."""
    end = time.monotonic() + deadline
    while not (found := look()):
        assert time.monotonic() < end, f"{what} did not happen within {deadline:g} s: {found!r}"
        time.sleep(0.1)
    return found


@dataclass
class Lab:
    """A lab that is up. Host h of lab l is the network namespace fabric-l-h."""

    name: str
    file: Path
    options: tuple[str, ...] = ()

    def up(self) -> None:
        """Bring it up, or mend it."""
        self.fabric("up", str(self.file), *self.options)

    def fabric(self, *words: str, check: bool = True, **options: Any) -> Any:
        """Run the CLI on this lab."""
        environment = {**os.environ, "FABRIC_LAB": self.name}
        done = subprocess.run(
            [FABRIC, *words], capture_output=True, text=True, env=environment, timeout=300,
            **options,
        )  # fmt: skip
        assert not check or done.returncode == 0, f"{words}: {done.stderr}{done.stdout}"
        return done

    def json(self, *words: str) -> Any:
        """What the CLI prints with ``-o json``. What tests ask again and again while they wait is
        asked without a process each time: its half second would be taken from the guests."""
        asked: dict[tuple[str, ...], Callable[[], Any]] = {
            ("inspect",): lambda: inspect_lab(self._state()),
            ("connections",): lambda: self._client().connections(),
            ("connections", "--live"): lambda: self._client().connections(live=True),
        }
        if (ask := asked.get(words)) is not None:
            return json.loads(json.dumps(ask()))
        return json.loads(self.fabric(*words, "-o", "json").stdout)

    def _state(self) -> LabState:
        return state.require(RUN, self.name)

    def _client(self) -> LabClient:
        return LabClient(self._state().spec, lambda _warning: None)

    def begin(self, *words: str) -> Any:
        """Start the CLI on this lab; returns the Popen."""
        environment = {**os.environ, "FABRIC_LAB": self.name}
        null = subprocess.DEVNULL
        return subprocess.Popen([FABRIC, *words], env=environment, stdout=null, stderr=null)

    def start(
        self, host: str, *command: str, need: str = "", protocol: str = "", **options: Any
    ) -> Any:
        """Start a program on a host; returns the Popen."""
        words = ["run", host]
        words += ["--need", need] if need else []
        words += ["--protocol", protocol] if protocol else []
        environment = {**os.environ, "FABRIC_LAB": self.name}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
        return subprocess.Popen([FABRIC, *words, "--", *command], env=environment, **pipes)

    def run(
        self, host: str, *command: str, need: str = "", protocol: str = "", timeout: float = 180
    ) -> Any:
        """Run a program on a host to its end; returns the CompletedProcess with bytes."""
        with self.start(host, *command, need=need, protocol=protocol) as process:
            try:
                out, err = process.communicate(timeout=timeout)
            except subprocess.TimeoutExpired:
                process.kill()
                out, err = process.communicate()
                why = f"{command} on {host}: {timeout:g} s and no end: {err!r}"
                raise AssertionError(why) from None
        return subprocess.CompletedProcess(command, process.returncode, out, err)

    def namespace(self, host: str) -> str:
        return f"fabric-{self.name}-{host}"

    def events(self) -> list[dict[str, Any]]:
        """Everything that happened so far, on all hosts, in order of time."""
        return self._client().events()

    def connections(self) -> list[dict[str, Any]]:
        every = self.json("connections")
        return [{**view, "need": c["need"]} for c in every for view in c["hosts"]]

    def traces(self, connection: str) -> list[dict[str, Any]]:
        return list(self.json("trace", connection, "--last", "10000"))

    def wait_for_guests_kept_ready(self, tier: str, count: int = 1) -> None:
        """Until every host of the lab has ``count`` guests of the tier waiting."""

        def look() -> bool:
            hosts = self.json("inspect")["hosts"]
            return all(h["kept_ready"].get(tier, 0) >= count for h in hosts)

        wait_for(f"{count} {tier} guests per host", look, 180)

    def only_keeps_guests_ready(self) -> bool:
        """No guest of a connection is left: every domain waits in a pool."""
        hosts = self.json("inspect")["hosts"]
        kept = sum(sum(host["kept_ready"].values()) for host in hosts)
        return not any(host["guests"] for host in hosts) and len(self.domains()) == kept

    def domains(self) -> list[str]:
        """libvirt's own list of this lab's guests."""
        words = ["virsh", "-c", "qemu:///system", "list", "--all", "--name"]
        names = subprocess.run(words, capture_output=True, text=True, check=True).stdout.split()
        return sorted(name for name in names if name.startswith(f"fabric-{self.name}-"))

    def namespaces(self) -> list[str]:
        words = ["ip", "-o", "netns", "list"]
        lines = subprocess.run(words, capture_output=True, text=True, check=True).stdout.split("\n")
        return [line.split()[0] for line in lines if line.startswith(f"fabric-{self.name}-")]

    @contextmanager
    def server(self, host: str, *command: str, ready: Callable[[], bool]) -> Iterator[Any]:
        """A server program on a host, for as long as the block lasts."""
        null = subprocess.DEVNULL
        with self.start(host, *command, stdin=null, stdout=null, stderr=null) as process:
            try:
                wait_for(f"{command[0]} on {host}", ready, 30)
                yield process
            finally:
                process.terminate()

    def listens(self, host: str, port: int, transport: str = "t") -> Callable[[], bool]:
        """Whether something is bound to the port in the host's namespace."""

        def look() -> bool:
            words = ["ip", "netns", "exec", self.namespace(host), "ss", f"-Hln{transport}"]
            shown = subprocess.run(words, capture_output=True, text=True, check=True).stdout
            return re.search(rf":{port}\s", shown) is not None

        return look


def process_start(pid: int) -> float:
    """Unix time at which a process started, from /proc (10 ms steps)."""
    ticks = int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[19])
    boot = time.time() - float(Path("/proc/uptime").read_text().split()[0])
    return boot + ticks / os.sysconf("SC_CLK_TCK")


def qemu_pid(domain: str) -> int:
    """From libvirt's own pid file."""
    return int(Path(f"/run/libvirt/qemu/{domain}.pid").read_text())


@dataclass(frozen=True)
class Seen:
    """One fabric packet in a capture, decoded by this file's own decoder (not fabric.wire)."""

    at: float
    interface: int
    source: str
    target: str
    protocol: int
    hop_limit: int
    flags: int
    payload_type: int
    connection: str
    source_node: int
    destination_node: int
    sequence: int
    payload: bytes
    records: tuple[bytes, ...]
    length: int

    @property
    def nodes(self) -> list[int]:
        """Hosts that left a record, in order."""
        return [struct.unpack(">I", record[:4])[0] for record in self.records]

    @property
    def is_data(self) -> bool:
        return self.payload_type in (4, 41)

    @property
    def is_reply(self) -> bool:
        return bool(self.flags & 1)


def decode(at: float, interface: int, source: str, target: str, data: bytes) -> Seen:
    """The layout of docs/wire-format.md, read a second time."""
    assert data[0] >> 4 == 1, f"version {data[0] >> 4}"
    start = (data[0] & 15) * 4
    flags, protocol, hop_limit = data[1], data[2], data[3]
    size, hops, kind = struct.unpack(">HBB", data[4:8])
    source_node, destination_node, sequence = struct.unpack(">IIQ", data[16:32])
    assert len(data) == start + size + 32 * hops, "lengths disagree"
    records = tuple(data[start + size + 32 * n : start + size + 32 * (n + 1)] for n in range(hops))
    return Seen(
        at, interface, source, target, protocol, hop_limit, flags, kind, data[8:16].hex(),
        source_node, destination_node, sequence, data[start : start + size], records, len(data),
    )  # fmt: skip


class DomainEvents:
    """What libvirt itself reports of domains, by way of virsh."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> DomainEvents:
        words = ["virsh", "event", "--event", "lifecycle", "--loop", "--timestamp"]
        with self.path.open("w") as out:
            self._process = subprocess.Popen(words, stdout=out)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait()

    def resumed(self, domain: str) -> float:
        """Unix time at which the domain last began to run."""
        found = re.findall(
            rf"^(\S+ \S+?): event 'lifecycle' for domain '{domain}': Resumed",
            self.path.read_text(),
            re.MULTILINE,
        )
        assert found, f"libvirt never reported that {domain} was resumed"
        return datetime.strptime(found[-1], "%Y-%m-%d %H:%M:%S.%f%z").timestamp()


class Capture:
    """tcpdump on all interfaces of a network namespace ("" is the machine's own)."""

    def __init__(self, namespace: str, path: Path) -> None:
        self.namespace = namespace
        self.path = path
        self.drained = False

    def __enter__(self) -> Capture:
        inside = ["ip", "netns", "exec", self.namespace] if self.namespace else []
        words = [*inside, "tcpdump", "-i", "any", "-y", "LINUX_SLL2", "-U", "-B", "32768"]
        self._process = subprocess.Popen(
            [*words, "-w", str(self.path), "udp", "port", "7704"],
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self._process.stderr is not None
        for line in self._process.stderr:
            if "listening on" in line:
                break
        return self

    def __exit__(self, *_: object) -> None:
        if not self.drained:
            drain(self)
        self._process.terminate()
        self._process.wait()

    def packets(self) -> list[Seen]:
        """Fabric packets in the capture, by time."""
        fields = ("frame.time_epoch", "sll.ifindex", "ip.src", "ip.dst", "udp.payload")
        words = ["tshark", "-r", str(self.path), "-T", "fields", "-Y", "udp.payload && !icmp"]
        for field in fields:
            words += ["-e", field]
        shown = subprocess.run(words, capture_output=True, text=True, check=True).stdout
        found = []
        for line in shown.splitlines():
            at, interface, source, target, payload = line.split("\t")
            found.append(decode(float(at), int(interface), source, target, bytes.fromhex(payload)))
        return found


def drain(*captures: Capture) -> None:
    """Wait for what the kernel still holds: it is evidence too, and comes after a second at the
    latest."""
    time.sleep(1.5)
    for capture in captures:
        capture.drained = True


def interfaces(namespace: str = "") -> dict[str, int]:
    """Interface name → index, as the kernel of that namespace has them."""
    words = ["ip", *(["-n", namespace] if namespace else []), "-j", "link"]
    shown = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    return {link["ifname"]: link["ifindex"] for link in json.loads(shown)}
