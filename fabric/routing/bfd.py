"""Is the neighbour at the other end of a link there? One session per link, as in BFD.

Owns: Session, its state machine and timers (RFC 5880, asynchronous mode). May import: fabric.wire.
Pure: times, discriminators and jitter are passed in; stays on the host.

It differs from the RFC in two points. There is no poll sequence: a slower rate is announced for a
detection time before it is used, and a shorter detection time used only after the neighbour had one
to hear of it. And probes also measure (:mod:`fabric.routing.link_meter`).
"""

from __future__ import annotations

from dataclasses import dataclass

from fabric.wire.probe import (
    ADMIN_DOWN,
    DOWN,
    INIT,
    NEIGHBOUR_SIGNALED,
    NO_DIAGNOSTIC,
    PATH_DOWN,
    TIME_EXPIRED,
    UP,
    LinkProbe,
)

CALM_US = 10_000_000
"""µs without a late wake-up after which probes are fast again."""
MAX_SLOWING = 8
"""The most by which intervals are stretched on a machine that starves us."""


@dataclass(frozen=True)
class Timing:
    """How often probes are sent and how many may be missed."""

    slow_us: int = 300_000
    """Interval until the link is steady, µs."""
    fast_us: int = 50_000
    """Interval afterwards, µs."""
    multiplier: int = 3
    """Detection time is so many intervals of the neighbour's probes."""
    steady_us: int = 2_000_000
    """How long a session must be up for its link to be steady, µs."""


class Session:
    """One end of one link. Call :meth:`tick` when :meth:`due` has come, and send what
    :meth:`transmit` gives whenever :attr:`sending` is set."""

    def __init__(self, timing: Timing, discriminator: int, now_us: int) -> None:
        """``discriminator``: 1 … 2^32-1, of no other session on this host, another one after every
        start, so that a neighbour notices."""
        self._timing = timing
        self.discriminator = discriminator
        self.state = DOWN
        self.diagnostic = NO_DIAGNOSTIC
        self.changed_at_us = now_us
        self._heard: LinkProbe | None = None
        self._heard_at_us = now_us
        self._detection_us = 0
        """In use: follows what is wanted at once when that is longer, later when it is shorter."""
        self._shorter_since_us = 0
        self._told_us = timing.slow_us
        """The interval that is announced in our probes…"""
        self._interval_us = timing.slow_us
        """…and the one we send at."""
        self._told_since_us = now_us
        self._send_at_us = now_us
        self._slowing = 1
        self._late_at_us = now_us - CALM_US

    # -- what happens -----------------------------------------------------------------------------

    def receive(self, probe: LinkProbe, now_us: int) -> bool:
        """A probe came; whether the state is another one now (RFC 5880, section 6.8.6)."""
        if probe.your_discriminator not in (0, self.discriminator):
            return False  # for a former life of ours
        self._heard, self._heard_at_us = probe, now_us
        self._retime(now_us)
        before = self.state
        there = probe.state
        if there == ADMIN_DOWN:
            if self.state != DOWN:
                self._enter(DOWN, NEIGHBOUR_SIGNALED, now_us)
        elif self.state == DOWN:
            if there == DOWN:
                self._enter(INIT, self.diagnostic, now_us)
            elif there == INIT:
                self._enter(UP, NO_DIAGNOSTIC, now_us)
        elif self.state == INIT:
            if there in (INIT, UP):
                self._enter(UP, NO_DIAGNOSTIC, now_us)
        elif there == DOWN:
            self._enter(DOWN, NEIGHBOUR_SIGNALED, now_us)
        return self.state != before

    def lose_carrier(self, now_us: int) -> bool:
        """The link itself is gone: nobody waits for the detection time. Whether that is news."""
        if self.state in (DOWN, ADMIN_DOWN):
            return False
        self._enter(DOWN, PATH_DOWN, now_us)
        return True

    def tick(self, now_us: int, late_us: int = 0) -> bool:
        """Time has passed; whether the state is another one now.

        ``late_us``: by how much the caller woke up later than it wanted to. Probes that came
        meanwhile have been given to :meth:`receive` before. Who is starved does not blame its
        neighbour for silence, and asks for slower probes.
        """
        if late_us > self._timing.fast_us // 2:
            self._late_at_us = now_us
            self._slowing = min(MAX_SLOWING, self._slowing * 2)
            self._heard_at_us = min(now_us, self._heard_at_us + late_us)
        elif self._slowing > 1 and now_us - self._late_at_us > CALM_US:
            self._slowing //= 2
            self._late_at_us = now_us
        self._retime(now_us)
        if self.state in (INIT, UP) and now_us >= self._heard_at_us + self._detection_us:
            self._enter(DOWN, TIME_EXPIRED, now_us)
            self._heard = None
            return True
        return False

    # -- what to do -------------------------------------------------------------------------------

    def due(self) -> int:
        """When to call :meth:`tick` next at the latest, µs."""
        if self.state in (INIT, UP):
            return min(self._send_at_us, self._heard_at_us + self._detection_us)
        return self._send_at_us

    def sending(self, now_us: int) -> bool:
        """Whether a probe is to be sent now."""
        return now_us >= self._send_at_us

    def transmit(self, now_us: int, jitter: float) -> tuple[int, int]:
        """A probe is sent now: (interval we want, interval we bear), µs, to be written into it.

        ``jitter``: 0 … 1; intervals are shortened by up to a quarter (RFC 5880, section 6.8.7), so
        that links do not fall into step.
        """
        there = self._heard.required_min_rx_us if self._heard is not None else 0
        interval = max(self._interval_us, there)
        if self._heard is None or self.state != UP:
            interval = max(interval, self._timing.slow_us)
        self._send_at_us = now_us + int(interval * (1 - 0.25 * jitter))
        return self._told_us, self._wanted_us(now_us)

    @property
    def up(self) -> bool:
        """Both ends hear each other."""
        return self.state == UP

    @property
    def heard(self) -> LinkProbe | None:
        """The neighbour's newest probe; None while it is silent."""
        return self._heard

    @property
    def detection_us(self) -> int:
        """How long the neighbour may be silent, µs; 0: it was never heard."""
        return self._detection_us

    # -- timers -----------------------------------------------------------------------------------

    def _enter(self, state: int, diagnostic: int, now_us: int) -> None:
        self.state, self.diagnostic, self.changed_at_us = state, diagnostic, now_us
        self._send_at_us = now_us  # the neighbour hears of it at once
        self._retime(now_us)

    def _wanted_us(self, now_us: int) -> int:
        timing = self._timing
        steady = self.state == UP and now_us - self.changed_at_us >= timing.steady_us
        wanted = timing.fast_us if steady else timing.slow_us
        return min(timing.slow_us, wanted * self._slowing)

    def _retime(self, now_us: int) -> None:
        wanted = self._wanted_us(now_us)
        if wanted != self._told_us:
            self._told_us, self._told_since_us = wanted, now_us
            self._send_at_us = min(self._send_at_us, now_us + min(wanted, self._interval_us))
        told_for_us = now_us - self._told_since_us
        if wanted <= self._interval_us or told_for_us >= self._detections(self._interval_us):
            self._interval_us = wanted
        if self._heard is None:
            return
        there = self._heard
        detection = there.detect_multiplier * max(there.desired_min_tx_us, wanted)
        shorter_for_us = now_us - self._shorter_since_us
        if detection >= self._detection_us or shorter_for_us >= self._detection_us:
            self._detection_us, self._shorter_since_us = detection, now_us

    def _detections(self, interval_us: int) -> int:
        return self._timing.multiplier * interval_us
