"""The processes of a lab: an orchestrator and a link watch per host, and the link emulator.

Owns: starting them, the handshake that says they work, ending them. May import: errors, host, lab.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import sys
import time
from pathlib import Path

from fabric.errors import ConfigError, EnvironmentFault, FabricError, Unreachable
from fabric.host.config import HostConfig
from fabric.host.links.feed import socket_path
from fabric.host.process import Process
from fabric.lab import names, processes, state
from fabric.lab.client import HostClient
from fabric.lab.emulator import ImpairedLink, change_links
from fabric.lab.resources import Resource
from fabric.lab.spec import LabSpec, LinkSpec, ServiceSpec
from fabric.lab.state import LabState
from fabric.lab.switch import uses_emulator
from fabric.lab.world import World

READY_DEADLINE = 60.0
"""Seconds for an orchestrator to answer. The first one ever boots a guest to find out what the
machine can do, with a deadline of 10 s each for two ways."""
EMULATOR_DEADLINE = 10.0
SHUTDOWN_DEADLINE = 30.0
"""Seconds for an orchestrator to destroy its guests: libvirt takes about 1.3 s for each."""
POLL = 0.02
HANDSHAKE_TIMEOUT = 2.0
ORCHESTRATOR = (sys.executable, "-m", "fabric.host.main")
LINK_WATCH = (sys.executable, "-m", "fabric.host.links.main")
EMULATOR = (sys.executable, "-m", "fabric.lab.emulator")


class Daemon(Resource):
    """A recorded process of the lab."""

    def __init__(self, lab: LabState, key: str, log: Path) -> None:
        self._lab = lab
        self._key = key
        self._namespace = names.namespace_name(lab.spec.name, key)
        self.log = log

    def present(self, world: World) -> bool:
        process = self._lab.processes.get(self._key)
        if process is None or not process.is_alive():
            return False
        # A namespace made anew under the old name is not the one it serves.
        return processes.is_inside(process, self._namespace)

    def _running(self) -> bool:
        """Alive, wherever it stands: enough to be ended, not enough to be whole."""
        process = self._lab.processes.get(self._key)
        return process is not None and process.is_alive()

    def _record(self, started: Process) -> None:
        # Between the start and this line the process is found by its namespace (see Namespace).
        self._lab.processes[self._key] = started
        self._lab.save()

    def _forget(self) -> None:
        self._lab.processes.pop(self._key, None)

    def _failed(self, why: str) -> EnvironmentFault:
        end = processes.tail(self.log)
        shown = f"; the end of {self.log}:\n{end}" if end else ""
        return EnvironmentFault(f"{self.label} {why}{shown}", cure="`fabric doctor` may know why")


class Orchestrator(Daemon):
    """``fabric.host.main`` inside its host's namespace."""

    def __init__(
        self, lab: LabState, host: HostConfig, argv: tuple[str, ...] = ORCHESTRATOR
    ) -> None:
        super().__init__(lab, host.host, host.host_dir / "orchestrator.log")
        self._host = host
        self._argv = (*argv, str(host.host_dir / "config.json"))
        self._client = HostClient(host.host, host.api_socket)
        self.label = f"orchestrator of {host.host}"

    def create(self, world: World) -> None:
        if self._running():  # on wiring that is gone
            self.retire(world)
            self.remove(world)
        # Guests of one that died stay: the new one takes over those that still carry connections.
        self._record(processes.start_in_namespace(self._namespace, self._argv, self.log))

    def settle(self, world: World) -> None:
        """Readiness is an answer on the API socket, by the process that we started."""
        left = processes.deadline(READY_DEADLINE)
        process = self._lab.processes[self._key]
        last = "its API socket did not appear"
        while left() > 0:
            if not process.is_alive():
                raise self._failed("ended at its start")
            try:
                answer = self._client.get("/v1/status", timeout=HANDSHAKE_TIMEOUT)
            except Unreachable as exc:
                last = exc.message
            else:
                if answer.get("host") == self._host.host:
                    return
                last = f"host {answer.get('host')} answers in its place"
            time.sleep(POLL)
        raise self._failed(f"was not ready within {READY_DEADLINE:g} s ({last})")

    def left(self, world: World) -> bool:
        return self._running() or bool(self._guests(world))

    def retire(self, world: World) -> None:
        if self._running():
            with contextlib.suppress(FabricError):  # then `remove` insists
                self._client.post("/v1/shutdown", timeout=HANDSHAKE_TIMEOUT)

    def remove(self, world: World) -> None:
        process = self._lab.processes.get(self._key)
        if process is not None and not processes.wait(process, self._patience()):
            processes.end(process)
        self._forget()
        self._destroy_guests(world)
        for leftover in self._host.host_dir.glob("*"):
            # Its sockets; all else goes with the lab's directory.
            if leftover.is_socket() and leftover != socket_path(self._host.host_dir):
                leftover.unlink(missing_ok=True)

    def _patience(self) -> float:
        """An orchestrator that never served cannot be destroying guests: no need to wait."""
        return SHUTDOWN_DEADLINE if self._host.api_socket.exists() else 0.0

    def _guests(self, world: World) -> list[str]:
        owned = world.hypervisor.list_owned(self._host.lab, self._host.host)
        return [domain.name for domain in owned]

    def _destroy_guests(self, world: World) -> None:
        """All that can be; raises for the last one that could not."""
        failure: FabricError | None = None
        for name in self._guests(world):
            try:
                world.hypervisor.destroy(name)
            except FabricError as exc:
                failure = exc
        if failure is not None:
            raise failure


