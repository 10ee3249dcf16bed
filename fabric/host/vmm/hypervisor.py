"""Guests as libvirt domains.

Owns: the connection to libvirt, and the only import of ``libvirt``. May import: errors, and its
neighbours in host. Domains are transient: what is destroyed leaves no definition behind. They are
not tied to our connection, so that guests survive a restart of the orchestrator.

All calls block and may come from any thread. libvirt's errors are translated here, once.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import libvirt

from fabric.errors import Conflict, FabricError, HypervisorDown, SpawnFailed
from fabric.host.process import Process
from fabric.host.vmm import migration, remains, stillborn
from fabric.host.vmm.domain_xml import OWNER_NAMESPACE, domain_name_of, read_mark_element
from fabric.host.vmm.domains import DomainEvent, DomainHandle, OwnedDomain, Watcher
from fabric.host.vmm.monitor import DomainMonitor

log = logging.getLogger(__name__)

KEEPALIVE_INTERVAL = 5
"""Seconds between keep-alive messages to libvirtd."""

KEEPALIVE_COUNT = 3
"""Unanswered keep-alives after which the connection counts as broken."""

DESTROY_DEADLINE = 20.0
"""Seconds until a domain must be gone. libvirt itself gives QEMU 10 s before it uses SIGKILL."""

RECONNECT_PAUSE = 1.0
"""Seconds between two attempts in the background to reach a libvirtd that went away."""

WAIT_PAUSE = 0.2
"""The same, where somebody waits for it."""

RESTART_PATIENCE = 10.0
"""Seconds a call waits for a libvirtd that went away: one that is restarted is back after two, and
a caller who waits needs no second try. Counted from when it went."""

PARTING = 2.0
"""Seconds a dead connection is left alone before it is closed, for calls of other threads to come
back from it: closed meanwhile, libvirt 9.0 now and then (1 of 60) loses its eventfd."""

_POLL = 0.01


class _EventLoop:
    """libvirt's own event loop, one per process, on a daemon thread: it cannot be stopped."""

    _lock = threading.Lock()
    _running = False

    @classmethod
    def ensure(cls) -> None:
        with cls._lock:
            if cls._running:
                return
            # Must precede the first connection of the process, or that one sends no events.
            libvirt.virEventRegisterDefaultImpl()
            # libvirt prints each error to stderr besides raising it.
            libvirt.registerErrorHandler(lambda _context, _error: None, None)
            threading.Thread(target=cls._run, name="libvirt-events", daemon=True).start()
            cls._running = True

    @staticmethod
    def _run() -> None:
        while True:
            try:
                libvirt.virEventRunDefaultImpl()
            except libvirt.libvirtError:  # one broken callback must not end all events
                time.sleep(_POLL)


