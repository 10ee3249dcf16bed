"""Liveness of links: two sessions over a link that delays, loses and breaks, by a virtual clock."""

from __future__ import annotations

import heapq
import random
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fabric.routing.bfd import CALM_US, Session, Timing
from fabric.routing.link_meter import LOSS_MINIMUM, MINIMUM_US, LinkMeter
from fabric.wire.errors import ProbeInvalid
from fabric.wire.probe import (
    ADMIN_DOWN,
    DOWN,
    INIT,
    SIZE,
    UP,
    LinkProbe,
    decode,
    encode,
)

TIMING = Timing()
CLOCK = 77


@dataclass
class End:
    """One end: a session, its meter, and what it sent."""

    session: Session
    meter: LinkMeter
    sequence: int = 0
    sent: list[int] = field(default_factory=list)
    changes: list[tuple[int, int]] = field(default_factory=list)
    """(when, state)."""
    heard: tuple[int, int] = (0, 0)


class Link:
    """Both ends and the way between them. Times are µs."""

    def __init__(
        self, *, delay_us: int = 1000, loss: float = 0.0, seed: int = 1, offset_us: int = 0
    ) -> None:
        """``offset_us``: by how much the second end's clock is ahead; it then has another name."""
        self.now = 0
        self.delay_us, self.loss = delay_us, loss
        self.cut = False
        self.offsets = (0, offset_us)
        self.rng = random.Random(seed)
        self.ends = [self.born(1), self.born(2)]
        self.frozen: set[int] = set()
        self._queue: list[tuple[int, int, int, LinkProbe]] = []
        self._count = 0

    def born(self, number: int) -> End:
        clock = CLOCK + number if self.offsets[1] else CLOCK
        return End(
            Session(TIMING, number * 100 + self.rng.randrange(9), self.now), LinkMeter(clock)
        )

    def run(self, until_us: int) -> None:
        """Let time pass."""
        while True:
            dues = [end.session.due() for n, end in enumerate(self.ends) if n not in self.frozen]
            arrivals = [self._queue[0][0]] if self._queue else []
            at = min([*dues, *arrivals])
            if at > until_us:
                self.now = until_us
                return
            self.now = max(at, self.now)
            while self._queue and self._queue[0][0] <= self.now:
                _, _, to, probe = heapq.heappop(self._queue)
                self._arrive(to, probe)
            for number in (0, 1):
                if number not in self.frozen:
                    self._tick(number)

    def thaw(self, number: int) -> None:
        """The end runs again: what waited is read first, then it sees how late it is."""
        self.frozen.discard(number)

    def _arrive(self, to: int, probe: LinkProbe) -> None:
        end = self.ends[to]
        received = self.now + self.offsets[to]
        echoed = probe.your_discriminator == end.session.discriminator
        end.heard = (probe.sent_at_us, received)
        end.meter.on_probe(probe, received, echoed=echoed)
        if end.session.receive(probe, self.now):
            end.changes.append((self.now, end.session.state))

    def _tick(self, number: int) -> None:
        end = self.ends[number]
        session = end.session
        if session.tick(self.now, max(0, self.now - session.due())):
            end.changes.append((self.now, session.state))
        if session.sending(self.now):
            self._send(number)

    def _send(self, number: int) -> None:
        end = self.ends[number]
        told = end.session.transmit(self.now, self.rng.random())
        heard = end.session.heard
        end.sequence += 1
        end.sent.append(self.now)
        sent_at, (echo, heard_at) = self.now + self.offsets[number], end.heard
        probe = LinkProbe(
            end.session.state, end.session.diagnostic, TIMING.multiplier,
            end.session.discriminator, heard.my_discriminator if heard else 0, *told,
            number + 1, 1, end.sequence, sent_at,
            CLOCK + number + 1 if self.offsets[1] else CLOCK,
            echo if heard else 0, sent_at - heard_at if heard else 0,
        )  # fmt: skip
        if self.cut or self.rng.random() < self.loss:
            return
        self._count += 1
        arrives = self.now + self.delay_us
        heapq.heappush(self._queue, (arrives, self._count, 1 - number, decode(encode(probe))))