class LinkWatch(Daemon):
    """``fabric.host.links.main`` inside its host's namespace."""

    def __init__(self, lab: LabState, host: HostConfig, argv: tuple[str, ...] = LINK_WATCH) -> None:
        super().__init__(lab, host.host, host.host_dir / "links.log")
        self._key = names.link_watch_key(host.host)
        self._host = host
        self._argv = (*argv, str(host.host_dir / "config.json"))
        self.label = f"link watch of {host.host}"

    def create(self, world: World) -> None:
        self.remove(world)
        self._record(processes.start_in_namespace(self._namespace, self._argv, self.log))

    def settle(self, world: World) -> None:
        """It listens, so it holds the sockets of all its links."""
        left = processes.deadline(READY_DEADLINE)
        while left() > 0:
            if not self._running():
                raise self._failed("ended at its start")
            if socket_path(self._host.host_dir).is_socket():
                return
            time.sleep(POLL)
        raise self._failed(f"was not ready within {READY_DEADLINE:g} s")

    def remove(self, world: World) -> None:
        process = self._lab.processes.get(self._key)
        if process is not None:
            processes.end(process)
        self._forget()
        socket_path(self._host.host_dir).unlink(missing_ok=True)


class Service(Daemon):
    """A program of the topology file, inside its host's namespace.

    It finds a directory of its own in FABRIC_SERVICE_DIR, removed with the lab, and starts in the
    directory of the topology file.
    """

    def __init__(self, lab: LabState, service: ServiceSpec) -> None:
        directory = lab.spec.run_dir / service.host
        super().__init__(lab, service.host, directory / f"{service.name}.log")
        self._key = f"{service.host}/{service.name}"
        self._service = service
        self._directory = directory / f"{service.name}.service"
        self._start_in = Path(lab.spec.path).parent
        self.label = f"service {service.name} of {service.host}"

    def create(self, world: World) -> None:
        self.remove(world)
        self._directory.mkdir(parents=True, exist_ok=True)
        self._record(
            processes.start_in_namespace(
                self._namespace,
                self._service.command,
                self.log,
                start_in=self._start_in,
                environment={"FABRIC_SERVICE_DIR": str(self._directory)},
            )
        )

    def settle(self, world: World) -> None:
        """A command that cannot even start is the file's mistake, and said now."""
        if not self._running():
            failed = self._failed("ended at its start")
            place = f"hosts.{self._service.host}.services.{self._service.name}"
            cure = f"mend {place} in {self._lab.spec.path}; it starts in that file's directory"
            raise ConfigError(failed.message, cure=cure)

    def remove(self, world: World) -> None:
        process = self._lab.processes.get(self._key)
        if process is not None:
            processes.end(process)
        self._forget()
        shutil.rmtree(self._directory, ignore_errors=True)


class Emulator(Daemon):
    """The link emulator inside the lab's namespace for links."""

    label = "link emulator"

    def __init__(self, lab: LabState, spec: LabSpec) -> None:
        super().__init__(lab, names.LINKS_HOST, spec.run_dir / "links.log")
        self._spec = spec
        self._config = spec.run_dir / "links.json"
        self._control = spec.run_dir / "links.sock"

    def present(self, world: World) -> bool:
        if not super().present(world):
            return False
        try:
            recorded = json.loads(self._config.read_text())
        except (OSError, ValueError):
            return False
        # An emulator holds its sockets: links made anew after it was started need a new one.
        links = world.links(self._namespace)
        return all(
            (link := links.get(name)) is not None and link.index == index
            for name, index in recorded["indices"].items()
        )

    def create(self, world: World) -> None:
        self.remove(world)
        self._configure(world)
        reader, writer = os.pipe()
        try:
            argv = (*EMULATOR, str(self._config), str(writer))
            started = processes.start_in_namespace(
                self._namespace, argv, self.log, pass_fds=[writer]
            )
        finally:
            os.close(writer)
        try:
            self._record(started)
            # End of file without the word means that it died; its log says of what.
            readable, _, _ = select.select([reader], [], [], EMULATOR_DEADLINE)
            if not readable or os.read(reader, 16) != b"ready\n":
                raise self._failed("did not start")
        finally:
            os.close(reader)

    def change(self, world: World, link: LinkSpec) -> None:
        """Have the running emulator, or a new one, do to ``link`` what the record says of it."""
        if not self.present(world):
            self.create(world)
            return
        self._configure(world)
        change_links(self._control, [self._entry(link)])

    def _configure(self, world: World) -> None:
        """Write what it is to do, for its start and for :meth:`present`."""
        entries = []
        # Where netem does it, it runs with nothing to do.
        if uses_emulator(world, self._spec.name):
            links = [link for link in self._spec.links if self._lab.standing(link).impaired]
            entries = [self._entry(link) for link in links]
        there = world.links(self._namespace)
        ports = [port for x in entries for port in (x.from_a, x.from_b, x.to_a, x.to_b)]
        document = {
            "control": str(self._control),
            "links": [entry.to_json() for entry in entries],
            "indices": {port: there[port].index for port in ports},
        }
        state.write_file(self._config, json.dumps(document, indent=1) + "\n")

    def remove(self, world: World) -> None:
        process = self._lab.processes.get(self._key)
        if process is not None:
            processes.end(process)
        self._forget()

    def _entry(self, link: LinkSpec) -> ImpairedLink:
        standing, number = self._lab.standing(link), link.number
        (to_a, to_b), (from_b, from_a) = names.emulator_ports(number), names.aside_ports(number)
        return ImpairedLink(
            from_a,
            from_b,
            to_a,
            to_b,
            standing.latency_us,
            standing.loss,
            seed=number,
            jitter_us=standing.jitter_us,
        )
