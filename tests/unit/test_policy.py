"""Which protocol a program gets: the order of precedence, every condition, every mistake."""

from __future__ import annotations

import fnmatch
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric.errors import ConfigError
from fabric.routing.needs import DSCP_NAMES, DSCP_NEEDS, NEEDS, dscp_class, protocol_id
from fabric.routing.policy import ApplicationFacts, Policy, Selection, select
from fabric.routing.rules import MATCH_KEYS, glob_matches
from fabric.wire.inner import FiveTuple

FLOW = FiveTuple(4, 6, "10.77.0.1", 40000, "10.77.0.4", 22)


def facts(**known: Any) -> ApplicationFacts:
    return ApplicationFacts(**{"flow": FLOW, "executable": "/usr/bin/ssh", **known})


def policy(**rule: Any) -> Policy:
    return Policy.from_json({"rules": [{"need": "bandwidth", **rule}]})


def chosen(rule: dict[str, Any], **known: Any) -> bool:
    return select(policy(match=rule), facts(**known)).rule == "rules[0]"


def test_facts_survive_a_round_trip_through_json() -> None:
    before = facts(pid=7, arguments=("ssh", "h4"), user="root", uid=0, dscp=46, declared_need="x")
    assert ApplicationFacts.from_json(json.loads(json.dumps(before.to_json()))) == before


def test_facts_of_a_newer_host_are_read_by_an_older_agent() -> None:
    document = {**facts().to_json(), "container": "x"}
    assert ApplicationFacts.from_json(document) == facts()


def test_nothing_known_means_shortest() -> None:
    selection = select(Policy(), ApplicationFacts(FLOW))
    assert (selection.protocol, selection.name, selection.rule) == (0, "shortest", "default")
    assert selection.need == "default"


def test_precedence_is_protocol_need_rule_dscp_default() -> None:
    rules = policy(name="shells", match={"executable": "ssh"}, need="reliable")
    known: dict[str, Any] = {"dscp": 46, "declared_need": "bandwidth", "declared_protocol": "1"}
    order = []
    for drop in (None, "declared_protocol", "declared_need"):
        known.pop(drop, None) if drop else None
        order.append(select(rules, facts(**known)))
    order.append(select(Policy(), facts(**known)))
    order.append(select(Policy(), facts()))
    assert [s.rule for s in order] == [
        "declared-protocol",
        "declared-need",
        "shells",
        "rfc4594:EF",
        "default",
    ]
    assert [s.name for s in order] == ["low-latency", "wide", "reliable", "low-latency", "shortest"]
    assert [s.need for s in order] == ["", "bandwidth", "reliable", "low-latency", "default"]


def test_only_flipping_the_declared_need_flips_the_protocol() -> None:
    found = {need: select(Policy(), facts(declared_need=need)).protocol for need in NEEDS}
    assert found == {
        "default": 0,
        "low-latency": 1,
        "bandwidth": 2,
        "reliable": 3,
        "survivable": 4,
        "dispersed": 5,
        "bounded": 9,
    }


def test_unknown_declarations_are_passed_over_and_told() -> None:
    selection = select(Policy(), facts(declared_protocol="magic", declared_need="speed"))
    assert selection.rule == "default"
    assert "'magic'" in selection.reason
    assert "'speed'" in selection.reason


def test_user_defined_protocols_can_be_declared_by_number() -> None:
    selection = select(Policy(), facts(declared_protocol="200"))
    assert (selection.protocol, selection.name) == (200, "200")


@pytest.mark.parametrize("text", ["11", "127", "256", "-1", "²", "", "Shortest"])
def test_other_protocol_numbers_do_not_exist(text: str) -> None:
    assert protocol_id(text) is None


def test_the_first_matching_rule_decides_and_the_reason_shows_what_matched() -> None:
    rules = Policy.from_json(
        {
            "rules": [
                {"name": "no", "match": {"executable": "curl"}, "need": "bandwidth"},
                {"name": "yes", "match": {"destination_port": 22}, "protocol": "wide"},
                {"name": "late", "match": {}, "need": "low-latency"},
            ]
        }
    )
    selection = select(rules, facts())
    assert selection == Selection(
        2, "wide", "", "yes", "policy rule 'yes' matches destination_port 22"
    )


