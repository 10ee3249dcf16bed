"""The agent: one loop over the control channel, the TUN device and the UDP socket.

Owns: the loop, what is done for whom, becoming nobody and somebody. May import: the standard
library, fabric.errors, fabric.wire, fabric.routing, fabric.agent. Everything that can be done
before the host says which connection this guest serves is done before: a template is saved in
exactly that state.
"""

from __future__ import annotations

import select
import time
from contextlib import contextmanager

from fabric.agent.notices import Notices
from fabric.agent.rtnl import RouteNetlink
from fabric.agent.session import Session
from fabric.agent.udp import TTL, Underlay
from fabric.wire.control import (
    AgentEvent,
    Align,
    ClockReading,
    Configure,
    Counters,
    Identify,
    Identity,
    InstallTable,
    Query,
    Quiesce,
    Traces,
)
from fabric.wire.packet import PORT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from fabric.agent.channel import Channel
    from fabric.agent.clock import Clock
    from fabric.agent.door import Door
    from fabric.agent.identity import Uplink
    from fabric.agent.tun import Tun
    from fabric.routing.actions import Actions, Batch
    from fabric.wire.control import Message

CHANNEL_RETRY = 0.2
"""Seconds between looks at a channel whose other side is closed: see fabric.agent.channel."""
SETTLE = 3.0
"""Seconds a guest idles before it is saved: MLD repeats its reports for two (RFC 3810, 9.14)."""
CALM_US = 1_000_000
"""µs a copy serves its connection before it does what no packet waits for: a connection that is
being opened waits for several hosts' guests, each way."""
MAX_MTU = 65535
"""Bytes of the largest packet there is: a TUN of nobody's takes all."""
BREATH = 0.02
"""Seconds between two looks at the clock of a guest that waits to be saved: its copies' clocks may
be late by as much, at first."""
HEAP = 120_000
"""Bytes of heap that are written to before the guest is saved, so that no copy is the first to; as
much as malloc takes from the heap in one piece (mallopt(3), M_MMAP_THRESHOLD)."""
_READ = select.EPOLLIN
_WRITE = select.EPOLLIN | select.EPOLLOUT


