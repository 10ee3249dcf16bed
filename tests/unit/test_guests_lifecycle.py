"""The table of a guest's life, over every pair of state and event."""

from __future__ import annotations

from itertools import product

import pytest

from fabric.host.guest.lifecycle import (
    TRANSITIONS,
    GuestEvent,
    GuestState,
    IllegalTransition,
    advance,
)

PATH = [
    (GuestEvent.CREATE, GuestState.CREATING),
    (GuestEvent.CREATED, GuestState.BOOTING),
    (GuestEvent.REACHED, GuestState.PROVISIONING),
    (GuestEvent.PUSHED, GuestState.CONFIGURING),
    (GuestEvent.READY, GuestState.RUNNING),
    (GuestEvent.DRAIN, GuestState.DRAINING),
    (GuestEvent.DESTROY, GuestState.DESTROYING),
    (GuestEvent.ABSENT, GuestState.GONE),
]


def test_a_whole_life() -> None:
    state = GuestState.REQUESTED
    for event, expected in PATH:
        state = advance(state, event)
        assert state is expected


def test_a_copy_of_a_template_needs_no_provisioning() -> None:
    state = GuestState.REQUESTED
    for event in (GuestEvent.CREATE, GuestEvent.CREATED, GuestEvent.ARMED, GuestEvent.RESUMED):
        state = advance(state, event)
    assert state is GuestState.CONFIGURING


def test_a_warm_guest_is_configured_by_the_connection_that_claims_it() -> None:
    parked = advance(GuestState.CONFIGURING, GuestEvent.PARKED)
    assert advance(parked, GuestEvent.CLAIMED) is GuestState.CONFIGURING


@pytest.mark.parametrize(("state", "event"), list(product(GuestState, GuestEvent)))
def test_every_pair_leads_somewhere_or_is_an_error(state: GuestState, event: GuestEvent) -> None:
    if (state, event) in TRANSITIONS:
        assert advance(state, event) is TRANSITIONS[state, event]
    else:
        with pytest.raises(IllegalTransition, match=f"{state.value}.*{event.value}"):
            advance(state, event)


def test_nothing_gets_out_of_gone() -> None:
    ways = {after for (state, _), after in TRANSITIONS.items() if state is GuestState.GONE}
    assert ways == {GuestState.GONE}


def test_only_proven_absence_leads_to_gone() -> None:
    ways = {
        (state, event)
        for (state, event), after in TRANSITIONS.items()
        if after is GuestState.GONE and state is not GuestState.GONE
    }
    assert ways == {(GuestState.DESTROYING, GuestEvent.ABSENT)}


@pytest.mark.parametrize("state", list(GuestState))
def test_a_guest_can_be_destroyed_and_lost_at_any_time(state: GuestState) -> None:
    advance(state, GuestEvent.DESTROY)
    advance(state, GuestEvent.LOST)


@pytest.mark.parametrize("state", [s for s in GuestState if s is not GuestState.GONE])
def test_every_state_can_still_reach_gone(state: GuestState) -> None:
    assert advance(advance(state, GuestEvent.DESTROY), GuestEvent.ABSENT) is GuestState.GONE
