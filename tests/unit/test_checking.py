"""Checks: what is read of them, how they are judged, and that nothing cut stays cut."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path as File
from typing import Any

import pytest

from fabric.errors import ConfigError
from fabric.lab.checking import runner
from fabric.lab.checking.ground_fake import FakeGround
from fabric.lab.checking.runner import Outcome
from fabric.lab.topology_file import load_topology, parse_topology
from fabric.lab.validation import Blackout, Check, Path, Reach

HEAD = "name: x\nhosts: {a: , b: , c-d: }\nlinks: [a-b, b-c-d]\nvalidate:\n"
EXAMPLES = File(__file__).parents[2] / "examples"

REACH = Reach("r", "h1", "h4")
PATH = Path("p", "h1", "h4", contains=("h2",))
BLACKOUT = Blackout("b", "h1", "h4", cut=("h2", "h4"), below=0.3, silent=True)


def problems(lines: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse_topology(HEAD + lines, "x.yaml")
    return list(caught.value.problems)


def run(ground: FakeGround, *checks: Check) -> list[Outcome]:
    return list(runner.run(checks, ground, lambda _line: None))


def judged(ground: FakeGround, check: Check) -> Outcome:
    (outcome,) = run(ground, check)
    return outcome


# -- reading ---------------------------------------------------------------------------------------


def test_checks_are_read_with_defaults_and_names_of_their_own() -> None:
    lines = """
  - reach: {from: a, to: b}
  - reach: {from: a, to: b, with: http, port: 8000, loss: 5%, within: 2m, count: 9}
  - {name: way, warning: true, path: {from: a, to: c-d, need: bandwidth, exactly: [a, b, c-d]}}
  - blackout: {from: a, to: c-d, protocol: wide, cut: c-d-b, below: 300ms, silent: true}
"""
    assert parse_topology(HEAD + lines).checks == (
        Reach("reach-a-b", "a", "b"),
        Reach("reach-a-b-2", "a", "b", None, None, False, 120.0, "http", 9, 8000, 0.05),
        Path("way", "a", "c-d", need="bandwidth", warning=True, exactly=("a", "b", "c-d")),
        Blackout("blackout-a-c-d", "a", "c-d", protocol="wide", cut=("c-d", "b"), below=0.3,
                 silent=True),
    )  # fmt: skip
    assert parse_topology("name: x\nhosts: {a: }\n").checks == ()


def test_all_mistakes_of_checks_are_listed_with_line_and_key() -> None:
    lines = """\
  - reach: {from: a, to: a, wiht: ping}
  - reach: {from: q, protocol: nix, need: speed}
  - path: {from: a, to: b, contains: c-d, avoids: [c-d], protocol: wide, need: bandwidth}
  - path: {from: a, to: b}
  - path: {from: a, to: b, exactly: [a, c-d]}
  - blackout: {from: a, to: b, cut: a-c-d, below: 0, silent: x}
  - {reach: {from: a, to: b}, path: {from: a, to: b}}
  - {name: A B, warning: 1}
  - hello
  - {name: n, reach: {from: a, to: b, port: 3}}
  - {name: n, reach: {from: a, to: b, count: 0}}
  -
  - blackout: {from: a, to: b}