class Agent:
    """Performs what the session's forwarder wants done."""

    def __init__(
        self, channel: Channel, tun: Tun, clock: Clock, uplink: str, *, run: str, scrub: bool
    ) -> None:
        """``run``: directory of what lasts until the guest ends; ``scrub``: all of this kernel's
        memory is this guest's, and may be overwritten before it is saved."""
        self._channel = channel
        self._tun = tun
        self._clock = clock
        self._uplink = uplink
        self._run = run
        self._scrub = scrub
        # What a copy of a template would have to make is made here: socket, registrations.
        self._underlay = Underlay(PORT)
        self._notices = Notices()
        self._overlay_mtu = self._wanted_mtu = 0
        self._session: Session | None = None
        self._poll = select.epoll()
        for source in (channel, tun, self._underlay, self._notices):
            self._poll.register(source, _READ)
        self._channel_mask = _READ  # 0: at rest until the clock says so
        self._nobody: Uplink | None = None
        self._identity: Identify | None = None
        """Accepted, not settled yet."""
        self._settle_at_us = 0
        """By its own clock, when that is to be done."""
        self._door: Door | None = None
        self._asleep = False
        """Nobody, with nothing to do but to be saved."""
        self._asleep_us = 0
        """The last moment at which it was, by its own clock."""
        self.ipv6 = False
        """Whether the guest's kernel speaks it."""
        self.digest = ""
        """Of this program; empty when run from sources."""

    def event(self, name: str, **fields: object) -> None:
        """Tell the host."""
        self._channel.send(AgentEvent(name, fields, self._clock.now_us()))

    def run(self) -> None:
        """Serve for ever."""
        tun, channel = self._tun.fileno(), self._channel.fileno()
        while True:
            if self._asleep:
                self._asleep_us = self._clock.monotonic_us()
            for ready, _ in self._poll.poll(self._timeout()):
                if ready == channel:
                    self._on_channel()
                elif ready == tun:
                    self._on_application()
                elif ready == self._underlay.fileno():
                    self._on_underlay()
                elif ready == self._notices.fileno():
                    self._on_notice()
                elif self._door is not None:
                    self._door.answer()
            self._on_timer()

    def _timeout(self) -> float | None:
        # Seconds until something is due; None: only a packet or the host can wake us.
        waits = [] if self._channel_mask else [CHANNEL_RETRY]
        if self._asleep:
            waits.append(BREATH)
        if self._identity is not None:
            waits.append(max(0, self._settle_at_us - self._clock.monotonic_us()) / 1e6)
        due = self._session.forwarder.next_timer() if self._session else None
        if due is not None:
            waits.append(max(0.0, (due - self._clock.now_us()) / 1e6))
        return min(waits, default=None)

    def _on_application(self) -> None:
        now = self._clock.now_us()
        burst = self._tun.read_burst()
        if self._session is not None:
            actions = self._session.forwarder.from_application(burst, now, len(burst))
            self._perform(self._session, actions, now)

    def _on_underlay(self) -> None:
        now = self._clock.now_us()
        burst = self._underlay.receive_burst()
        if self._session is not None:
            actions = self._session.forwarder.from_underlay(burst, now, len(burst))
            self._perform(self._session, actions, now)

    def _on_notice(self) -> None:
        notice = self._notices.newest()
        if notice is None or self._session is None:
            return
        if self._session.forwarder.avoid(frozenset(notice.down)):
            self.event("neighbours-avoided", addresses=list(notice.down))

    def _on_timer(self) -> None:
        if self._session is not None:
            now = self._clock.now_us()
            actions = self._session.forwarder.handle_timer(now)
            if actions.deliveries:
                self._perform(self._session, actions, now)
            if actions.report:
                self._report(self._session)
        identity = self._identity
        if identity is not None and self._clock.monotonic_us() >= self._settle_at_us:
            self._try(self._settle, identity)
        if self._channel_mask == 0:
            self._on_channel()

    def _perform(self, session: Session, actions: Actions, read_at_us: int) -> None:
        actions.stamp(self._clock.now_us() - read_at_us)
        if self._nobody is None or not self._go_ahead(self._nobody, actions.batches):
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
        read_at = self._clock.monotonic_us()
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
        self._try(self._obey, message, read_at_us)

    def _try(self, what: Callable[..., None], message: Message, *arguments: int) -> None:
        try:
            what(message, *arguments)
        except Exception as exc:  # whatever the host sent, packets go on under the last good state
            self.event("agent-error", message=type(message).__name__, error=repr(exc))

    def _obey(self, message: Message, read_at_us: int) -> None:
        if isinstance(message, Identify):
            # Written down before this guest woke up, which takes longer than to read it. By its own
            # clock, which stood still in between, it has been awake since it last looked at it.
            awake_us = read_at_us - self._asleep_us if self._asleep else 0
            self._asleep = False
            self._clock.set(message.host_now_us + awake_us, read_at_us)
            self._accept(message)
        elif isinstance(message, Configure):
            if self._identity is None:  # else it is as old, and the clock is set
                self._clock.set(message.host_now_us, read_at_us)
            self._configure(message)
        elif isinstance(message, InstallTable) and self._session is not None:
            self._session.install(message.table)
        elif isinstance(message, Align):
            self._clock.offset_us += message.delta_us
            self._set_wall_clock()
        elif isinstance(message, Quiesce):
            self._quiesce()
        elif isinstance(message, Query) and message.what == "clock":
            self._channel.send(ClockReading(read_at_us + self._clock.offset_us))
        elif isinstance(message, Query) and message.what == "identity":
            self._channel.send(self._whom_it_serves())
        elif isinstance(message, Query) and self._session is not None:
            if message.what == "traces":
                self._send_traces(self._session, message.last)
            else:
                self._report(self._session)

    def _configure(self, message: Configure) -> None:
        now = self._clock.now_us()
        session = Session.begin(message, now)
        if self._underlay.port != message.port:
            self._poll.unregister(self._underlay)
            self._underlay.close()
            self._underlay = Underlay(message.port)
            self._poll.register(self._underlay, _READ)
        self._session, self._wanted_mtu = session, message.overlay_mtu
        self._notices.believe(bytes.fromhex(message.notice_key))
        if message.down:
            session.forwarder.avoid(frozenset(message.down))
        if message.first:
            burst = [bytes.fromhex(packet) for packet in message.first]
            actions = session.forwarder.from_application(burst, now, len(burst))
            self._perform(session, actions, now)
        if self._nobody is not None:
            self._nobody.assume()
        if self._identity is None:
            self._fit_tun()
        else:
            self._settle_at_us = self._clock.monotonic_us() + CALM_US
        self._channel.send(session.ready())

    def _fit_tun(self) -> None:
        """The TUN's MTU as the connection wants it. No packet waits for it: applications' routes
        have it, too, and until then the TUN takes all there is."""
        mtu = self._wanted_mtu
        if self._overlay_mtu != mtu:
            with RouteNetlink() as network:
                network.set_mtu(self._tun.name, mtu)
            self._overlay_mtu = mtu

    def _whom_it_serves(self) -> Identity:
        if self._session is None:
            return Identity(0, None, 0, self.digest)
        forwarder = self._session.forwarder
        told = (forwarder.config.connection, forwarder.protocol, forwarder.table_version)
        return Identity(*told, self.digest, self._notices.fingerprint())

    def _quiesce(self) -> None:
        """Be ready to be saved. What is imported, tried and tidied now, no copy has to do."""
        import gc
        import ipaddress  # noqa: F401 - a session may want it

        import fabric.routing.ways  # noqa: F401 - so may a protocol
        from fabric.agent import door, identity
        from fabric.agent.rehearsal import prepare

        if self._session is not None:
            raise RuntimeError("a guest that serves a connection cannot become a template")
        uplink = identity.Uplink(self._uplink, ipv6=self.ipv6)
        uplink.forget()
        with self._rehearsal():
            prepare(uplink, self._rehearse)
        self._wanted_mtu = MAX_MTU
        self._fit_tun()
        bytes([1]) * HEAP
        door.shut(self._run)
        quiesced = uplink.release()
        self._nobody = uplink
        gc.collect()
        gc.freeze()  # the collector would write into, and so copy, every page it looks at
        if self._scrub:
            identity.scrub()
            # The kernel's own deferred work (grace periods, multicast reports, writeback) is done
            # by then; in a picture taken before, every copy would do it first of all.
            time.sleep(SETTLE)
        self._channel.send(quiesced)
        self._asleep = True

    @contextmanager
    def _rehearsal(self) -> Iterator[None]:
        """What happens within is told to nobody, goes no further than the gateway, and is
        forgotten."""
        kept = self._channel, self._clock.offset_us, self._nobody
        self._channel = self._channel.mute()
        self._underlay.set_hop_limit(1)
        try:
            yield
        finally:
            self._channel, self._clock.offset_us, self._nobody = kept
            self._session = self._identity = None
            self._notices.believe(b"")
            self._underlay.set_hop_limit(TTL)

    def _rehearse(self, lines: bytes, uplink: Uplink | None = None) -> None:
        """Obey messages; ``uplink``: whose owner Identify is for."""
        if uplink is not None:
            self._nobody = uplink
        read_at = self._clock.monotonic_us()
        for message in self._channel.decode(lines):
            self._obey(message, read_at)
        self._identity = None
        self._on_underlay()

    def _accept(self, message: Identify) -> None:
        if self._nobody is None:
            raise RuntimeError("only a guest that was quiesced takes another identity")
        self._nobody.accept(message)
        self._identity, self._wanted_mtu = message, message.overlay_mtu
        self._settle_at_us = 0  # unless it has a connection already, which comes first

    def _go_ahead(self, uplink: Uplink, batches: list[Batch]) -> bool:
        """Whether these were sent by one who is nobody yet; from now on it is somebody."""
        if not uplink.expected:
            return False
        sent = uplink.send_ahead(batches, self._underlay.port, self._underlay.hop_limit)
        uplink.assume()
        return sent

    def _settle(self, message: Identify) -> None:
        from fabric.agent.door import Door

        uplink, self._identity = self._nobody, None
        assert uplink is not None  # it was accepted
        uplink.assume()
        self._fit_tun()
        self._set_wall_clock()
        said = uplink.settle(message)
        self._door = Door(bytes.fromhex(message.host_key), self._run)
        self._poll.register(self._door, _READ)
        if self._session is None:
            from fabric.agent.rehearsal import practise

            # A copy kept ready. Its emulator, too, sees all code for the first time.
            with self._rehearsal():
                practise(self._overlay_mtu, self._rehearse)
        self._channel.send(said)

    def _set_wall_clock(self) -> None:
        if self._nobody is None or self._identity is not None:
            return  # it booted with a clock, or runs in no guest of its own; or it comes with more
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