@pytest.mark.parametrize(
    ("match", "hit", "miss"),
    [
        ({"executable": "ssh"}, {}, {"executable": "/usr/bin/sshd"}),
        ({"executable": "ssh*"}, {"executable": "/usr/sbin/sshd"}, {"executable": "/ssh/curl"}),
        ({"executable": "/usr/*/ssh"}, {}, {"executable": "/opt/bin/ssh"}),
        ({"executable": ["curl", "ssh"]}, {}, {"executable": None}),
        ({"user": "alice"}, {"user": "alice"}, {"user": "bob"}),
        ({"user": 1000}, {"uid": 1000}, {"user": "alice"}),
        ({"cgroup": "/system.slice/*"}, {"cgroup": "/system.slice/a.service"}, {"cgroup": "/x"}),
        ({"unit": "backup*.service"}, {"unit": "backup-1.service"}, {"unit": None}),
        ({"transport": "tcp"}, {}, {"flow": FiveTuple(4, 17, "10.77.0.1", 1, "10.77.0.4", 22)}),
        (
            {"transport": "icmp"},
            {"flow": FiveTuple(6, 58, "fd77::1", 9, "fd77::4", 9)},
            {},
        ),
        ({"source_port": "40000-40010"}, {}, {"flow": FLOW.reversed()}),
        ({"destination_port": [80, "20-25"]}, {}, {"flow": FLOW.reversed()}),
        (  # an echo identifier is not a port
            {"destination_port": 22},
            {},
            {"flow": FiveTuple(4, 1, "10.77.0.1", 22, "10.77.0.4", 22)},
        ),
        ({"source": "10.77.0.1/32"}, {}, {"flow": FLOW.reversed()}),
        (
            {"destination": ["10.77.0.4/31", "fd77::/64"]},
            {"flow": FiveTuple(6, 6, "fd77::1", 1, "fd77::4", 22)},
            {"flow": FLOW.reversed()},
        ),
        ({"dscp": ["EF", "af21", 7]}, {"dscp": 18}, {"dscp": 0}),
        ({"executable": "ssh", "destination_port": 22}, {}, {"executable": "/bin/curl"}),
    ],
)
def test_conditions(match: dict[str, Any], hit: dict[str, Any], miss: dict[str, Any]) -> None:
    assert chosen(match, **hit)
    assert not chosen(match, **miss)


def test_every_condition_is_covered_above() -> None:
    marks = test_conditions.pytestmark
    cases = marks[0].args[1]
    assert {key for case in cases for key in case[0]} == set(MATCH_KEYS)


_ALPHABET = st.text("ab/*?", max_size=8)


@given(_ALPHABET, _ALPHABET)
def test_globs_agree_with_fnmatch(pattern: str, text: str) -> None:
    assert glob_matches(pattern, text) == fnmatch.fnmatchcase(text, pattern)


@pytest.mark.parametrize(
    ("name", "code"), [("EF", 46), ("VA", 44), ("CS5", 40), ("AF11", 10), ("AF43", 38), ("LE", 1)]
)
def test_code_points_are_those_of_the_rfcs(name: str, code: int) -> None:
    assert DSCP_NAMES[name.lower()] == code
    assert dscp_class(code) == name.lower()


@pytest.mark.parametrize(
    ("code", "protocol"),
    [
        (46, "low-latency"),
        (44, "low-latency"),
        (40, "low-latency"),
        (34, "low-latency"),
        (18, "low-latency"),
        (10, "wide"),
        (8, "wide"),
        (1, "wide"),
        (26, "wide"),
        (24, "reliable"),
        (0, "shortest"),
        (63, "shortest"),
    ],
)
def test_dscp_classes_have_defaults(code: int, protocol: str) -> None:
    assert select(Policy(), facts(dscp=code)).name == protocol


def test_every_dscp_default_is_a_need() -> None:
    assert {need for need, _ in DSCP_NEEDS.values()} <= set(NEEDS)


def test_all_mistakes_are_listed_with_their_places() -> None:
    document = {
        "rule": [],
        "rules": [
            {"match": {"port": 22}, "need": "speed", "nmae": "x"},
            {"need": "bandwidth", "protocol": "wide", "match": {}},
            {"match": {"destination_port": ["a", 70000, "9-8"], "dscp": 64, "user": True}},
            {"match": {"source": "10.0.0.1/8", "transport": "sctp"}, "protocol": 100},
            {"match": {"executable": []}, "need": "default", "name": ""},
            {"match": None, "need": "default", "name": "same"},
            {"match": {}, "need": "default", "name": "same"},
            "text",
        ],
    }
    with pytest.raises(ConfigError) as caught:
        Policy.from_json(document)
    text = "\n".join(caught.value.problems)
    for part in (
        "rule: unknown key 'rule'",
        "rules[0].match.port: unknown condition (known: executable, user",
        "rules[0].need: unknown need 'speed' (known: default, low-latency, bandwidth, reliable",
        "rules[0].nmae: unknown key",
        "rules[1]: needs either need or protocol",
        "rules[2].match.destination_port: must be a port or a range such as 8000-8099, not 'a'",
        "70000 is not a range",
        "'9-8' is not a range",
        "rules[2].match.dscp: must be a class",
        "rules[2].match.user: must be a text",
        "rules[2]: needs either need or protocol",
        "rules[3].match.source: 10.0.0.1/8 has host bits set",
        "rules[3].match.transport: must be one of tcp, udp, icmp",
        "rules[3].protocol: unknown protocol 100",
        "rules[4].match.executable: an empty list can never match",
        "rules[4].name: must be a text",
        "rules[5].match: must be a mapping",
        "rules[6].name: 'same' is already the name of rules[5]",
        "rules[7]: must be a mapping",
    ):
        assert part in text


@pytest.mark.parametrize("document", [[], "x", {"rules": {}}])
def test_documents_of_another_shape_are_refused(document: Any) -> None:
    with pytest.raises(ConfigError):
        Policy.from_json(document)
