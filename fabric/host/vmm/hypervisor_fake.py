"""A hypervisor in memory, for tests.

Owns: a fake that keeps the promises of :class:`fabric.host.vmm.domains.Hypervisor`. May import:
errors, host.vmm.domain_xml, host.vmm.domains.
"""

from __future__ import annotations

import threading
import time
import uuid
from pathlib import Path

from fabric.errors import Conflict, HypervisorDown, SpawnFailed
from fabric.host.vmm.domain_xml import OwnerMark, domain_name_of, read_mark, read_mark_element
from fabric.host.vmm.domains import DomainEvent, DomainHandle, OwnedDomain, Watcher

STATE = b"devices of a fake guest"


class FakeHypervisor:
    """Keeps domains in a dictionary. Test helpers: ``fail_next``, ``crash``, ``down``, ``log``."""

    def __init__(self) -> None:
        self.domains: dict[str, OwnerMark | None] = {}
        self.log: list[tuple[str, str]] = []
        self.down = False
        self.fail_next = 0
        """How many of the next creations fail."""
        self.stuck: set[str] = set()
        """Names whose destruction cannot be proven."""
        self.paused: set[str] = set()
        self.armed: set[str] = set()
        self.xml: dict[str, str] = {}
        self.uuids: dict[str, str] = {}
        self.fail_loading = 0
        """How many of the next states cannot be loaded."""
        self.may_wake = threading.Event()
        """Clear it, and what wakes up waits."""
        self.may_wake.set()
        self._lock = threading.Lock()
        self._watchers: list[Watcher] = []

    def create(self, xml: str, *, paused: bool = False) -> DomainHandle:
        name = domain_name_of(xml)
        with self._lock:
            self._answer()
            if name in self.domains:
                raise Conflict(f"domain {name} already exists")
            if self.fail_next:
                self.fail_next -= 1
                raise SpawnFailed(f"creating {name}: told to fail")
            self.domains[name] = read_mark(xml)
            self.xml[name] = xml
            identifier = self.uuids[name] = str(uuid.uuid4())
            if paused:
                self.paused.add(name)
            self.log.append(("create", name))
        self._tell(DomainEvent.STARTED, name)
        return DomainHandle(name, identifier, None, time.time())

    def resume(self, name: str) -> None:
        with self._lock:
            self._existing(name)
            self.paused.discard(name)
            self.log.append(("resume", name))

    def save_state(self, name: str, path: Path) -> None:
        with self._lock:
            self._existing(name)
            self.paused.add(name)
            self.log.append(("save", name))
        with path.open("xb") as file:
            file.write(STATE)

    def arm(self, name: str, path: Path) -> None:
        content = path.read_bytes()
        with self._lock:
            self._existing(name)
            self.log.append(("arm", name))
            if content != STATE or name not in self.paused:
                raise SpawnFailed(f"arming {name}: no state of ours, or it runs already")
            self.armed.add(name)

    def wake(self, name: str) -> None:
        self.may_wake.wait()
        with self._lock:
            self._existing(name)
            self.log.append(("wake", name))
            if self.fail_loading:
                self.fail_loading -= 1
                raise SpawnFailed(f"loading into {name}: told to fail")
            if name not in self.armed:
                raise SpawnFailed(f"loading into {name}: it was not armed")
            self.armed.discard(name)
            self.paused.discard(name)

    def assign(self, name: str, mark: str) -> None:
        with self._lock:
            self._existing(name)
            self.domains[name] = read_mark_element(mark)

    def destroy(self, name: str) -> None:
        with self._lock:
            self._answer()
            if name in self.stuck:
                raise SpawnFailed(f"domain {name} is still there")
            self.log.append(("destroy", name))
            known = name in self.domains
            self.domains.pop(name, None)
            self.paused.discard(name)
            self.armed.discard(name)
        if known:
            self._tell(DomainEvent.STOPPED, name)

    def list_owned(self, lab: str | None = None, host: str | None = None) -> list[OwnedDomain]:
        with self._lock:
            self._answer()
            return [
                OwnedDomain(
                    name,
                    mark.lab,
                    mark.host,
                    mark.index,
                    mark.connection,
                    True,
                    mark.created_us / 1e6,
                    self.uuids.get(name, ""),
                )
                for name, mark in sorted(self.domains.items())
                if mark and lab in (None, mark.lab) and host in (None, mark.host)
            ]

    def watch(self, watcher: Watcher) -> None:
        self._watchers.append(watcher)

    def is_alive(self) -> bool:
        return not self.down

    def close(self) -> None:
        self._watchers.clear()

    def crash(self, name: str) -> None:
        """The domain ends by itself."""
        with self._lock:
            del self.domains[name]
            self.paused.discard(name)
            self.armed.discard(name)
        self._tell(DomainEvent.STOPPED, name)

    def _existing(self, name: str) -> None:
        self._answer()
        if name not in self.domains:
            raise SpawnFailed(f"domain {name} ended")

    def _answer(self) -> None:
        if self.down:
            raise HypervisorDown("the fake hypervisor is down")

    def report_stop(self, name: str, identifier: str) -> None:
        """The news of a domain's end arrives, however late."""
        for watcher in tuple(self._watchers):
            watcher(DomainEvent.STOPPED, name, identifier)

    def tell_reconnected(self) -> None:
        """The daemon was away; what happened meanwhile goes unreported."""
        for watcher in tuple(self._watchers):
            watcher(DomainEvent.RECONNECTED, "", "")

    def _tell(self, event: DomainEvent, name: str) -> None:
        for watcher in tuple(self._watchers):
            watcher(event, name, self.uuids.get(name, ""))