"""
    found = problems(lines)
    expected = [
        ("x.yaml:5: validate[0].reach.wiht: ", 'did you mean "with"?'),
        ("x.yaml:5: validate[0].reach.to: ", "comes from"),
        ("x.yaml:6: validate[1].reach.need: ", "is not a need"),
        ("x.yaml:6: validate[1].reach: ", "needs to"),
        ("x.yaml:6: validate[1].reach.from: ", 'host "q" is not defined'),
        ("x.yaml:6: validate[1].reach.protocol: ", 'protocol "nix" is not defined'),
        ("x.yaml:7: validate[2].path.protocol: ", "wins over need"),
        ("x.yaml:7: validate[2].path.avoids: ", "c-d is on every path"),
        ("x.yaml:8: validate[3].path: ", "needs one of contains, avoids, exactly"),
        ("x.yaml:9: validate[4].path.exactly: ", "must lead from a to b"),
        ("x.yaml:10: validate[5].blackout.below: ", "longer than nothing"),
        ("x.yaml:10: validate[5].blackout.silent: ", "true or false"),
        ("x.yaml:10: validate[5].blackout.cut: ", 'no link "a-c-d"'),
        ("x.yaml:11: validate[6]: ", "has reach and path"),
        ("x.yaml:12: validate[7].name: ", "not a check name"),
        ("x.yaml:12: validate[7].warning: ", "true or false"),
        ("x.yaml:12: validate[7]: ", "needs one of"),
        ("x.yaml:13: validate[8]: ", "must be a mapping"),
        ("x.yaml:14: validate[9].reach.port: ", "only asked with: http"),
        ("x.yaml:15: validate[10].reach.count: ", "0 is not in"),
        ("x.yaml:15: validate[10].name: ", "already that of another"),
        ("x.yaml:16: validate[11]: ", "needs one of"),
        ("x.yaml:17: validate[12].blackout: ", "needs cut and below"),
    ]
    for where, what in expected:
        assert any(line.startswith(where) and what in line for line in found), (where, found)
    assert len(found) == len(expected)
    assert "must be a list" in problems("  {a: b}\n")[0]


def test_the_abilene_example_asks_enough_of_the_fabric() -> None:
    model = load_topology(EXAMPLES / "abilene.yaml")
    assert (len(model.hosts), len(model.links)) == (11, 14)
    asked = [c for c in model.checks if c.protocol or c.need]
    assert len({(c.source, c.target) for c in asked}) >= 6
    assert len({c.protocol or c.need for c in asked}) >= 4


# -- judging ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ground", "check", "verdict", "told"),
    [
        (FakeGround(), REACH, "pass", "3 of 3 answered, rtt min/median 20.0/20.0 ms, by shortest"),
        (FakeGround(answers=2), REACH, "fail", "2 of 3 answered"),
        (FakeGround(answers=2), replace(REACH, loss=0.4), "pass", "2 of 3"),
        (FakeGround(answers=0), replace(REACH, loss=0.99), "fail", "0 of 3 answered: no answer"),
        (FakeGround(), replace(REACH, protocol="wide"), "fail", "but by shortest"),
        (FakeGround(unreachable=True), REACH, "fail", "namespace is gone"),
        (FakeGround(), PATH, "pass", "h1 > h2 > h4"),
        (FakeGround(path=("h1", "h3", "h4")), PATH, "fail", "not by h2"),
        (FakeGround(), replace(PATH, avoids=("h2",)), "fail", "by h2"),
        (FakeGround(), replace(PATH, exactly=("h1", "h4")), "fail", "not h1 > h4"),
        (FakeGround(), replace(PATH, exactly=("h1", "h2", "h4")), "pass", ""),
        (FakeGround(), replace(PATH, protocol="wide"), "fail", "but by shortest"),
        (FakeGround(path=()), PATH, "fail", "no hop records"),
        (FakeGround(answers=0), PATH, "fail", "no answer"),
        (FakeGround(outage=0.25), BLACKOUT, "pass", "250 ms, 50 of "),
        (FakeGround(outage=0.35), BLACKOUT, "fail", "350 ms, 70 of "),
        (FakeGround(outage=2.0), BLACKOUT, "fail", "2000 ms, 400 of "),
        (FakeGround(outage=0.0), BLACKOUT, "pass", "0 ms, 0 of "),
        (FakeGround(outage=None), BLACKOUT, "fail", "no repair within 3"),
        (FakeGround(outage=None, hoard=0.4), BLACKOUT, "fail", "no repair within 3"),
        (FakeGround(path=("h1", "h3", "h4")), BLACKOUT, "fail", "not over h2-h4"),
        (FakeGround(always_losing=True), BLACKOUT, "fail", "not whole"),
    ],
)
def test_verdicts(ground: FakeGround, check: Check, verdict: str, told: str) -> None:
    outcome = judged(ground, check)
    assert (outcome.verdict, told in outcome.detail) == (verdict, True), outcome
    warned = judged(replace_clock(ground), replace(check, warning=True))
    assert warned.verdict == ("pass" if verdict == "pass" else "warn")


def replace_clock(ground: FakeGround) -> FakeGround:
    return replace(ground, clock=500.0, cuts=[], restored=0, dead=[])


def test_a_blackout_that_nothing_repairs_is_restored_and_told() -> None:
    ground = FakeGround(outage=None)
    outcome = judged(ground, BLACKOUT)
    assert ground.cuts == [("h2", "h4", True)] and ground.restored == 1
    assert outcome.evidence["repaired"] is False and outcome.evidence["resumed"] is True
    assert 2900 < outcome.evidence["blackout_ms"] < 3300
    assert outcome.to_json()["evidence"]["interval_ms"] == 5.0


def test_several_ways_must_all_be_right() -> None:
    class Two(FakeGround):
        @property
        def carried(self) -> Any:
            return replace(super().carried, paths=(self.path, ("h1", "h3", "h4")))

    assert judged(Two(), PATH).verdict == "fail"
    assert judged(Two(), replace(PATH, contains=(), avoids=("h5",))).verdict == "pass"


def test_an_interrupt_restores_what_is_cut() -> None:
    ground = FakeGround()

    def strike() -> None:
        if ground.cuts:
            raise KeyboardInterrupt

    ground.on_sleep = strike
    with pytest.raises(KeyboardInterrupt):
        run(ground, BLACKOUT)
    assert ground.restored == 1


def test_exit_codes() -> None:
    bad, good = replace(REACH, protocol="wide"), REACH
    warned = replace(bad, warning=True)
    for checks, code in (
        ((), 2),
        ((good,), 0),
        ((good, warned), 3),
        ((warned, bad), 1),
        ((good, bad), 1),
    ):
        assert runner.exit_code(run(FakeGround(), *checks)) == code
