"""A line of hosts for one measurement, and how to do things on its hosts and in its guests.

Owns: Bed, Program, in_namespace. May import: errors, host, lab. Everything hangs on one ExitStack:
whatever fails, programs end first, then the lab goes.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, Self, TypeVar

from fabric.errors import Conflict, EnvironmentFault, GuestFault
from fabric.host.config import HostConfig
from fabric.host.guest.provision import SshKeys, run_command
from fabric.host.network.netns import enter_netns
from fabric.host.vmm.image import load_image
from fabric.lab import builder, state
from fabric.lab.bench import traffic
from fabric.lab.builder import Machine, Progress
from fabric.lab.client import HostClient
from fabric.lab.names import namespace_name
from fabric.lab.spec import LabSpec, Options
from fabric.lab.topology_file import parse_topology

T = TypeVar("T")
IDLE_TIMEOUT = 86_400.0
"""Seconds: guests must outlive the whole benchmark, also those that stand by."""
CONNECT_DEADLINE = 180.0
"""Seconds until all guests of a connection are there; cold ones boot in 5 to 30 s."""
ANSWER_SLACK = 200.0
"""Seconds a program may answer late: a TCP connect waits for guests."""
PORT = 5201
"""Where the receivers listen."""
ASIDE = "aside"
"""A neighbour of the first host that spawns nothing: a connection to it has one guest only."""
PACKAGE_ROOT = Path(__file__).parents[3]


@dataclass(frozen=True)
class Seat:
    """The guest that serves one connection on one host."""

    host: HostConfig
    domain: str
    address: str
    view: dict[str, Any]
    """The host's view of the connection."""


class Program:
    """A running program of the benchmark, spoken to in lines of JSON."""

    def __init__(self, namespace: str, module: ModuleType, *words: str) -> None:
        argv = ["ip", "netns", "exec", namespace, sys.executable, "-m", module.__name__, *words]
        self._name = " ".join(words)
        self._process = subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=PACKAGE_ROOT
        )
        self._read()

    def ask(self, **command: Any) -> dict[str, Any]:
        """One command and its answer. Raises EnvironmentFault when the program says what is wrong,
        or ended."""
        stdin = self._process.stdin
        assert stdin is not None
        try:
            stdin.write(json.dumps(command) + "\n")
            stdin.flush()
        except OSError as exc:
            raise EnvironmentFault(f"benchmark's {self._name}: {exc}") from exc
        return self._read()

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()

    def _read(self) -> dict[str, Any]:
        stdout = self._process.stdout
        assert stdout is not None
        # A timer that kills turns a program that hangs into one that ended.
        guard = threading.Timer(ANSWER_SLACK, self._process.kill)
        guard.start()
        try:
            line = stdout.readline()
        finally:
            guard.cancel()
        if not line:
            raise EnvironmentFault(f"benchmark's {self._name} ended or did not answer")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise EnvironmentFault(f"benchmark's {self._name}: {answer['error']}")
        return answer