def steady_link(**options: float) -> Link:
    link = Link(**options)  # type: ignore[arg-type]
    link.run(6_000_000)
    assert [end.session.state for end in link.ends] == [UP, UP]
    return link


def test_both_ends_come_up_within_three_probes() -> None:
    link = Link()
    link.run(3 * TIMING.slow_us)
    assert all(end.session.up for end in link.ends)
    assert [state for _, state in link.ends[0].changes] in ([INIT, UP], [UP])


def test_probes_are_slow_at_first_and_fast_once_steady() -> None:
    link = steady_link()
    for end in link.ends:
        gaps = [b - a for a, b in zip(end.sent, end.sent[1:], strict=False)]
        early = [gap for gap, at in zip(gaps, end.sent, strict=False) if 700_000 < at < 1_500_000]
        late = [gap for gap, at in zip(gaps, end.sent, strict=False) if at > 4_000_000]
        assert min(early) >= 0.75 * TIMING.slow_us
        assert max(late) <= TIMING.fast_us
        assert min(late) >= 0.75 * TIMING.fast_us


@given(st.integers(0, 10_000), st.integers(0, 60_000))
@settings(max_examples=60, deadline=None)
def test_a_cut_is_noticed_within_the_detection_time(seed: int, phase_us: int) -> None:
    link = steady_link(seed=seed)
    link.run(link.now + phase_us)
    link.cut = True
    cut_at = link.now
    link.run(cut_at + 1_000_000)
    for end in link.ends:
        at, state = end.changes[-1]
        assert state == DOWN
        # What was under way still arrives; the newest probe was sent up to an interval before.
        assert 2 * TIMING.fast_us <= at - cut_at <= 3 * TIMING.fast_us + link.delay_us


@pytest.mark.parametrize("seed", range(10))
def test_a_lossy_link_stays_up(seed: int) -> None:
    link = Link(seed=seed, loss=0.01)
    link.run(20_000_000)
    # Three in a row are lost once in a million times, and here not at all.
    assert all(state != DOWN for end in link.ends for _, state in end.changes)
    assert all(end.session.up for end in link.ends)


def test_a_mended_link_comes_up_again() -> None:
    link = steady_link()
    link.cut = True
    link.run(link.now + 2_000_000)
    assert not any(end.session.up for end in link.ends)
    link.cut = False
    link.run(link.now + 1_500_000)
    assert all(end.session.up for end in link.ends)


def test_a_restarted_neighbour_is_noticed_by_its_new_name() -> None:
    link = steady_link()
    link.ends[1] = link.born(5)
    link.run(link.now + 2_000_000)
    assert all(end.session.up for end in link.ends)
    states = [state for _, state in link.ends[0].changes]
    assert states[-3:] != states[:3] or DOWN in states
    heard = link.ends[0].session.heard
    assert heard is not None
    assert heard.my_discriminator == link.ends[1].session.discriminator


def test_who_was_not_scheduled_does_not_blame_its_neighbour() -> None:
    link = steady_link()
    before = list(link.ends[0].changes)
    link.frozen.add(0)
    # The neighbour's probes are read first when it wakes up; nothing else has happened.
    link.run(link.now + 100_000)
    link.thaw(0)
    link.run(link.now + 3_000_000)
    assert link.ends[0].changes == before
    # It was starved: probes it asks for are slower, until it has been calm for long enough.
    told, _ = link.ends[0].session.transmit(link.now, 0)
    assert told > TIMING.fast_us
    link.run(link.now + 3 * CALM_US)
    told, _ = link.ends[0].session.transmit(link.now, 0)
    assert told == TIMING.fast_us


def test_a_slower_rate_is_told_before_it_is_used() -> None:
    link = steady_link()
    link.frozen.add(0)
    link.run(link.now + 60_000)
    link.thaw(0)
    link.run(link.now + 20_000_000)
    assert all(end.session.up for end in link.ends)
    assert all(state != DOWN for _, state in link.ends[1].changes)


def test_a_lost_carrier_needs_no_detection_time() -> None:
    link = steady_link()
    session = link.ends[0].session
    assert session.lose_carrier(link.now)
    assert session.state == DOWN
    assert not session.lose_carrier(link.now)


