"""Links changed while frames run over them: real namespaces, veth pairs, nftables and emulator."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fabric.errors import Conflict, NameUnknown, UserError
from fabric.lab import builder, gc, names, state
from fabric.lab.control import Control, find_link
from fabric.lab.inspection import inspect_links
from fabric.lab.standing import DOWN, SILENT, UP, Standing
from tests.unit import lab_samples
from tests.unit.test_cli import answer, fabric

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="makes network namespaces"),
]

LAB = f"lc{os.getpid() % 100000}"
FAR = "172.31.0.3"
"""h3 from h2, over the link that nothing impairs."""


@pytest.fixture
def run_dir(tmp_path: Path) -> Iterator[Path]:
    directory = tmp_path / "run"
    yield directory
    for lab in state.recorded_labs(directory):
        builder.down(lab, directory, lab_samples.machine(tmp_path))


@pytest.fixture
def control(tmp_path: Path, run_dir: Path) -> Iterator[Control]:
    machine = lab_samples.machine(tmp_path)
    builder.up(lab_samples.spec(run_dir, LAB), machine)
    with machine.world() as world:
        yield Control(run_dir, LAB, world)


def becomes(**what: Any) -> Callable[[Standing], Standing]:
    return lambda standing: replace(standing, **what)


def inside(host: str, *argv: str) -> list[str]:
    return ["ip", "netns", "exec", names.namespace_name(LAB, host), *argv]


def ping(host: str, address: str, *options: str) -> str:
    argv = inside(host, "ping", "-n", "-i", "0.01", *options, address)
    return subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False).stdout


def rtt_ms(host: str = "h2", address: str = FAR) -> float:
    ping(host, address, "-c", "1", "-W", "5")  # who has the address, asked while it was cut
    match = re.search(r"= ([\d.]+)/", ping(host, address, "-c", "5", "-W", "5"))
    assert match, "no answer"
    return float(match[1])


def link_flags(host: str, interface: str) -> list[str]:
    argv = ["ip", "-n", names.namespace_name(LAB, host), "-j", "link", "show", interface]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    return list(json.loads(done.stdout)[0]["flags"])


def test_no_frame_is_lost_doubled_or_overtaken_while_a_link_changes(control: Control) -> None:
    argv = inside("h2", "ping", "-n", "-i", "0.002", "-c", "1500", "-W", "2", FAR)
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as stream:
        for change in (
            {"latency_us": 20_000},
            {"latency_us": 3_000, "bandwidth_bps": 20_000_000},
            {"bandwidth_bps": 90_000_000},
            {"latency_us": 10_000, "jitter_us": 9_000},
            {"latency_us": 0, "jitter_us": 0},
            {"bandwidth_bps": 0},
            {"latency_us": 8_000},
            {"latency_us": 0},
            {"bandwidth_bps": 10_000_000},
        ):
            time.sleep(0.1)
            control.change("h2-h3", becomes(**change))
        assert stream.stdout is not None
        text = stream.stdout.read()
    answers = [int(n) for n in re.findall(r"icmp_seq=(\d+)", text)]
    assert answers == list(range(1, 1501)), text[-300:]


def test_delay_rate_and_loss_are_applied_to_a_plain_link_and_taken_off_again(
    control: Control,
) -> None:
    assert rtt_ms() < 5
    changed = control.change("h3-h2", becomes(latency_us=15_000))
    assert changed.link.label == "h2-h3" and changed.before == Standing()
    assert rtt_ms() >= 30
    control.change("h2-h3", becomes(latency_us=0, loss=0.5))
    received = re.search(r"(\d+) received", ping("h2", FAR, "-c", "200", "-W", "1"))
    assert received and 10 < int(received[1]) < 100  # a quarter: each way loses half
    control.change("h2-h3", becomes(loss=0.0, bandwidth_bps=1_000_000))
    assert megabits(8) < 4
    control.change("h2-h3", becomes(bandwidth_bps=0))
    assert megabits(200) > 20
    assert rtt_ms() < 5


def megabits(at_most: int) -> float:
    """Mb/s from h2 to h3, for a second, of a sender that sends at most so many."""
    with subprocess.Popen(inside("h3", "iperf3", "-s", "-1", "--forceflush"),
                          stdout=subprocess.PIPE, text=True) as server:  # fmt: skip
        assert server.stdout is not None
        while "listening" not in server.stdout.readline():
            assert server.poll() is None
        client = inside("h2", "iperf3", "-J", "-u", "-b", f"{at_most}M", "-c", FAR, "-t", "1")
        done = subprocess.run(client, capture_output=True, text=True, timeout=30, check=True)
        server.stdout.read()
    return float(json.loads(done.stdout)["end"]["sum_received"]["bits_per_second"] / 1e6)


@pytest.mark.parametrize("link", ["h1-h2", "h2-h3"])
def test_down_takes_the_carrier_of_both_ends_and_leaves_them_as_they_are(
    control: Control, link: str
) -> None:
    near, far = link.split("-")
    ends = ((near, f"to-{far}"), (far, f"to-{near}"))
    argv = ["ip", "-n", names.namespace_name(LAB, near), "neigh", "add", "172.31.0.200"]
    where = ["lladdr", "02:00:00:00:00:01", "dev", f"to-{far}", "nud", "permanent"]
    subprocess.run([*argv, *where], check=True)
    control.change(link, becomes(state=DOWN))
    for end in ends:
        assert {"UP", "NO-CARRIER"} <= set(link_flags(*end))
    control.change(link, becomes(state=UP))
    for end in ends:
        assert {"UP", "LOWER_UP"} <= set(link_flags(*end))
    argv[-2:] = ["show", "172.31.0.200"]
    kept = subprocess.run([*argv, *where[2:4]], capture_output=True, text=True, check=True).stdout
    assert "PERMANENT" in kept
    assert rtt_ms("h1", "172.31.0.1") >= 10 and rtt_ms() < 5


@pytest.mark.parametrize(("link", "address"), [("h1-h2", "172.31.0.1"), ("h2-h3", FAR)])
def test_a_silent_link_keeps_its_carrier_and_drops_both_ways(
    control: Control, run_dir: Path, link: str, address: str
) -> None:
    near, far = link.split("-")
    control.change(link, becomes(state=SILENT))
    assert "LOWER_UP" in link_flags(near, f"to-{far}")
    before = received(far, f"to-{near}"), received(near, f"to-{far}")
    ping(near, address, "-c", "5", "-W", "0.2")
    ping(far, counterpart(address), "-c", "5", "-W", "0.2")
    assert (received(far, f"to-{near}"), received(near, f"to-{far}")) == before
    control.change(link, becomes(state=UP))
    assert "1 received" in ping(near, address, "-c", "1")


def counterpart(address: str) -> str:
    head, _, last = address.rpartition(".")
    return f"{head}.{int(last) ^ 1}"


def received(host: str, interface: str) -> int:
    argv = ["ip", "-n", names.namespace_name(LAB, host), "-j", "-s", "link", "show", interface]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    return int(json.loads(done.stdout)[0]["stats64"]["rx"]["packets"])


def test_a_silent_cut_also_ends_what_is_still_on_a_long_wire(control: Control) -> None:
    control.change("h2-h3", becomes(latency_us=400_000))
    before = received("h3", "to-h2")
    ping("h2", FAR, "-c", "3", "-W", "0.01")
    with control.cut("h2-h3", SILENT) as cut:
        cut()
        time.sleep(0.6)
        assert received("h3", "to-h2") == before
    assert rtt_ms() >= 800


def test_up_goes_back_to_the_file_and_says_so(
    control: Control, tmp_path: Path, run_dir: Path
) -> None:
    spec, machine = lab_samples.spec(run_dir, LAB), lab_samples.machine(tmp_path)
    before = state.require(run_dir, LAB).processes
    control.change("h1-h2", becomes(latency_us=1_000, state=SILENT))
    control.change("h2-h3", becomes(loss=0.9))
    mended = (
        "link h1 -- h2: delay 1 ms → 5 ms, state silent → up",
        "link h2 -- h3: loss 90 % → 0 %",
    )
    assert builder.plan(spec, machine).mended == mended
    assert builder.up(spec, machine) == builder.Report(LAB, mended, mended)
    assert rtt_ms("h1", "172.31.0.1") >= 10 and rtt_ms() < 5
    assert builder.up(spec, machine).changed == ()
    after = state.require(run_dir, LAB).processes
    assert {n: p for n, p in after.items() if n in before} == before, "nobody was started again"
    namespace = names.emulator_namespace(LAB)
    subprocess.run(["ip", "-n", namespace, "link", "set", "e2a", "down"], check=True)
    assert builder.up(spec, machine).changed == ("link h2 -- h3: carrier",)
    assert rtt_ms() < 5


def test_a_change_survives_the_command_and_the_emulator(
    control: Control, tmp_path: Path, run_dir: Path
) -> None:
    control.change("h2-h3", becomes(latency_us=12_000))
    (shown,) = (
        x for x in inspect_links(state.require(run_dir, LAB), control.world) if x["b"] == "h3"
    )
    assert shown["wanted"]["latency_us"] == 0 and shown["now"]["latency_us"] == 12_000
    assert shown["ends"][0]["carrier"] and shown["changed"]
    emulator = state.require(run_dir, LAB).processes[names.LINKS_HOST]
    os.kill(emulator.pid, 9)
    while emulator.is_alive():
        time.sleep(0.01)
    control.change("h2-h3", becomes(latency_us=13_000))
    assert rtt_ms() >= 26
    assert rtt_ms("h1", "172.31.0.1") >= 10, "the new emulator carries the others, too"


def test_the_commands_change_show_and_reset(
    control: Control,
    run_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("FABRIC_RUN", str(run_dir))
    words = ("link", "set", "h3-h2", "--delay", "11ms", "--rate", "50mbit", "--lab", LAB)
    assert answer(*words, capsys=capsys)["now"]["latency_us"] == 11_000
    assert rtt_ms() >= 22
    code, out, _ = fabric("link", "set", "h2-h3", "--rate", "none", "--lab", LAB, capsys=capsys)
    assert (code, out) == (0, "link h2-h3: rate 50 Mb/s → unlimited\n")
    shown = fabric("link", "show", "h2-h3", "--lab", LAB, capsys=capsys)[1]
    assert "11 ms (file: 0 ms)" in shown
    options = ("--reset", "--down", "--silent")
    changed = answer("link", "set", "h2-h3", *options, "--lab", LAB, capsys=capsys)
    assert changed["now"] == Standing(state=SILENT).to_json()
    ends = answer("link", "show", "h2-h3", "--lab", LAB, capsys=capsys)[0]["ends"]
    assert [end["carrier"] for end in ends] == [True, True]
    code, out, _ = fabric("link", "set", "h2-h3", "--reset", "--lab", LAB, capsys=capsys)
    assert out == "link h2-h3: state silent → up\n"
    out = fabric("link", "set", "h2-h3", "--up", "--lab", LAB, capsys=capsys)[1]
    assert out == "link h2-h3: nothing changed\n"
    assert rtt_ms() < 5


def test_a_link_may_be_down_in_the_file(tmp_path: Path, run_dir: Path) -> None:
    spec, machine = lab_samples.spec(run_dir, LAB, state="down"), lab_samples.machine(tmp_path)
    builder.up(spec, machine)
    assert "NO-CARRIER" in link_flags("h1", "to-h2")
    assert builder.up(spec, machine).changed == ()
    with machine.world() as world:
        Control(run_dir, LAB, world).change("h1-h2", becomes(state=UP))
    assert rtt_ms("h1", "172.31.0.1") >= 10
    assert builder.up(spec, machine).changed == ("link h1 -- h2: state up → down",)
    assert "NO-CARRIER" in link_flags("h1", "to-h2")


CUT_AND_DIE = """
import os, sys
from pathlib import Path
from fabric.lab.control import Control
from fabric.lab.world import World
with World(lambda: None) as world:
    with Control(Path(sys.argv[1]), sys.argv[2], world).cut("h2-h3", "silent") as cut:
        cut()
        os.kill(os.getpid(), 9)
