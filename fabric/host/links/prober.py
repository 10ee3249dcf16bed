"""One end of one link: the socket, the session and the meter behind it.

Owns: Prober. May import: errors, wire, routing, host.network.shaping. Everything is driven from
outside: nothing in here waits.
"""

from __future__ import annotations

import errno
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from struct import Struct
from typing import Any

from fabric.errors import ConfigError, Conflict, WireError
from fabric.host.network.shaping import CONTROL_PRIORITY
from fabric.routing.bfd import Session, Timing
from fabric.routing.link_meter import LinkMeter
from fabric.routing.topology import Neighbour
from fabric.wire.probe import (
    ADMIN_DOWN,
    ADMINISTRATIVELY,
    DIAGNOSTICS,
    PORT,
    SIZE,
    STATE_NAMES,
    LinkProbe,
    decode,
    encode,
)

GRACE_US = 10_000_000
"""µs after our start in which a neighbour never heard counts as still to come, not as dead."""
MAX_TTL = 255
"""Of probes: what arrives with less came over a router, so from no neighbour (RFC 5082)."""
_NETWORK_CONTROL = 0xC0
"""TOS of class selector 6 (RFC 2474), where routers keep what routing needs."""
_SO_TIMESTAMPNS = 35
_IP_RECVTTL = 12
_TIMESPEC, _INT = Struct("=qq"), Struct("=i")
_CONTROL_SPACE = socket.CMSG_SPACE(_TIMESPEC.size) + socket.CMSG_SPACE(_INT.size)


@dataclass(frozen=True)
class Standing:
    """What one end says of its link. µs."""

    interface: int
    neighbour: int
    address: str
    """The neighbour's underlay address."""
    up: bool | None
    """None: not known yet, take what is configured."""
    state: str
    diagnostic: str
    carrier: bool
    since_us: int
    """Unix time of the last change of ``up``."""
    rtt_us: int | None
    delay_us: int | None
    least_us: int | None
    jitter_us: int | None
    loss: float | None
    used_bps: int | None
    """What went over the link in the last second, in the direction that carried more."""
    available_bps: int | None
    """What that leaves of the bandwidth in the topology (RFC 8570, section 4.6), if it has one."""
    interval_us: int
    detection_us: int
    probes_in: int
    probes_out: int
    refused: int
    """Datagrams on the probes' port that were none of this neighbour's."""

    def to_json(self) -> dict[str, Any]:
        return dict(self.__dict__)


