"""When a measured metric is worth telling: smoothing and hysteresis.

Owns: Damping and its step. May import: nothing. Pure: samples and times are passed in; stays on the
host.

Every published change makes every host compute tables and may move traffic, and moved traffic
changes what is measured next. So samples are smoothed (the exponential average of RFC 9616), and
the average is published only when it has left a band around what is published now (the thresholds
of RFC 8570), and not too often. Two paths that are equally good on average are then never told
apart by noise. All hosts compute from the same published values, so the hysteresis is in the metric
and not in anybody's choice of a route: it cannot make hosts disagree.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Damping:
    """Parameters for one kind of metric, in its own unit."""

    smoothing: float = 0.836
    """Weight of the past in the average: RFC 9616's, which forgets by half in four samples."""
    relative: float = 0.1
    """Part of the published value by which the average must differ…"""
    absolute: float = 0.0
    """…and at least by so much."""
    hold_us: int = 5_000_000
    """µs between two publications (RFC 8570: "not more often than")."""
    urgent: float = 4.0
    """Times the band beyond which nobody waits for the hold time: something broke."""


@dataclass(frozen=True)
class Damped:
    """Where one metric stands."""

    average: float
    published: float
    published_at_us: int


LATENCY = Damping(absolute=1_000)
"""µs. Below a millisecond the measuring guest's scheduling is larger than the difference."""
JITTER = Damping(absolute=2_000, relative=0.25)
"""µs. Jitter of jitter: a wider band."""
LOSS = Damping(absolute=0.002, relative=0.25)
"""Probability. A lost probe in 500 is no news."""
LOAD = Damping(absolute=0.125, relative=0.0)
"""Part of the whole: one step of what ``deflect`` tells apart."""


def damped(state: Damped | None, sample: float, now_us: int, damping: Damping) -> Damped:
    """The state after one more sample; the first one is published as it is."""
    if state is None:
        return Damped(sample, sample, now_us)
    average = damping.smoothing * state.average + (1 - damping.smoothing) * sample
    band = max(damping.absolute, damping.relative * abs(state.published))
    beyond = abs(average - state.published)
    rested = now_us - state.published_at_us >= damping.hold_us
    if beyond > band and (rested or beyond > damping.urgent * band):
        return Damped(average, average, now_us)
    return Damped(average, state.published, state.published_at_us)
