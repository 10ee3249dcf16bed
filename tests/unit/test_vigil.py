"""A silent agent is noticed, a slow or busy one is left alone."""

from __future__ import annotations

import asyncio

import pytest

from fabric.host.control.vigil import (
    HELD_UP,
    PATIENCE_LIMIT,
    QUESTIONS_PER_SECOND,
    QUIET,
    SLOWNESS,
    AgentWatch,
    Vigil,
)
from fabric.host.guest.guest import Guest
from fabric.host.identity import GuestIdentity
from fabric.wire.control import Identity
from tests.unit.guest_samples import CONFIG

PATIENCE = 3.0


def silent_after(vigil: Vigil[str], present: list[str], start: float, limit: float) -> float:
    """Seconds of ticking until somebody is given up."""
    now = start
    while now - start < limit:
        now += 1
        if vigil.tick(present, now)[1]:
            return now - start
    raise AssertionError(f"nobody was given up within {limit:g} s")


def test_a_quiet_agent_is_asked_once_and_given_up_once() -> None:
    vigil: Vigil[str] = Vigil(PATIENCE)
    vigil.tick(["g1"], 0)
    asked, silent = [], []
    for now in range(1, 9):
        a, s = vigil.tick(["g1"], now)
        asked += [(now, who) for who in a]
        silent += [(now, who, seconds) for who, seconds in s]
    assert asked == [(QUIET, "g1")]
    assert silent == [(QUIET + PATIENCE, "g1", QUIET + PATIENCE)]


def test_an_agent_that_talks_is_never_asked() -> None:
    vigil: Vigil[str] = Vigil(PATIENCE)
    for now in range(100):
        vigil.heard("g1", now)
        assert vigil.tick(["g1"], now) == ([], [])


def test_one_that_answers_is_asked_again_and_never_given_up() -> None:
    vigil: Vigil[str] = Vigil(PATIENCE)
    questions = 0
    for now in range(100):
        asked, silent = vigil.tick(["g1"], now)
        assert silent == []
        if asked:
            questions += 1
            vigil.heard("g1", now + 0.5)
    assert 10 <= questions <= 100 / QUIET


def test_where_answers_are_slow_a_silent_one_gets_more_time() -> None:
    vigil: Vigil[str] = Vigil(PATIENCE)
    vigil.answered(2.0)
    assert silent_after(vigil, ["g1"], 0, 60) >= QUIET + 2.0 * SLOWNESS


def test_slowness_is_forgotten_and_never_an_excuse_for_ever() -> None:
    vigil: Vigil[str] = Vigil(PATIENCE)
    vigil.answered(1000.0)
    assert vigil.patience == PATIENCE_LIMIT
    for _ in range(100):
        vigil.answered(0.01)
    assert vigil.patience == PATIENCE


def test_time_in_which_this_process_stood_still_does_not_count() -> None:
    vigil: Vigil[str] = Vigil(PATIENCE)
    for now in range(int(QUIET) + 1):
        vigil.tick(["g1"], now)
    stopped = QUIET + 1000
    assert vigil.tick(["g1"], stopped) == ([], [])
    assert silent_after(vigil, ["g1"], stopped, 60) >= PATIENCE - 1


@pytest.mark.parametrize("count", [1, 100])
def test_all_agents_together_are_asked_at_a_bounded_rate(count: int) -> None:
    vigil: Vigil[str] = Vigil(PATIENCE)
    everybody = [f"g{n}" for n in range(count)]
    asked = 0
    for now in range(200):
        for who in vigil.tick(everybody, now)[0]:
            asked += 1
            vigil.heard(who, now)
    assert asked <= 200 * QUESTIONS_PER_SECOND
    assert asked >= count


def test_a_guest_that_went_is_forgotten() -> None:
    vigil: Vigil[str] = Vigil(PATIENCE)
    for now in range(int(QUIET) + 1):
        vigil.tick(["g1"], now)
    vigil.tick([], QUIET + 1)
    later = QUIET + 2
    while later < QUIET + 2 + PATIENCE + HELD_UP:
        assert vigil.tick(["g1"], later)[1] == []
        later += 1


@pytest.mark.parametrize(("said", "lost"), [(7, False), (0, False), (8, True)])
def test_a_guest_that_was_warm_when_it_was_asked_may_say_that_it_serves_nobody(
    said: int, lost: bool
) -> None:
    class Keeper:
        def __init__(self) -> None:
            self.reasons: list[str] = []

        def guests(self) -> list[Guest]:
            return []

        def lose(self, guest: Guest, reason: str) -> None:
            self.reasons.append(reason)

    async def scenario() -> None:
        keeper, clock = Keeper(), FixedClock()
        guest = Guest(GuestIdentity.derive(CONFIG, 1), 7)
        AgentWatch(keeper, "tcg", clock).on_message(guest, Identity(said, 0, 1, "digest"))
        assert bool(keeper.reasons) is lost

    asyncio.run(scenario())


class FixedClock:
    def monotonic(self) -> float:
        return 0.0

    def unix_us(self) -> int:
        return 0