def test_a_neighbour_that_says_goodbye_is_down_at_once() -> None:
    link = steady_link()
    mine, other = link.ends[0].session, link.ends[1].session
    heard = mine.heard
    assert heard is not None
    values = dict(zip(heard.names, heard.values(), strict=True))
    goodbye = LinkProbe(**{**values, "state": ADMIN_DOWN})
    assert mine.receive(goodbye, link.now)
    assert mine.state == DOWN
    assert other.up


def test_probes_for_a_former_life_are_ignored() -> None:
    link = steady_link()
    session, heard = link.ends[0].session, link.ends[0].session.heard
    assert heard is not None
    values = dict(zip(heard.names, heard.values(), strict=True))
    stale = LinkProbe(**{**values, "your_discriminator": 4_000_000_000, "state": DOWN})
    assert not session.receive(stale, link.now)
    assert session.up


# -- measuring -----------------------------------------------------------------------------------


def test_round_trip_and_delay_are_those_of_the_link() -> None:
    link = steady_link(delay_us=7_000)
    quality = link.ends[0].meter.quality()
    assert (quality.rtt_us, quality.delay_us, quality.least_us) == (14_000, 7_000, 7_000)
    assert quality.jitter_us == 0
    assert quality.loss == 0


def test_clocks_that_differ_still_give_the_round_trip() -> None:
    link = steady_link(delay_us=7_000, offset_us=3_600_000_000)
    for end in link.ends:
        quality = end.meter.quality()
        assert (quality.rtt_us, quality.delay_us, quality.least_us) == (14_000, None, 7_000)


def test_the_least_delay_forgets_queues_at_once_and_faster_times_soon() -> None:
    link = steady_link(delay_us=7_000)
    meter = link.ends[0].meter
    link.delay_us = 30_000
    link.run(link.now + 500_000)
    assert meter.quality().least_us == 7_000
    link.run(link.now + 3 * MINIMUM_US)
    assert meter.quality().least_us == 30_000
    link.delay_us = 7_000
    link.run(link.now + 200_000)
    assert meter.quality().least_us == 7_000


def test_loss_is_counted_by_gaps() -> None:
    link = Link(loss=0.1, seed=3)
    link.run(60_000_000)
    loss = link.ends[0].meter.quality().loss
    assert loss == pytest.approx(0.1, abs=0.05)


def test_nothing_is_said_of_loss_before_there_are_probes_enough() -> None:
    link = Link()
    link.run(1_000_000)
    assert link.ends[0].sequence < LOSS_MINIMUM
    assert link.ends[0].meter.quality().loss is None


def test_an_outage_is_not_counted_as_loss() -> None:
    link = steady_link()
    link.run(link.now + 4_000_000)
    link.cut = True
    link.run(link.now + 2_000_000)
    for end in link.ends:
        end.meter.forget()
    link.cut = False
    link.run(link.now + 10_000_000)
    assert link.ends[0].meter.quality().loss == 0


# -- bytes ---------------------------------------------------------------------------------------

PROBE = LinkProbe(UP, 0, 3, 11, 22, 50_000, 50_000, 1, 2, 7, 123456789, CLOCK, 123450000, 42)


def test_a_probe_comes_back_as_it_was() -> None:
    assert len(encode(PROBE)) == SIZE
    assert decode(encode(PROBE)) == PROBE


@pytest.mark.parametrize(
    ("at", "value"), [(0, 2), (1, 9), (3, 0)], ids=["version", "state", "multiplier"]
)
def test_what_the_rfc_discards_is_discarded(at: int, value: int) -> None:
    data = bytearray(encode(PROBE))
    data[at] = value
    with pytest.raises(ProbeInvalid):
        decode(bytes(data))


def test_who_is_up_knows_whom_it_hears() -> None:
    values = dict(zip(PROBE.names, PROBE.values(), strict=True))
    with pytest.raises(ProbeInvalid):
        decode(encode(LinkProbe(**{**values, "your_discriminator": 0})))
    with pytest.raises(ProbeInvalid):
        decode(encode(LinkProbe(**{**values, "my_discriminator": 0})))


@given(st.binary(max_size=2 * SIZE))
def test_garbage_is_refused_and_nothing_else(data: bytes) -> None:
    try:
        decode(data)
    except ProbeInvalid:
        return
    assert len(data) == SIZE
