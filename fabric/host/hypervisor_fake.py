"""A hypervisor in memory, for tests.

Owns: a fake that keeps the promises of :class:`fabric.host.hypervisor.Hypervisor`. May import:
errors, host.domain_xml, host.hypervisor (its facts).
"""

from __future__ import annotations

import threading
import time
import uuid

from fabric.errors import Conflict, HypervisorDown, SpawnFailed
from fabric.host.domain_xml import OwnerMark, domain_name_of, read_mark
from fabric.host.hypervisor import DomainEvent, DomainHandle, OwnedDomain, Watcher


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
        self._lock = threading.Lock()
        self._watchers: list[Watcher] = []

    def create(self, xml: str) -> DomainHandle:
        name = domain_name_of(xml)
        with self._lock:
            self._answer()
            if name in self.domains:
                raise Conflict(f"domain {name} already exists")
            if self.fail_next:
                self.fail_next -= 1
                raise SpawnFailed(f"creating {name}: told to fail")
            self.domains[name] = read_mark(xml)
            self.log.append(("create", name))
        self._tell(DomainEvent.STARTED, name)
        return DomainHandle(name, str(uuid.uuid4()), None, time.time())

    def destroy(self, name: str) -> None:
        with self._lock:
            self._answer()
            if name in self.stuck:
                raise SpawnFailed(f"domain {name} is still there")
            self.log.append(("destroy", name))
            known = name in self.domains
            self.domains.pop(name, None)
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
        self._tell(DomainEvent.STOPPED, name)

    def _answer(self) -> None:
        if self.down:
            raise HypervisorDown("the fake hypervisor is down")

    def _tell(self, event: DomainEvent, name: str) -> None:
        for watcher in tuple(self._watchers):
            watcher(event, name)
