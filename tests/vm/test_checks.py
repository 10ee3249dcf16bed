"""`fabric check` and `fabric link` on real guests: what a lab promises, kept and not kept."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from tests.vm.conftest import lab
from tests.vm.lab import ROOT, Lab, wait_for

DIAMOND = (ROOT / "examples/diamond.yaml").read_text().partition("# `fabric check`")[0]
# No repair can be done in a millisecond, so the cut is always told, and its end is always waited
# for: what a check says of a repair is for those to test who make it.
VALIDATE = """
validate:
  - {name: reach, reach: {from: h1, to: h4, protocol: low-latency}}
  - {name: way, path: {from: h1, to: h4, with: udp, need: bandwidth, exactly: [h1, h2, h3, h4]}}
  - {name: wrong, path: {from: h1, to: h4, need: low-latency, avoids: h2}}
  - {name: elsewhere, blackout: {from: h1, to: h4, cut: h2-h3, below: 1s}}
  - name: cut
    warning: true
    blackout: {from: h1, to: h4, need: low-latency, cut: h2-h4, below: 1ms, silent: true}
"""


@pytest.fixture(scope="module")
def checked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with lab("checked", DIAMOND + VALIDATE, tmp_path_factory.mktemp("checked")) as made:
        yield made


def check(where: Lab, *only: str) -> tuple[int, dict[str, Any]]:
    words = [word for name in only for word in ("--only", name)]
    done = where.fabric("check", *words, "-o", "json", check=False)
    return done.returncode, {each["name"]: each for each in json.loads(done.stdout)}


def link(where: Lab, name: str) -> dict[str, Any]:
    (found,) = where.json("link", "show", name)
    return dict(found)


def test_what_holds_passes_with_evidence_and_leaves_nothing(checked: Lab) -> None:
    code, found = check(checked, "reach", "way")
    assert (code, [each["verdict"] for each in found.values()]) == (0, ["pass", "pass"]), found
    assert found["reach"]["evidence"]["paths"] == [["h1", "h2", "h4"]]
    assert len(found["reach"]["evidence"]["rtts_ms"]) == 3
    assert min(found["reach"]["evidence"]["rtts_ms"]) >= 2 * (2 + 5), "the links' delays"
    assert found["way"]["evidence"]["paths"] == [["h1", "h2", "h3", "h4"]]
    seen = {c["id"]: c for c in checked.json("connections")}
    for each, protocol in ((found["reach"], "low-latency"), (found["way"], "wide")):
        assert seen[each["evidence"]["connection"]]["protocol_name"] == protocol
    assert checked.only_keeps_guests_ready(), "the checks' connections are ended"


def test_what_does_not_hold_fails_and_says_why(checked: Lab) -> None:
    code, found = check(checked, "wrong", "elsewhere")
    assert code == 1
    assert found["wrong"]["verdict"] == "fail" and "by h2" in found["wrong"]["detail"]
    assert "not over h2-h3" in found["elsewhere"]["detail"], "a cut that nobody could notice"
    bare = checked.file.with_name("bare.yaml")
    bare.write_text(checked.file.read_text().replace(VALIDATE, ""))
    assert checked.fabric("check", str(bare), check=False).returncode == 2


def test_a_silent_cut_is_measured_and_restored(checked: Lab) -> None:
    sent_before = link(checked, "h2-h4")["ends"][0]
    code, found = check(checked, "cut")
    assert (code, found["cut"]["verdict"]) == (3, "warn"), found
    evidence = found["cut"]["evidence"]
    assert evidence["paths"] == [["h1", "h2", "h4"]] and evidence["resumed"]
    assert evidence["lost"] > 0 and 4.5 < evidence["interval_ms"] < 7
    assert evidence["blackout_ms"] == pytest.approx(
        evidence["lost"] * evidence["interval_ms"], rel=0.01
    )
    after = link(checked, "h2-h4")
    assert after["now"]["state"] == "up" and not after["cut"]
    lost = after["ends"][0]["lost_packets"] - sent_before["lost_packets"]
    assert lost > 0, "the kernel counted what the link swallowed"
    assert checked.run("h1", "ping", "-c", "1", "-W", "60", "h4").returncode == 0


def test_an_interrupted_check_restores_the_link(checked: Lab) -> None:
    # What runs in the background of a shell without job control is started with SIGINT ignored.
    ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    words = ("check", "--only", "cut")
    with checked.begin(*words) as process:
        wait_for("the cut", lambda: link(checked, "h2-h4")["cut"], 60)
        process.send_signal(signal.SIGTERM if ignored else signal.SIGINT)
        assert process.wait(30) not in (0, 3)
    assert not link(checked, "h2-h4")["cut"]
    assert checked.run("h1", "ping", "-c", "1", "-W", "60", "h4").returncode == 0


def test_a_link_changes_under_a_running_connection_and_up_goes_back(checked: Lab) -> None:
    with checked.start("h1", "ping", "-n", "-i", "0.2", "-c", "60", "h4", need="low-latency") as p:
        wait_for("its first answer", lambda: b"time=" in p.stdout.readline(), 60)
        checked.fabric("link", "set", "h2-h4", "--delay", "60ms")
        text = p.communicate(timeout=90)[0].decode()
    rtts = [float(rtt) for rtt in re.findall(r"time=([\d.]+)", text)]
    assert " 0% packet loss" in text, text
    # It is felt, then measured, and then low-latency leaves that link.
    assert max(rtts[3:]) >= 2 * 62, rtts
    assert rtts[-1] < 2 * 62, rtts
    shown = checked.fabric("up", str(checked.file)).stdout
    assert "mended link h2 -- h4: delay 60 ms → 5 ms" in shown, shown
    assert "nothing changed" in checked.fabric("up", str(checked.file)).stdout
