"""The link watch of one host: ``python -m fabric.host.links.main CONFIG.json``.

Owns: the loop over all links, telling guests and listeners, signals. May import: errors, wire,
routing, host.links, and of host config, process, promptness. One per host, beside its orchestrator,
in the same namespace.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import hashlib
import logging
import secrets
import select
import signal
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fabric.errors import ConfigError, FabricError
from fabric.host.config import HostConfig
from fabric.host.links.carrier import CarrierWatch
from fabric.host.links.feed import Audience, Feed, Listener, links_line, socket_path
from fabric.host.links.prober import Prober, monotonic_us, unix_us
from fabric.host.process import boot_id
from fabric.host.promptness import be_prompt
from fabric.routing.bfd import Timing
from fabric.routing.topology import Topology
from fabric.wire import notice

log = logging.getLogger(__name__)

REALTIME_PRIORITY = 10
"""SCHED_RR: before everything that computes; a watch that is not scheduled is a dead link."""
REPORT_US = 1_000_000
"""µs between two lines to listeners when nothing happens."""
NOTICE_SOURCE_PORT = 706
"""Below 1024: no unprivileged program of this host can speak to guests in our name."""


class LinkWatch:
    """See the module docstring. The constructor acquires; :meth:`close` releases."""

    def __init__(self, config: HostConfig) -> None:
        """Raises ConfigError, Conflict, EnvironmentFault."""
        self._stopping = False
        self._audience = Audience()
        self._late_us = 0
        self._reported_at_us = 0
        self._listeners: dict[int, Listener] = {}
        self._feed = Feed(socket_path(config.host_dir))
        self._guests = _guest_socket(config.guest_interface)
        self._carrier = CarrierWatch()
        self._probers = _probers(config)
        self._by_index = {prober.index: prober for prober in self._probers.values()}
        self._poll = select.epoll()
        for descriptor in (self._feed.fileno(), self._carrier.fileno(), *self._probers):
            self._poll.register(descriptor, select.EPOLLIN)
        self._carrier.ask()

    def stop(self) -> None:
        """End the loop; callable from a signal handler."""
        self._stopping = True

    def run(self) -> None:
        """Until :meth:`stop`."""
        while not self._stopping:
            due = min((prober.due() for prober in self._probers.values()), default=None)
            report = self._reported_at_us + REPORT_US
            due = report if due is None else min(due, report)
            ready = self._poll.poll(max(0.0, (due - monotonic_us()) / 1e6))
            self._late_us = max(self._late_us, monotonic_us() - due)
            changed = self._read(ready)
            for prober in self._probers.values():
                changed |= prober.due() <= monotonic_us() and prober.tick()
            if changed:
                self._tell_guests()
            if changed or monotonic_us() - self._reported_at_us >= REPORT_US:
                self._report()

    def close(self) -> None:
        """Say goodbye to the neighbours."""
        for prober in self._probers.values():
            prober.close()
        for listener in self._listeners.values():
            listener.socket.close()
        self._feed.close()
        self._guests.close()
        self._carrier.close()
        self._poll.close()

    def _read(self, ready: list[tuple[int, int]]) -> bool:
        """Take in what has come: all of it before any clock is looked at again."""
        changed = False
        for descriptor, _ in ready:
            if (prober := self._probers.get(descriptor)) is not None:
                changed |= prober.read()
            elif descriptor == self._carrier.fileno():
                changed |= self._on_carrier()
            elif descriptor == self._feed.fileno():
                self._on_newcomer()
            else:
                self._on_listener(self._listeners[descriptor])
        return changed

    def _on_carrier(self) -> bool:
        changed = False
        for index, carrier in self._carrier.read():
            if (prober := self._by_index.get(index)) is not None:
                changed |= prober.on_carrier(carrier)
        return changed

    # -- guests -----------------------------------------------------------------------------------

    def _tell_guests(self) -> None:
        self._notify(self._audience.keys)

    def _notify(self, keys: Mapping[str, bytes]) -> None:
        standings = [prober.standing() for prober in self._probers.values()]
        down = tuple(each.address for each in standings if each.up is False)
        for address, key in keys.items():
            data = notice.encode(notice.Notice(key, unix_us(), down))
            with contextlib.suppress(OSError):  # a guest that is gone
                self._guests.sendto(data, (address, notice.PORT))

    # -- listeners --------------------------------------------------------------------------------

    def _on_newcomer(self) -> None:
        if (listener := self._feed.accept()) is not None:
            self._listeners[listener.fileno()] = listener
            self._poll.register(listener.fileno(), select.EPOLLIN)
            if not listener.send(self._line()):
                self._dismiss(listener)

    def _on_listener(self, listener: Listener) -> None:
        lines = listener.lines()
        if lines is None:
            self._dismiss(listener)
            return
        for line in lines:
            try:
                audience = Audience.from_line(line)
            except (ValueError, KeyError, TypeError, AttributeError):
                log.warning("a listener said what we do not understand: %s", line[:80])
                continue
            known, self._audience = self._audience.keys.items(), audience
            self._notify(dict(audience.keys.items() - known))

    def _report(self) -> None:
        if monotonic_us() - self._reported_at_us >= REPORT_US:
            for prober in self._probers.values():
                prober.look()
        self._reported_at_us = monotonic_us()
        if self._listeners:
            line = self._line()
            for listener in list(self._listeners.values()):
                if not listener.send(line):
                    self._dismiss(listener)

    def _line(self) -> bytes:
        late, self._late_us = self._late_us, 0
        links: list[dict[str, Any]] = [each.standing().to_json() for each in self._probers.values()]
        return links_line(links, late_us=late)

    def _dismiss(self, listener: Listener) -> None:
        self._listeners.pop(listener.fileno(), None)
        with contextlib.suppress(OSError):
            self._poll.unregister(listener.fileno())
        listener.socket.close()


def _probers(config: HostConfig) -> dict[int, Prober]:
    """One for each link of this host, by file descriptor."""
    topology = Topology.from_json(config.topology)
    here = _interfaces()
    liveness = config.liveness
    timing = Timing(
        slow_us=round(liveness.slow_ms * 1000),
        fast_us=round(liveness.fast_ms * 1000),
        multiplier=liveness.multiplier,
        steady_us=round(liveness.steady_ms * 1000),
    )
    clock = int.from_bytes(hashlib.blake2s(boot_id().encode(), digest_size=8).digest(), "big")
    found = {}
    for neighbour in topology.neighbours(config.node):
        interface = here.get(neighbour.local_address)
        if interface is None:
            raise ConfigError(
                f"{config.host}: no interface has {neighbour.local_address}, its address on the "
                f"link to {topology.name_of(neighbour.node)}",
                cure="configure the interface, or correct the topology",
            )
        prober = Prober(
            neighbour,
            interface,
            node=config.node,
            timing=timing,
            discriminator=secrets.randbelow(0xFFFFFFFF) + 1,
            clock=clock,
            multihop=liveness.multihop,
        )
        found[prober.fileno()] = prober
    return found


def _interfaces() -> dict[str, str]:
    """Own IPv4 address → interface."""
    found = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
        for _, name in socket.if_nameindex():
            request = name.encode().ljust(40, b"\0")
            with contextlib.suppress(OSError):  # it has none
                answer = fcntl.ioctl(asker, 0x8915, request)  # SIOCGIFADDR, netdevice(7)
                found[socket.inet_ntoa(answer[20:24])] = name
    return found


def _guest_socket(interface: str) -> socket.socket:
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.setblocking(False)
    udp.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, interface.encode())
    udp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    udp.bind(("0.0.0.0", NOTICE_SOURCE_PORT))
    return udp


def main() -> int:
    """Entry point. Exit codes are those of :mod:`fabric.errors`."""
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    try:
        watch = LinkWatch(HostConfig.load(Path(sys.argv[1])))
    except FabricError as exc:
        log.error("%s", exc)  # noqa: TRY400 - the message is for people, the trace is not
        return exc.exit_code
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: watch.stop())
    if refused := be_prompt(REALTIME_PRIORITY):
        log.warning("%s: under load, links may seem dead", refused)
    gc.collect()
    gc.freeze()
    try:
        watch.run()
    finally:
        watch.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
