"""``fabric bench forward`` on real guests: what comes out has the promised shape.

Only the structure: how fast a machine is, no test can know.
"""

from __future__ import annotations

import json
import subprocess
from typing import Any

import pytest
from typer.testing import CliRunner

from fabric.cli import bench
from fabric.lab.bench import profiling
from fabric.lab.bench.report import rows, split_rows

pytestmark = pytest.mark.vm
TINY = ["forward", "--hops", "1", "--size", "512", "--seconds", "0.3", "--profile", "-o", "json"]


@pytest.fixture(scope="module")
def results() -> list[dict[str, Any]]:
    """One tiny run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(profiling, "SETTLE", 0.3)
        patch.setattr(profiling, "PRESSURE", 0.2)  # SSH into a busy guest takes its time
        done = CliRunner().invoke(bench.app, TINY, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def test_every_way_is_measured(results: list[dict[str, Any]]) -> None:
    measured = {(r["kind"], r["transport"]) for r in results if r["kind"] != "profile"}
    assert measured == {
        ("fabric", "udp"), ("kernel", "udp"), ("loop", "udp"), ("fabric", "tcp"), ("kernel", "tcp"),
    }  # fmt: skip


def test_packets_really_got_through(results: list[dict[str, Any]]) -> None:
    for each in results:
        if each["kind"] == "profile":
            continue
        assert each["hops"] == 1
        assert each["mbit_s"] > 0, each["kind"]
        assert each["series"]
        if each["transport"] == "udp":
            assert each["size"] == 512
            assert each["packets_per_s"] > 0
            assert 0 <= each["loss"] < 1
            assert {"offered", "delivered", "loss"} <= each["series"][0].keys()


def test_the_fabric_is_related_to_both_references(results: list[dict[str, Any]]) -> None:
    fabric = next(r for r in results if (r["kind"], r["transport"]) == ("fabric", "udp"))
    assert fabric["ratio_to_kernel"] > 0
    assert fabric["ratio_to_loop"] > 0
    assert fabric["machine"]["accelerator"]


def test_the_profile_saw_packets_at_both_ends(results: list[dict[str, Any]]) -> None:
    profiles = [r for r in results if r["kind"] == "profile"]
    seen = {(p["role"], p["transport"], p["mode"]) for p in profiles}
    roles, transports, modes = ("ingress", "egress"), ("udp", "tcp"), ("split", "calls")
    assert seen == {(r, t, m) for r in roles for t in transports for m in modes}
    for each in profiles:
        if each["mode"] == "split":
            assert each["packets"] > 0, each["role"]
        else:
            assert each["functions"], each["role"]


def test_results_fit_their_tables(results: list[dict[str, Any]]) -> None:
    assert len(rows(results)) == 5
    assert len(split_rows(results)) == 4


def test_nothing_is_left(results: list[dict[str, Any]]) -> None:
    listed = subprocess.run(["ip", "netns"], capture_output=True, text=True, check=True).stdout
    assert "fabric-bench-" not in listed
    domains = subprocess.run(
        ["virsh", "list", "--all", "--name"], capture_output=True, text=True, check=True
    )
    assert "fabric-bench-" not in domains.stdout