class Prober:
    """See the module docstring."""

    def __init__(
        self,
        neighbour: Neighbour,
        interface: str,
        *,
        node: int,
        timing: Timing,
        discriminator: int,
        clock: int,
        multihop: bool = False,
    ) -> None:
        """``interface``: the name of the network interface the link is on; ``clock``: what the
        real-time clock of this machine is called; ``multihop``: see
        :class:`fabric.host.config.LivenessConfig`. Raises ConfigError, Conflict."""
        self.neighbour = neighbour
        self._node = node
        self._clock = clock
        self._timing = timing
        self._least_ttl = 0 if multihop else MAX_TTL
        self._socket = _open(neighbour, interface)
        self.index = socket.if_nametoindex(interface)
        now = monotonic_us()
        self._born_us = now
        self._session = Session(timing, discriminator, now)
        self._meter = LinkMeter(clock)
        self._sequence = 0
        self._carrier = True
        self._up: bool | None = None
        self._since_us = unix_us()
        self._in = self._out = self._refused = 0
        self._heard_sent_at_us = self._heard_at_us = 0
        self._told = (timing.slow_us, timing.slow_us)
        self._statistics = Path(f"/sys/class/net/{interface}/statistics")
        self._octets: tuple[int, int, int] | None = None
        """(when, sent, received) at the last look."""
        self._used_bps: int | None = None

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        """Tell the neighbour that we leave, so that it need not find out."""
        self._send(state=ADMIN_DOWN, diagnostic=ADMINISTRATIVELY)
        self._socket.close()

    # -- events; each says whether the link's standing is another one now -------------------------

    def read(self) -> bool:
        """Take in the probes that are there."""
        while (found := self._receive()) is not None:
            data, source, received_us, ttl = found
            try:
                probe = decode(data)
            except WireError:
                self._refused += 1
                continue
            if not self._genuine(probe, source, ttl):
                self._refused += 1
                continue
            self._in += 1
            age_us = max(0, unix_us() - received_us)
            echoed = probe.your_discriminator == self._session.discriminator
            self._heard_sent_at_us, self._heard_at_us = probe.sent_at_us, received_us
            self._meter.on_probe(probe, received_us, echoed=echoed)
            self._session.receive(probe, monotonic_us() - age_us)
        return self._judge(monotonic_us())

    def tick(self) -> bool:
        """Do what is due."""
        now = monotonic_us()
        self._session.tick(now, max(0, now - self._session.due()))
        if self._carrier and self._session.sending(now):
            self._send()
        return self._judge(now)

    def on_carrier(self, carrier: bool) -> bool:
        """The kernel said whether the interface has one."""
        self._carrier = carrier
        if not carrier:
            self._session.lose_carrier(monotonic_us())
        return self._judge(monotonic_us())

    def look(self) -> None:
        """See what went over the link since the last look; about once a second."""
        now = monotonic_us()
        try:
            sent, received = (
                int((self._statistics / f"{way}_bytes").read_text()) for way in ("tx", "rx")
            )
        except (OSError, ValueError):
            self._octets = self._used_bps = None
            return
        before, self._octets = self._octets, (now, sent, received)
        if before is not None and now > before[0]:
            octets = max(sent - before[1], received - before[2])
            self._used_bps = max(0, octets) * 8_000_000 // (now - before[0])

    def _available_bps(self) -> int | None:
        bandwidth = self.neighbour.link.bandwidth_bps
        if self._used_bps is None or not bandwidth:
            return None
        return max(0, bandwidth - self._used_bps)

    def due(self) -> int:
        """When :meth:`tick` wants to be called, µs of the monotonic clock."""
        if not self._carrier:
            return monotonic_us() + self._timing.slow_us
        return self._session.due()

    def standing(self) -> Standing:
        """For those who ask."""
        session, quality = self._session, self._meter.quality()
        return Standing(
            interface=self.neighbour.interface,
            neighbour=self.neighbour.node,
            address=self.neighbour.address,
            up=self._up,
            state=STATE_NAMES[session.state],
            diagnostic=DIAGNOSTICS.get(session.diagnostic, str(session.diagnostic)),
            carrier=self._carrier,
            since_us=self._since_us,
            rtt_us=quality.rtt_us,
            delay_us=quality.delay_us,
            least_us=quality.least_us,
            jitter_us=quality.jitter_us,
            loss=quality.loss,
            used_bps=self._used_bps,
            available_bps=self._available_bps(),
            interval_us=self._told[0],
            detection_us=session.detection_us,
            probes_in=self._in,
            probes_out=self._out,
            refused=self._refused,
        )

    # -- within -----------------------------------------------------------------------------------

    def _judge(self, now: int) -> bool:
        """Down at once; up again when it has been up for a while, so that a link that flaps is
        down; and at first unknown, for everybody starts at the same moment."""
        session, up = self._session, self._up
        if session.up:
            steady = now - session.changed_at_us >= self._timing.steady_us
            up = up is not False or steady
        elif up is not None or not self._carrier or now - self._born_us > GRACE_US:
            up = False
        if up is self._up:
            return False
        if not up:
            self._meter.forget()
        self._up, self._since_us = up, unix_us()
        return True

    def _genuine(self, probe: LinkProbe, source: str, ttl: int) -> bool:
        neighbour, link = self.neighbour, self.neighbour.link
        far = link.b_interface if link.a == self._node else link.a_interface
        expected = (neighbour.address, neighbour.node, far)
        return (source, probe.node, probe.interface) == expected and ttl >= self._least_ttl

    def _send(self, state: int | None = None, diagnostic: int | None = None) -> None:
        session = self._session
        now = monotonic_us()
        self._sequence += 1
        self._told = session.transmit(now, jitter=(self._sequence * 0.618034) % 1)
        heard = session.heard
        sent_at = unix_us()
        probe = LinkProbe(
            state=session.state if state is None else state,
            diagnostic=session.diagnostic if diagnostic is None else diagnostic,
            detect_multiplier=self._timing.multiplier,
            my_discriminator=session.discriminator,
            your_discriminator=heard.my_discriminator if heard is not None else 0,
            desired_min_tx_us=self._told[0],
            required_min_rx_us=self._told[1],
            node=self._node,
            interface=self.neighbour.interface,
            sequence=self._sequence,
            sent_at_us=sent_at,
            clock=self._clock,
            echo_sent_at_us=self._heard_sent_at_us if heard is not None else 0,
            echo_held_us=max(0, sent_at - self._heard_at_us) & 0xFFFFFFFF,
        )
        try:
            self._socket.sendto(encode(probe), (self.neighbour.address, PORT))
        except OSError:
            return  # as good as lost, and found out in the same way
        self._out += 1

    def _receive(self) -> tuple[bytes, str, int, int] | None:
        """(datagram, source, Unix µs of its arrival, TTL); None: no more are there."""
        while True:
            try:
                data, ancillary, _, (source, _) = self._socket.recvmsg(SIZE + 1, _CONTROL_SPACE)
            except BlockingIOError:
                return None
            except OSError:
                continue  # an ICMP error of an earlier probe: the far end has no process
            received, ttl = unix_us(), 0
            for level, kind, value in ancillary:
                if (level, kind) == (socket.SOL_SOCKET, _SO_TIMESTAMPNS):
                    seconds, nanoseconds = _TIMESPEC.unpack(value)
                    received = seconds * 1_000_000 + nanoseconds // 1000
                elif (level, kind) == (socket.IPPROTO_IP, socket.IP_TTL):
                    ttl = _INT.unpack(value)[0]
            return data, source, received, ttl


def monotonic_us() -> int:
    """The clock timers go by."""
    return time.monotonic_ns() // 1000


def unix_us() -> int:
    """The clock that is put into probes, and that the kernel stamps arrivals with."""
    return time.time_ns() // 1000


def _open(neighbour: Neighbour, interface: str) -> socket.socket:
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        udp.setblocking(False)
        udp.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, MAX_TTL)
        udp.setsockopt(socket.IPPROTO_IP, _IP_RECVTTL, 1)
        udp.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, _NETWORK_CONTROL)  # before its priority
        udp.setsockopt(socket.SOL_SOCKET, socket.SO_PRIORITY, CONTROL_PRIORITY)
        udp.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        udp.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, interface.encode())
        udp.bind((neighbour.local_address, PORT))
    except OSError as exc:
        udp.close()
        where = f"{neighbour.local_address} port {PORT} on {interface}"
        if exc.errno == errno.EADDRINUSE:
            raise Conflict(
                f"{where} is in use", cure="another process watches this host's links: end it"
            ) from exc
        raise ConfigError(
            f"{where}: {exc.strerror}", cure="configure the interface, or correct the topology"
        ) from exc
    return udp
