"""Every difference between what is there and what should be leads to exactly one repair."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from fabric.host.upkeep.reaper import Known, KnownGuest, Observed, Verb, due, plan
from fabric.wire.inner import FiveTuple

FLOW = FiveTuple(4, 6, "10.77.0.1", 40000, "10.77.0.3", 80)
OTHER = FiveTuple(4, 6, "10.77.0.1", 40001, "10.77.0.3", 80)
NAME, ID, MAC = "fabric-demo-h1-g3", 0x1_0000_0001, "02:fa:00:00:00:03"

KNOWN = Known(
    guests={NAME: KnownGuest(3, "uuid", alive=True)},
    established={ID: 3},
    flows={FLOW: ID},
    neighbours={3: MAC},
    live=frozenset({ID}),
)
OBSERVED = Observed(
    domains={NAME: "uuid"},
    processes=frozenset({NAME}),
    journal=frozenset({NAME}),
    flows={FLOW: 3},
    connections={ID: 3},
    neighbours={3: MAC},
    records=frozenset({ID}),
    channels=frozenset({3}),
)
NOTHING = Known({}, {}, {}, {})


def verbs(observed: Observed, known: Known = KNOWN) -> list[tuple[Verb, Any]]:
    return [(action.verb, action.target) for action in plan(observed, known)]


def test_where_all_agree_nothing_is_done() -> None:
    assert plan(OBSERVED, KNOWN) == []


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ({"domains": {NAME: "uuid", "x-g9": "u9"}}, (Verb.DESTROY, "x-g9")),
        ({"journal": frozenset({NAME, "x-g9"})}, (Verb.DESTROY, "x-g9")),
        ({"processes": frozenset({NAME, "x-g9"})}, (Verb.DESTROY, "x-g9")),
        ({"domains": {}}, (Verb.LOSE, (NAME, "uuid"))),
        ({"domains": {NAME: "another"}}, (Verb.LOSE, (NAME, "uuid"))),
        ({"flows": {FLOW: 3, OTHER: 3}}, (Verb.UNSTEER, OTHER)),
        ({"connections": {ID: 3, 7: 3}}, (Verb.UNSTEER, 7)),
        ({"flows": {}}, (Verb.STEER, ID)),
        ({"flows": {FLOW: 4}}, (Verb.STEER, ID)),
        ({"connections": {}}, (Verb.STEER, ID)),
        ({"connections": {ID: 4}}, (Verb.STEER, ID)),
        ({"neighbours": {3: MAC, 4: MAC}}, (Verb.DETACH, 4)),
        ({"neighbours": {}}, (Verb.ATTACH, 3)),
        ({"neighbours": {3: "02:00:00:00:00:00"}}, (Verb.ATTACH, 3)),
        ({"records": frozenset({ID, 7})}, (Verb.FORGET, 7)),
        ({"records": frozenset()}, (Verb.RECORD, ID)),
        ({"channels": frozenset({3, 4})}, (Verb.UNLINK, 4)),
        ({"drafts": frozenset({".draft-x"})}, (Verb.ABANDON, ".draft-x")),
    ],
)  # fmt: skip
def test_one_difference_one_repair(found: dict[str, Any], expected: tuple[Verb, Any]) -> None:
    assert verbs(replace(OBSERVED, **found)) == [expected]


def test_rules_that_are_gone_are_put_back_before_connections_are_steered() -> None:
    flushed = replace(OBSERVED, flows=None, connections={})
    assert verbs(flushed) == [(Verb.INSTALL, None), (Verb.STEER, ID)]


def test_with_libvirt_silent_no_domain_is_missed_and_none_destroyed() -> None:
    silent = replace(OBSERVED, domains=None, processes=frozenset({"x-g9"}))
    assert verbs(silent) == []


def test_a_guest_that_is_coming_up_or_going_is_not_missed() -> None:
    for guest in (KnownGuest(3, "", alive=True), KnownGuest(3, "uuid", alive=False)):
        known = replace(KNOWN, guests={NAME: guest})
        assert verbs(replace(OBSERVED, domains={}), known) == []


def test_a_relays_connection_has_no_flow_to_steer() -> None:
    known = replace(KNOWN, flows={})
    assert verbs(replace(OBSERVED, flows={}), known) == []


def test_a_flow_taken_over_by_a_newer_connection_leads_to_its_guest() -> None:
    known = replace(KNOWN, established={ID: 3, 7: 4}, flows={FLOW: 7}, live=frozenset({ID, 7}))
    seen = replace(OBSERVED, connections={ID: 3, 7: 4}, records=frozenset({ID, 7}))
    assert verbs(seen, known) == [(Verb.STEER, 7)]
    assert verbs(replace(seen, flows={FLOW: 4}), known) == []


def test_a_connection_that_waits_for_another_guest_keeps_its_record() -> None:
    waiting = replace(KNOWN, established={}, flows={})
    found = replace(OBSERVED, flows={}, connections={})
    assert verbs(found, waiting) == []


def test_of_a_host_that_knows_nothing_everything_goes() -> None:
    gone = verbs(OBSERVED, NOTHING)
    assert gone == [
        (Verb.DESTROY, NAME),
        (Verb.UNSTEER, FLOW),
        (Verb.UNSTEER, ID),
        (Verb.DETACH, 3),
        (Verb.FORGET, ID),
        (Verb.UNLINK, 3),
    ]


def test_what_came_or_went_during_the_look_is_left_alone() -> None:
    assert due(OBSERVED, NOTHING, KNOWN) == []
    assert due(OBSERVED, KNOWN, NOTHING) == []
    empty = Observed(domains={}, flows={})
    assert due(empty, NOTHING, KNOWN) == []
    assert due(empty, KNOWN, NOTHING) == []
    assert {action.verb for action in due(empty, KNOWN, KNOWN)} == {
        Verb.LOSE, Verb.STEER, Verb.ATTACH, Verb.RECORD,
    }  # fmt: skip


def test_a_successor_in_the_same_slot_is_not_taken_for_its_predecessor() -> None:
    successor = replace(KNOWN, guests={NAME: KnownGuest(3, "another", alive=True)})
    assert Verb.LOSE not in {a.verb for a in due(Observed(domains={}), KNOWN, successor)}