class Bed:
    """``hops`` links in a row, ``hops`` + 1 hosts, each with an orchestrator. A context manager."""

    def __init__(
        self,
        hops: int,
        name: str,
        options: Options,
        progress: Progress,
        *,
        aside: bool = False,
        pool: int | None = None,
        text: str = "",
    ) -> None:
        """``aside``: with another neighbour of the first host, see ASIDE; the last of ``hosts``.
        ``pool``: guests each host keeps ready, None: as hosts do by default. ``text``: another
        topology file than that line's."""
        self._name, self._options, self._progress = name, options, progress
        text = text or line_topology(name, hops, aside=aside, pool=pool)
        model = parse_topology(text, f"benchmark, {hops} hops")
        lasting = replace(options, idle_timeout=options.idle_timeout or IDLE_TIMEOUT)
        self.spec = LabSpec.from_model(model, lasting)
        self.hosts = self.spec.hosts
        self.overlay = [host.overlay_addresses[0].partition("/")[0] for host in self.hosts]
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        """Raises Conflict when a lab of this name runs, and what :func:`fabric.lab.builder.up`
        raises. One that is dead is what a killed benchmark left, and is taken down first."""
        self.machine = machine = Machine.real(self._options.libvirt_uri)
        self._make_room(machine)
        with ExitStack() as stack:
            stack.callback(builder.down, self._name, self._options.run_dir, machine, self._progress)
            builder.up(self.spec, machine, self._progress)
            image = load_image(self._options.state_dir)
            self.keys = SshKeys(image.host_public_key, image.client_key)
            self._stack = stack.pop_all()
        return self

    def _make_room(self, machine: Machine) -> None:
        run_dir = self._options.run_dir
        if self._name not in state.recorded_labs(run_dir):
            return
        if state.require(run_dir, self._name).live:
            cure = f"fabric down --lab {self._name}"
            raise Conflict(f"a lab {self._name} is running already", cure=cure)
        builder.down(self._name, run_dir, machine, self._progress)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def namespace(self, host: HostConfig) -> str:
        return namespace_name(self._name, host.host)

    def client(self, host: HostConfig) -> HostClient:
        """The local API of a host's orchestrator."""
        return HostClient(host.host, host.api_socket)

    def program(self, host: HostConfig, *words: str, module: ModuleType = traffic) -> Program:
        """Start a program of the benchmark on a host; it ends with the bed."""
        program = Program(self.namespace(host), module, *words)
        self._stack.callback(program.close)
        return program

    def ip(self, host: HostConfig, commands: Sequence[str]) -> None:
        """Lines for ``ip -batch`` on a host. Raises EnvironmentFault."""
        ip_batch(self.namespace(host), commands)

    def on_host(self, host: HostConfig, action: Callable[[], T]) -> T:
        """Call ``action`` on a thread inside the host's namespace; raises what it raises."""
        return in_namespace(self.namespace(host), action)

    def in_guest(self, seat: Seat, argv: list[str], script: Path | None = None) -> str:
        """What a command prints in a guest, with a file as its standard input.

        Raises ProvisionFailed, and GuestFault with the command's own complaint.
        """
        out, err = io.BytesIO(), io.BytesIO()
        # A copy has a host key of its own; a guest that booted has the image's.
        own = seat.view["guest_host_key"] or self.keys.host_public_key
        keys = SshKeys(own, self.keys.client_key)
        with (script or Path(os.devnull)).open("rb") as stdin:

            def run() -> int:
                return run_command(seat.address, keys, argv, stdin=stdin, stdout=out, stderr=err)

            status = self.on_host(seat.host, run)
        if status:
            complaint = err.getvalue().decode(errors="replace").strip()
            raise GuestFault(f"{seat.domain}: {argv[0]}: status {status}: {complaint[-800:]}")
        return out.getvalue().decode()

    def seats(self, source: tuple[str, int], target: tuple[str, int]) -> list[Seat]:
        """The guests of a flow, from its first host to its last, once all of them forward.

        Raises EnvironmentFault when that takes too long.
        """
        wanted = {
            "source": source[0], "source_port": source[1],
            "destination": target[0], "destination_port": target[1],
        }  # fmt: skip
        deadline = time.monotonic() + CONNECT_DEADLINE
        connection = ""
        while time.monotonic() < deadline:
            found = []
            for host in self.hosts:
                for view in self.client(host).get("/v1/connections"):
                    flow = view["flow"] or {}
                    if view["role"] == "ingress" and wanted.items() <= flow.items():
                        connection = view["id"]
                    if view["id"] == connection and view["state"] == "established":
                        found.append(Seat(host, view["guest"], view["guest_address"], view))
            if len(found) == len(self.hosts):
                return found
            time.sleep(0.2)
        raise EnvironmentFault(
            f"{source[0]} > {target[0]}: not all hosts had a guest after {CONNECT_DEADLINE:g} s",
            cure="see the orchestrators' logs in the run directory",
        )


def line_topology(name: str, hops: int, *, aside: bool = False, pool: int | None = None) -> str:
    """A topology file: hosts h1, h2, … in a row, links without impairments; see ASIDE."""
    kept = "" if pool is None else f"pool: {{minimum: {pool}, maximum: {pool}}}"
    hosts = "".join(f"  h{n}: {{{kept}}}\n" for n in range(1, hops + 2))
    links = "".join(f"  - h{n}-h{n + 1}\n" for n in range(1, hops + 1))
    if aside:
        hosts += f"  {ASIDE}: {{spawning: false}}\n"
        links += f"  - h1-{ASIDE}\n"
    # Profiles stop agents and put others in their place.
    usual = "defaults: {hosts: {watch_agents: false}}\n"
    return f"name: {name}\n{usual}hosts:\n{hosts}links:\n{links}"


def in_namespace(namespace: str, action: Callable[[], T]) -> T:
    """Call ``action`` on a thread inside a network namespace; raises what it raises. Sockets it
    opens stay in there."""
    outcome: list[T] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            enter_netns(namespace)
            outcome.append(action())
        except BaseException as exc:  # handed over to the caller, whatever it is
            failure.append(exc)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    for exc in failure:
        raise exc
    return outcome[0]


def ip_batch(namespace: str, commands: Sequence[str]) -> None:
    """Lines for ``ip -batch`` in a namespace. Raises EnvironmentFault."""
    argv = ["ip", "-n", namespace, "-batch", "-"]
    done = subprocess.run(argv, input="\n".join(commands) + "\n", capture_output=True, text=True)
    if done.returncode:
        raise EnvironmentFault(f"{namespace}: ip: {done.stderr.strip()}")


def emulator_pid(domain: str) -> int | None:
    """Process id of a guest's QEMU, from libvirt's own file; None when it is gone."""
    try:
        return int(Path(f"/run/libvirt/qemu/{domain}.pid").read_text())
    except (OSError, ValueError):
        return None


def guest_cpu(domains: Sequence[str]) -> float | None:
    """CPU seconds that the emulators of these guests have used so far; None if unknown."""
    total = 0
    for domain in domains:
        try:
            text = Path(f"/proc/{emulator_pid(domain)}/stat").read_text()
        except OSError:
            return None
        fields = text.rpartition(")")[2].split()
        total += int(fields[11]) + int(fields[12])
    return total / os.sysconf("SC_CLK_TCK")
