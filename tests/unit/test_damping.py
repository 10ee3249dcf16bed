"""Measured metrics: noise is not told, changes are, and not too often."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric.routing.damping import JITTER, LATENCY, LOAD, LOSS, Damped, Damping, damped

SECOND = 1_000_000


def after(samples: list[float], damping: Damping, state: Damped | None = None) -> list[Damped]:
    """The states after each sample, one a second."""
    states = []
    for number, sample in enumerate(samples, 1):
        state = damped(state, sample, number * SECOND, damping)
        states.append(state)
    return states


@given(seed=st.integers(0, 2**32), base=st.floats(2_000, 100_000))
def test_noise_within_the_band_is_never_published(seed: int, base: float) -> None:
    rng = random.Random(seed)
    band = max(LATENCY.absolute, LATENCY.relative * base)
    samples = [base, *(base + rng.uniform(-band, band) * 0.9 for _ in range(200))]
    assert {state.published for state in after(samples, LATENCY)} == {base}


@pytest.mark.parametrize(
    ("damping", "old", "new"),
    [(LATENCY, 10_000, 15_000), (LATENCY, 15_000, 10_000), (LOSS, 0.0, 0.05), (LOAD, 0.1, 0.9)],
)
def test_a_lasting_change_is_published_within_its_band(
    damping: Damping, old: float, new: float
) -> None:
    states = after([old, *[new] * 60], damping)
    band = max(damping.absolute, damping.relative * new)
    assert abs(states[-1].published - new) <= band * 1.1


def test_publications_keep_their_distance_unless_something_broke() -> None:
    climbing = [10_000 + 400 * n for n in range(120)]
    times = {state.published_at_us for state in after([float(s) for s in climbing], LATENCY)}
    ordered = sorted(times)
    assert len(ordered) > 5
    assert all(b - a >= LATENCY.hold_us for a, b in pairwise(ordered))
    broken = after([10_000.0, 100_000.0], LATENCY)
    assert broken[-1].published_at_us == 2 * SECOND, "ten times as slow: no waiting"


def test_two_links_equally_good_on_average_are_never_told_apart_by_turns() -> None:
    rng = random.Random(1)
    better = []
    one = two = None
    for number in range(500):
        one = damped(one, rng.gauss(20_000, 1_000), number * SECOND, LATENCY)
        two = damped(two, rng.gauss(20_000, 1_000), number * SECOND, LATENCY)
        better.append(one.published < two.published)
    assert sum(a != b for a, b in pairwise(better)) <= 1


def test_the_first_sample_is_published() -> None:
    assert damped(None, 7.0, 5, JITTER) == Damped(7.0, 7.0, 5)
