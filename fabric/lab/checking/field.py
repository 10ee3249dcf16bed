"""Real traffic on the running lab: programs in hosts' namespaces, hop records asked for, real cuts.

Owns: Field. May import: errors, host, lab. The programs are ping and this project's own little
clients and servers (:mod:`fabric.lab.checking.probe`), started as `fabric run` starts any: need and
protocol in the environment, nothing else. Their connections are ended behind them.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import IO, Any

from fabric.errors import FabricError, ToolMissing, Unreachable
from fabric.host.network.netns import NETNS_DIR
from fabric.lab import names
from fabric.lab.checking.ground import Carried, Exchange, Sent, Stream
from fabric.lab.checking.probe import RECORD
from fabric.lab.client import HostClient
from fabric.lab.control import Control
from fabric.lab.spec import LabSpec
from fabric.lab.standing import DOWN, SILENT
from fabric.lab.validation import HTTP, PING, TCP, UDP, Check
from fabric.lab.world import World

PROBE = (sys.executable, "-m", "fabric.lab.checking.probe")
PING_INTERVAL = 0.2
GRACE = 10.0
"""Seconds a program gets beyond what it was given, before it is killed."""
RECORDS_DEADLINE = 5.0
"""Seconds for hop records to be there: agents are asked for them, and may be busy."""
LAST_TRACES = 100
STRAGGLERS = 0.5
"""Seconds for what is under way to arrive before a connection is ended."""
POLL = 0.1
_NUMBERS = {PING: 1, TCP: 6, HTTP: 6, UDP: 17}
"""IP protocol numbers."""


class Field:
    """A :class:`fabric.lab.checking.ground.Ground`."""

    def __init__(self, spec: LabSpec, run_dir: Path, world: World) -> None:
        self._spec = spec
        self._control = Control(run_dir, spec.name, world)
        self._clients = {host.host: HostClient(host.host, host.api_socket) for host in spec.hosts}

    def now(self) -> float:
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    def exchange(self, check: Check, program: str, count: int, port: int = 0) -> Exchange:
        if program == PING:
            return self._ping(check, count)
        with contextlib.ExitStack() as stack:
            if program != HTTP:
                server = stack.enter_context(self._probe(check.target, "echo", program,
                                                         self._address(check.target)))  # fmt: skip
                port = int(_line(server.stdout, check.target)["port"])
            words = (program, self._address(check.target), port, count, check.within)
            asking = stack.enter_context(self._probe(check.source, "ask", *words, asks=check))
            with _killed_after(asking, check.within + GRACE):
                said = [json.loads(line) for line in asking.stdout or ()]
            local = next((each["port"] for each in said if "port" in each), None)
            end: dict[str, Any] = next((each for each in said if "rtts_ms" in each), {})
            error = end.get("error", "it was killed")
            carried = self._carried(check, program, local) if local is not None else Carried()
            return Exchange(count, tuple(end.get("rtts_ms", ())), error, carried)

    def _ping(self, check: Check, count: int) -> Exchange:
        if shutil.which("ping") is None:
            raise ToolMissing("`ping` is not installed", cure="apt-get install iputils-ping")
        begin = time.time_ns() // 1000
        words = ("ping", "-n", "-c", count, "-i", PING_INTERVAL, "-W", round(check.within))
        with self._start(check.source, *words, self._address(check.target), asks=check) as ping:
            with _killed_after(ping, check.within + count * PING_INTERVAL + GRACE):
                text = (ping.stdout.read() if ping.stdout else b"").decode(errors="replace")
            rtts = tuple(float(rtt) for rtt in re.findall(r"time=([\d.]+) ms", text))
            carried = self._carried(check, PING, since_us=begin)
            return Exchange(count, rtts, "" if rtts else "no answer in time", carried)

    @contextmanager
    def stream(self, check: Check) -> Iterator[Stream]:
        address = self._address(check.target)
        with (
            self._probe(check.target, "receive", address) as receiver,
            _Records(receiver) as arriving,
            self._probe(
                check.source, "send", address, arriving.port(check.target), asks=check
            ) as sender,
            _Records(sender) as leaving,
        ):
            port = leaving.port(check.source)
            end = self.now() + check.within
            while not arriving.seen and self.now() < end:
                time.sleep(POLL)
            if not arriving.seen:
                raise Unreachable(
                    f"nothing of a stream from {check.source} to {check.target} arrived within "
                    f"{check.within:g} s",
                    cure="`fabric events` may tell why",
                )
            carried = self._carried(check, UDP, port, end=False)
            assert sender.stdin is not None, "a pipe was asked for"
            sender.stdin.write(b"go\n")
            sender.stdin.flush()
            try:
                yield _Stream(carried, leaving, arriving)
            finally:
                sender.stdin.close()
                self._end(carried.connection)

    def cut(
        self, link: tuple[str, str], *, silent: bool
    ) -> AbstractContextManager[Callable[[], None]]:
        return self._control.cut("-".join(link), SILENT if silent else DOWN)

    # -- what the fabric says ------------------------------------------------------------------

    def _carried(
        self,
        check: Check,
        program: str,
        port: int | None = None,
        *,
        since_us: int = 0,
        end: bool = True,
    ) -> Carried:
        """Connection, protocol and paths of what ``program`` sent; then the connection is ended."""
        target = self._address(check.target)
        for view in self._clients[check.source].get("/v1/connections"):
            flow = view["flow"] or {}
            same = flow.get("protocol") == _NUMBERS[program] and flow["destination"] == target
            if port is not None and flow.get("source_port") != port:
                continue
            if same and view["created_at_us"] >= since_us:
                break
        else:
            return Carried()
        connection = view["id"]
        paths = self._paths(check.target, connection)
        if end:
            self._end(connection)
        return Carried(connection, view["protocol_name"] or "", paths)

    def _paths(self, target: str, connection: str) -> tuple[tuple[str, ...], ...]:
        give_up = self.now() + RECORDS_DEADLINE
        while True:
            client = self._clients[target]
            traces = client.get("/v1/traces", connection=connection, last=LAST_TRACES)
            ways = [tuple(hop["host"] for hop in t["hops"]) for t in traces if not t.get("reply")]
            if ways or self.now() > give_up:
                return tuple(dict.fromkeys(ways))
            time.sleep(POLL)

    def _end(self, connection: str) -> None:
        if not connection:
            return
        # A packet that comes to a host after its end makes a guest there once more.
        time.sleep(STRAGGLERS)

        def end(client: HostClient) -> None:
            with contextlib.suppress(FabricError):  # most hosts have never heard of it
                client.delete(f"/v1/connections/{connection}")

        # At once: an answer comes when the guest is gone, which takes libvirt more than a second.
        with ThreadPoolExecutor(len(self._clients)) as pool:
            list(pool.map(end, self._clients.values()))

    # -- programs ------------------------------------------------------------------------------

    def _address(self, host: str) -> str:
        config = self._spec.host(host)
        assert config is not None, "checks name hosts of their lab"
        return config.overlay_addresses[0].partition("/")[0]

    def _probe(self, host: str, *words: object, asks: Check | None = None) -> Any:
        return self._start(host, *PROBE, *words, asks=asks)

    @contextmanager
    def _start(
        self, host: str, *words: object, asks: Check | None = None
    ) -> Iterator[subprocess.Popen[bytes]]:
        """A program on a host, killed at the end of the block at the latest."""
        namespace = names.namespace_name(self._spec.name, host)
        if not (NETNS_DIR / namespace).exists():
            raise Unreachable(f"namespace {namespace} is gone", cure=f"fabric up {self._spec.path}")
        declared = ["-u", "FABRIC_NEED", "-u", "FABRIC_PROTOCOL"]
        if asks is not None and asks.need is not None:
            declared.append(f"FABRIC_NEED={asks.need}")
        if asks is not None and asks.protocol is not None:
            declared.append(f"FABRIC_PROTOCOL={asks.protocol}")
        argv = ["ip", "netns", "exec", namespace, "env", *declared, *(str(word) for word in words)]
        try:
            process = subprocess.Popen(
                argv,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                cwd="/",
                start_new_session=True,  # Ctrl-C is ours to handle, in order
            )
        except FileNotFoundError as exc:
            raise ToolMissing("`ip` is not installed", cure="install iproute2") from exc
        try:
            yield process
        finally:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    with contextlib.suppress(OSError):
                        pipe.close()


class _Records:
    """What one end of a stream tells of its packets, read by a thread as it comes."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None, "a pipe was asked for"
        self._process = process
        self._pipe: IO[bytes] = process.stdout
        self.seen: dict[int, float] = {}
        """Number → seconds, monotonic."""
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._first = threading.Event()
        self._port = 0

    def __enter__(self) -> _Records:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()  # its pipe then ends, and the thread with it
        self._thread.join()

    def port(self, host: str) -> int:
        """The local port. Raises Unreachable when the program did not even start."""
        if not self._first.wait(GRACE) or not self._port:
            raise Unreachable(f"the stream's program on {host} did not start")
        return self._port

    def _read(self) -> None:
        while record := self._pipe.read(RECORD.size):
            if len(record) < RECORD.size:
                break
            number, at_ns = RECORD.unpack(record)
            if self._first.is_set():
                self.seen.setdefault(number, at_ns / 1e9)
            else:
                self._port = number
                self._first.set()
        self._first.set()


class _Stream:
    def __init__(self, carried: Carried, leaving: _Records, arriving: _Records) -> None:
        self.carried = carried
        self._leaving = leaving
        self._arriving = arriving

    def packets(self, since: float) -> Sequence[Sent]:
        leaving, arrived = self._leaving.seen.copy(), self._arriving.seen.copy()
        return [Sent(at, arrived.get(n)) for n, at in leaving.items() if at >= since]


@contextmanager
def _killed_after(process: subprocess.Popen[bytes], seconds: float) -> Iterator[None]:
    timer = threading.Timer(seconds, process.kill)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _line(pipe: IO[bytes] | None, host: str) -> dict[str, Any]:
    text = pipe.readline() if pipe is not None else b""
    if not text:
        raise Unreachable(f"the check's server on {host} did not start")
    return dict(json.loads(text))