class LibvirtHypervisor:
    """:class:`Hypervisor` over libvirt-python. Acquires nothing until first used."""

    def __init__(
        self,
        uri: str = "qemu:///system",
        *,
        revive: Callable[[], bool] | None = None,
        renew: Callable[[str], bool] | None = None,
    ) -> None:
        """``revive``: has a libvirtd that went away started again if that is for us to do; whether
        one answers. With it, a libvirtd that is not there at first counts as one that just went
        away. ``renew``: has the one that runs forget a domain it will never finish, if that is for
        us to do; whether it has. Both may raise FabricError, and block."""
        self.uri = uri
        self._real = uri.startswith("qemu:")  # libvirt's test driver has no processes
        self._revive, self._renew = revive, renew
        self._lost_at = None if revive is None else time.monotonic()
        self._lock = threading.RLock()
        self._connection: Any = None
        self._watchers: list[Watcher] = []
        self._closed = False
        self._reconnecting = False
        self._served = False  # whether there was a connection before

    def create(self, xml: str, *, paused: bool = False) -> DomainHandle:
        name = domain_name_of(xml)
        connection = self._connected()
        with self._doing(f"creating {name}"):
            domain = connection.createXML(xml, libvirt.VIR_DOMAIN_START_PAUSED if paused else 0)
            pid = remains.noted_pid(name) if self._real else None
            return DomainHandle(name, domain.UUIDString(), pid, time.time())

    def resume(self, name: str) -> None:
        domain = self._existing(name)
        with self._doing(f"resuming {name}"):
            domain.resume()

    def save_state(self, name: str, path: Path) -> None:
        domain = self._existing(name)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with self._doing(f"saving {name}"):
                migration.save(DomainMonitor(domain, name), descriptor)
        finally:
            os.close(descriptor)

    def arm(self, name: str, path: Path) -> None:
        domain = self._existing(name)
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            with self._doing(f"arming {name}"):
                migration.arm(DomainMonitor(domain, name), descriptor)
        finally:
            os.close(descriptor)

    def wake(self, name: str) -> None:
        domain = self._existing(name)
        with self._doing(f"waking {name}"):
            migration.load(DomainMonitor(domain, name))
            domain.resume()

    def assign(self, name: str, mark: str) -> None:
        domain = self._existing(name)
        element, key = libvirt.VIR_DOMAIN_METADATA_ELEMENT, "fabric"
        with self._doing(f"marking {name}"):
            domain.setMetadata(element, mark, key, OWNER_NAMESPACE, libvirt.VIR_DOMAIN_AFFECT_LIVE)

    def destroy(self, name: str) -> None:
        process = remains.process(name) if self._real else None
        taps: list[str] = []
        domain = self._lookup(name)
        if domain is not None and self._real and stillborn.is_stillborn(name):
            self._bury(name)
            domain = self._lookup(name)
        if domain is None and process is not None:
            # Its libvirtd died before it had noted what it started, and nobody knows it any more.
            remains.kill(process)
        if domain is not None:
            try:
                taps = remains.taps(domain.XMLDesc(0))
                domain.destroy()
            except libvirt.libvirtError as exc:
                if exc.get_error_code() not in _GONE:
                    raise self._translated(exc, f"destroying {name}") from exc
        deadline = time.monotonic() + DESTROY_DEADLINE
        while left := self._remains(name, process, taps):
            if time.monotonic() > deadline:
                raise SpawnFailed(
                    f"domain {name} was destroyed, but {left} is still there after "
                    f"{DESTROY_DEADLINE:g} s",
                    cure="look at libvirt's log; `fabric gc` tries again",
                )
            time.sleep(_POLL)

    def list_owned(self, lab: str | None = None, host: str | None = None) -> list[OwnedDomain]:
        connection = self._connected()
        with self._doing("listing domains"):
            domains = connection.listAllDomains(0)
        found: list[OwnedDomain] = []
        for domain in domains:
            # A domain may end between the list and the question: then it is simply not there.
            with contextlib.suppress(libvirt.libvirtError):
                metadata = domain.metadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, OWNER_NAMESPACE)
                mark = read_mark_element(metadata)
                if mark is None or lab not in (None, mark.lab) or host not in (None, mark.host):
                    continue
                facts = (bool(domain.isActive()), mark.created_us / 1e6, domain.UUIDString())
                whose = (mark.lab, mark.host, mark.index, mark.connection)
                found.append(OwnedDomain(domain.name(), *whose, *facts))
        return sorted(found, key=lambda owned: owned.name)

    def watch(self, watcher: Watcher) -> None:
        with self._lock:
            self._watchers.append(watcher)
        self._connected()

    def is_alive(self) -> bool:
        try:
            self._connected().getLibVersion()
        except (FabricError, libvirt.libvirtError):
            return False
        return True

    def close(self) -> None:
        with self._lock:
            self._closed = True
            connection, self._connection = self._connection, None
            self._watchers.clear()
        if connection is not None:
            _release(connection)

    # -- the connection ------------------------------------------------------------------------

    def _connected(self) -> Any:
        """The connection; waits for a libvirtd that went away to come back. Not while holding the
        lock: others may find it first."""
        while True:
            try:
                return self._connect()
            except HypervisorDown:
                lost_at = self._lost_at
                if self._closed or lost_at is None:
                    raise  # there never was one: nothing says that waiting would help
                if self._revive is not None and self._revive():
                    continue
                if time.monotonic() - lost_at > RESTART_PATIENCE:
                    raise
                time.sleep(WAIT_PAUSE)

    def _connect(self) -> Any:
        with self._lock:
            if self._closed:
                raise HypervisorDown(f"{self.uri}: this connection was closed")
            if self._connection is not None:
                if self._connection.isAlive():
                    return self._connection
                self._drop()
            _EventLoop.ensure()
            with self._doing("connecting"):
                connection = libvirt.open(self.uri)
                try:
                    self._listen(connection)
                except libvirt.libvirtError:
                    _release_aside(connection)
                    raise
            self._connection, self._lost_at = connection, None
            if self._served:  # perhaps to a call that closed the dead one before libvirt's word
                told = (DomainEvent.RECONNECTED, "", "")
                threading.Thread(target=self._tell, args=told, name="libvirt-back").start()
            self._served = True
            return connection

    def _listen(self, connection: Any) -> None:
        # Local drivers such as test:/// have no wire to keep alive, and say so.
        with contextlib.suppress(libvirt.libvirtError):
            connection.setKeepAlive(KEEPALIVE_INTERVAL, KEEPALIVE_COUNT)
        with contextlib.suppress(libvirt.libvirtError):
            connection.registerCloseCallback(self._on_close, None)
        connection.domainEventRegisterAny(
            None, libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, self._on_lifecycle, None
        )

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        self._lost_at = time.monotonic()
        _release_aside(connection)

    def _on_close(self, _connection: object, _reason: int, _opaque: object) -> None:
        """libvirt's event thread: the daemon went away. Reconnecting blocks, so not here."""
        with self._lock:
            if self._closed or self._reconnecting:
                return
            self._reconnecting = True
        threading.Thread(target=self._reconnect, name="libvirt-reconnect", daemon=True).start()

    def _reconnect(self) -> None:
        while not self._closed:
            with contextlib.suppress(HypervisorDown):
                self._connected()
                break
            time.sleep(RECONNECT_PAUSE)
        with self._lock:
            self._reconnecting = False

    def _on_lifecycle(
        self, _connection: object, domain: Any, event: int, _detail: int, _opaque: object
    ) -> None:
        if event == libvirt.VIR_DOMAIN_EVENT_STARTED:
            self._tell(DomainEvent.STARTED, domain.name(), domain.UUIDString())
        elif event == libvirt.VIR_DOMAIN_EVENT_STOPPED:
            self._tell(DomainEvent.STOPPED, domain.name(), domain.UUIDString())

    def _tell(self, event: DomainEvent, name: str, identifier: str) -> None:
        with self._lock:
            watchers = tuple(self._watchers)
        for watcher in watchers:
            try:
                watcher(event, name, identifier)
            except Exception:  # a watcher's fault must not cost the others their event
                log.exception("a watcher of domain events failed")

    # -- absence -------------------------------------------------------------------------------

    def _bury(self, name: str) -> None:
        if self._renew is not None and self._renew(name):
            return
        stillborn.forget(name)
        raise SpawnFailed(
            f"{self.uri}: the libvirtd that was starting {name} died, and its successor holds on "
            "to the start",
            cure="`systemctl restart libvirtd` (guests run on), then `fabric gc`",
        )

    def _lookup(self, name: str) -> Any:
        try:
            return self._connected().lookupByName(name)
        except libvirt.libvirtError as exc:
            if exc.get_error_code() in _GONE:
                return None
            raise self._translated(exc, f"looking for {name}") from exc

    def _existing(self, name: str) -> Any:
        domain = self._lookup(name)
        if domain is None:
            raise SpawnFailed(f"{self.uri}: domain {name} ended")
        return domain

    def _remains(self, name: str, process: Process | None, taps: list[str]) -> str:
        """What of a destroyed domain is still there, in words; empty when nothing is."""
        if self._lookup(name) is not None:
            return "the domain"
        if process is not None and process.is_alive():
            return f"its process {process.pid}"
        left = remains.interfaces().intersection(taps)
        return f"its interface {', '.join(left)}" if left else ""

    @contextlib.contextmanager
    def _doing(self, what: str) -> Iterator[None]:
        try:
            yield
        except libvirt.libvirtError as exc:
            raise self._translated(exc, what) from exc

    def _translated(self, exc: Any, doing: str) -> FabricError:
        code, text = exc.get_error_code(), str(exc)
        if code == libvirt.VIR_ERR_DOM_EXIST or "already exists" in text:
            return Conflict(f"{self.uri}: {doing}: {text}", cure="run `fabric gc`")
        if code in _DOWN or (self._connection is not None and not self._connection.isAlive()):
            return HypervisorDown(
                f"{self.uri}: {doing}: {text}", cure="start libvirtd; `fabric doctor` says more"
            )
        return SpawnFailed(f"{self.uri}: {doing}: {text}", cure="look at libvirt's log")


def _release_aside(connection: Any) -> None:
    """For who holds our lock, and of a dead connection: see :func:`_release`."""
    closing = threading.Timer(PARTING, _release, [connection])
    closing.name, closing.daemon = "libvirt-close", True
    closing.start()


def _release(connection: Any) -> None:
    """Close it for good: what is registered with it keeps its descriptors open.

    Waits for callbacks of libvirt's that are running, and those want our lock: not while holding
    it."""
    listening = list(getattr(connection, "domainEventCallbackID", ()))
    undo = [partial(connection.domainEventDeregisterAny, each) for each in listening]
    for step in (*undo, connection.unregisterCloseCallback, connection.close):
        with contextlib.suppress(libvirt.libvirtError):
            step()


_GONE = (libvirt.VIR_ERR_NO_DOMAIN, libvirt.VIR_ERR_OPERATION_INVALID)
"""OPERATION_INVALID is "domain is not running": it ended by itself meanwhile."""

_DOWN = (
    libvirt.VIR_ERR_NO_CONNECT,
    libvirt.VIR_ERR_INVALID_CONN,
    libvirt.VIR_ERR_SYSTEM_ERROR,
    libvirt.VIR_ERR_AUTH_FAILED,
    libvirt.VIR_ERR_RPC,
)
