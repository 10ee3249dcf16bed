"""The agent's process: one loop over the control channel, the TUN device and the UDP socket.

Owns: start, clock, the loop. May import: the standard library, fabric.errors, fabric.wire,
fabric.routing, fabric.agent. Everything that can be done before the host says which connection this
guest serves is done before: a template is saved in exactly that state.
"""

from __future__ import annotations

import select
import sys
import time

from fabric.agent.channel import Channel
from fabric.agent.rtnl import RouteNetlink, prepare_guest
from fabric.agent.session import Session
from fabric.agent.tun import Tun
from fabric.agent.udp import Underlay
from fabric.wire.control import (
    AgentEvent,
    Align,
    ClockReading,
    Configure,
    Counters,
    Hello,
    Identify,
    InstallTable,
    Query,
    Quiesce,
    Traces,
)
from fabric.wire.packet import PORT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from fabric.routing.actions import Actions
    from fabric.wire.control import Message

CHANNEL = "/dev/vport0p1"
"""The virtio-serial port of the guest contract."""
UPLINK = "eth0"
TUN_NAME = "fab0"
CHANNEL_RETRY = 0.2
"""Seconds between looks at a channel whose other side is closed: see fabric.agent.channel."""
_READ = select.EPOLLIN
_WRITE = select.EPOLLIN | select.EPOLLOUT


class Clock:
    """Unix µs of the host: the guest's own monotonic clock, set by the host's word."""

    def __init__(self) -> None:
        self._offset_us = time.time_ns() // 1000 - time.monotonic_ns() // 1000

    def now_us(self) -> int:
        return time.monotonic_ns() // 1000 + self._offset_us

    def align(self, host_now_us: int, read_at_us: int) -> None:
        """The host's clock showed ``host_now_us`` when we read ``read_at_us``: when the message
        came in, since understanding it takes longer than its way through the channel."""
        self._offset_us += host_now_us - read_at_us