"""


def test_the_cut_of_a_killed_check_is_undone_by_gc(
    control: Control, tmp_path: Path, run_dir: Path
) -> None:
    machine = lab_samples.machine(tmp_path)
    subprocess.run([sys.executable, "-c", CUT_AND_DIE, str(run_dir), LAB], check=False)
    assert "0 received" in ping("h2", FAR, "-c", "2", "-W", "0.2")
    control.change("h1-h2", becomes(state=DOWN))
    only = frozenset({LAB})
    found = gc.collect(run_dir, machine, only=only)
    assert [(x.kind, x.name) for x in found] == [("cut", "link h2-h3")]
    assert rtt_ms() < 5
    assert gc.collect(run_dir, machine, only=only) == []
    assert "NO-CARRIER" in link_flags("h1", "to-h2"), "what somebody asked for stays"


def test_a_cut_is_given_back_whatever_happens(control: Control, run_dir: Path) -> None:
    control.change("h2-h3", becomes(latency_us=6_000))
    with pytest.raises(KeyboardInterrupt), control.cut("h2-h3", DOWN) as cut:
        cut()
        assert "NO-CARRIER" in link_flags("h2", "to-h3")
        raise KeyboardInterrupt
    assert rtt_ms() >= 12
    assert state.require(run_dir, LAB).cuts == {}
    control.change("h2-h3", becomes(state=DOWN))
    again = pytest.raises(Conflict, match=f"process {os.getpid()}")
    with control.cut("h1-h2", SILENT), again, control.cut("h1-h2", SILENT):
        pass
    with pytest.raises(UserError, match="down already"), control.cut("h2-h3", SILENT):
        pass


def test_links_are_found_by_either_order_and_unknown_ones_told(tmp_path: Path) -> None:
    spec = lab_samples.spec(tmp_path, hosts=("h1", "h2", "h-3"))
    assert find_link(spec, "h-3-h2").number == find_link(spec, "h2-h-3").number == 2
    with pytest.raises(NameUnknown, match="no link h1-h-3") as caught:
        find_link(spec, "h1-h-3")
    assert "h1-h2, h2-h-3" in caught.value.cure