class Agent:
    """Performs what the session's forwarder wants done."""

    def __init__(self, channel: Channel, tun: Tun, clock: Clock, uplink: str) -> None:
        self._channel = channel
        self._tun = tun
        self._uplink = uplink
        self._clock = clock
        self._underlay = Underlay(PORT)  # already bound when a template is saved
        self._session: Session | None = None
        self._poll = select.epoll()
        self._poll.register(channel, _READ)
        self._channel_mask = _READ  # 0: at rest until the clock says so
        self._copied = False
        self.ipv6 = False
        """Whether the guest's kernel speaks it."""

    def event(self, name: str, **fields: object) -> None:
        """Tell the host."""
        self._channel.send(AgentEvent(name, fields, self._clock.now_us()))

    def run(self) -> None:
        """Serve for ever."""
        tun, channel = self._tun.fileno(), self._channel.fileno()
        while True:
            for ready, _ in self._poll.poll(self._timeout()):
                if ready == channel:
                    self._on_channel()
                elif self._session is None:
                    continue  # not registered before; for the type checker
                elif ready == tun:
                    self._on_application(self._session)
                else:
                    self._on_underlay(self._session)
            self._on_timer()

    def _timeout(self) -> float | None:
        # Seconds until something is due; None: only a packet or the host can wake us.
        waits = [] if self._channel_mask else [CHANNEL_RETRY]
        due = self._session.forwarder.next_timer() if self._session else None
        if due is not None:
            waits.append(max(0.0, (due - self._clock.now_us()) / 1e6))
        return min(waits, default=None)

    def _on_application(self, session: Session) -> None:
        now = self._clock.now_us()
        burst = self._tun.read_burst()
        actions = session.forwarder.from_application(burst, now, len(burst))
        self._perform(session, actions, now)

    def _on_underlay(self, session: Session) -> None:
        now = self._clock.now_us()
        burst = self._underlay.receive_burst()
        actions = session.forwarder.from_underlay(burst, now, len(burst))
        self._perform(session, actions, now)

    def _on_timer(self) -> None:
        if self._session is not None:
            actions = self._session.forwarder.handle_timer(self._clock.now_us())
            if actions.report:
                self._report(self._session)
        if self._channel_mask == 0:
            self._on_channel()

    def _perform(self, session: Session, actions: Actions, read_at_us: int) -> None:
        actions.stamp(self._clock.now_us() - read_at_us)
        for batch in actions.batches:
            self._underlay.send(batch)
        if actions.deliveries:
            self._tun.write_burst(actions.deliveries)
        # News comes after the packets: nobody waits for it.
        for name, fields in actions.events:
            self._channel.send(AgentEvent(name, fields, actions.at_us))
        if actions.first_delivery:
            self._send_traces(session, len(actions.deliveries))
        if self._channel.wants_to_write:
            self._watch_channel(present=True)

    # -- the host ------------------------------------------------------------------------------

    def _on_channel(self) -> None:
        read_at = self._clock.now_us()
        messages, present = self._channel.receive()
        for message in messages:
            self._on_message(message, read_at)
        self._channel.flush()
        self._watch_channel(present)

    def _watch_channel(self, present: bool) -> None:
        mask = 0
        if present:
            mask = _WRITE if self._channel.wants_to_write else _READ
        if mask == self._channel_mask:
            return
        if mask == 0:
            self._poll.unregister(self._channel)
        elif self._channel_mask == 0:
            self._poll.register(self._channel, mask)
        else:
            self._poll.modify(self._channel, mask)
        self._channel_mask = mask

    def _on_message(self, message: Message, read_at_us: int) -> None:
        try:
            if isinstance(message, Configure):
                self._clock.align(message.host_now_us, read_at_us)
                self._configure(message)
            elif isinstance(message, InstallTable) and self._session is not None:
                self._session.install(message.table)
            elif isinstance(message, Align):
                self._clock.align(message.delta_us, 0)
                self._set_wall_clock()
            elif isinstance(message, Identify):
                self._clock.align(message.host_now_us, read_at_us)
                self._identify(message)
            elif isinstance(message, Quiesce):
                self._quiesce()
            elif isinstance(message, Query) and message.what == "clock":
                self._channel.send(ClockReading(read_at_us))
            elif isinstance(message, Query) and self._session is not None:
                if message.what == "traces":
                    self._send_traces(self._session, message.last)
                else:
                    self._report(self._session)
        except Exception as exc:  # whatever the host sent, packets go on under the last good state
            self.event("agent-error", message=type(message).__name__, error=repr(exc))

    def _configure(self, message: Configure) -> None:
        session = Session.begin(message, self._clock.now_us())
        with RouteNetlink() as network:
            network.set_mtu(self._tun.name, message.overlay_mtu)
        if self._session is not None:
            self._poll.unregister(self._underlay)
        if self._underlay.port != message.port:
            self._underlay.close()
            self._underlay = Underlay(message.port)
        self._poll.register(self._underlay, _READ)
        if self._session is None:
            self._poll.register(self._tun, _READ)
        self._session = session
        self._channel.send(session.ready())

    def _quiesce(self) -> None:
        """Be ready to be saved. What is imported and tidied now, no copy has to do."""
        import gc
        import ipaddress  # noqa: F401 - a session may want it

        from fabric.agent import identity

        if self._session is not None:
            raise RuntimeError("a guest that serves a connection cannot become a template")
        quiesced = identity.forget(self._uplink)
        gc.collect()
        gc.freeze()  # the collector would write into, and so copy, every page it looks at
        self._channel.send(quiesced)

    def _identify(self, message: Identify) -> None:
        from fabric.agent import identity

        self._channel.send(identity.assume(message, self._uplink, ipv6=self.ipv6))
        self._copied = True

    def _set_wall_clock(self) -> None:
        if not self._copied:
            return  # it booted with a clock, or does not run in a guest of its own at all
        from fabric.agent import identity

        identity.set_wall_clock(self._clock.now_us())

    def _report(self, session: Session) -> None:
        forwarder = session.forwarder
        lost = {
            "drop_tun": self._tun.lost,
            "drop_underlay": self._underlay.lost,
        }
        counters = forwarder.counters | {name: count for name, count in lost.items() if count}
        self._channel.send(Counters(counters, forwarder.last_activity_us, forwarder.closing))

    def _send_traces(self, session: Session, last: int) -> None:
        self._channel.send(Traces([trace.hex() for trace in session.forwarder.traces(last)]))


def main(argv: Sequence[str] | None = None) -> int:
    """``agent [--control PATH] [--uplink NAME] [--tun NAME]``; never returns unless it fails."""
    options = {"--control": CHANNEL, "--uplink": UPLINK, "--tun": TUN_NAME}
    words = list(sys.argv[1:] if argv is None else argv)
    # argparse costs 60 ms to import under emulation; three options do not need it.
    for name, value in zip(words[::2], words[1::2], strict=False):
        if name not in options:
            sys.stderr.write(f"agent: unknown option {name}; known: {', '.join(options)}\n")
            return 2
        options[name] = value
    channel = Channel(options["--control"])
    clock = Clock()
    tun = Tun(options["--tun"])
    agent = Agent(channel, tun, clock, options["--uplink"])
    agent.ipv6 = ipv6 = prepare_guest(options["--tun"], options["--uplink"])
    channel.send(Hello(_own_digest(), sys.version.split()[0], time.monotonic_ns() // 1000))
    if not ipv6:
        agent.event("ipv6-absent", uplink=options["--uplink"])
    agent.run()
    return 0


def _own_digest() -> str:
    # sha256 of the zip application, as the host knows it; empty when run from sources.
    try:
        with open(sys.argv[0], "rb") as file:  # noqa: PTH123 - pathlib costs 8 ms to import
            content = file.read()
    except OSError:
        return ""
    # hashlib would load all of OpenSSL: 15 ms here, a tenth of a second under emulation.
    from _sha256 import sha256  # type: ignore[import-not-found]

    return str(sha256(content).hexdigest()) if content[:2] in (b"PK", b"#!") else ""
