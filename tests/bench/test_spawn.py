"""``fabric bench spawn`` and ``memory`` on real guests: what comes out has the promised shape.

Only the structure: how fast a machine is, no test can know.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from typer.testing import CliRunner

from fabric.cli import bench

pytestmark = pytest.mark.vm
NAME = ["--name", "benchspawn", "-o", "json"]


def run(*words: str) -> Any:
    done = CliRunner().invoke(bench.app, [*words, *NAME], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_spawns_are_measured_beside_guests_started_by_hand() -> None:
    (figure,) = run("spawn", "--tier", "prepared", "--burst", "1", "--hops", "0", "--count", "2")
    assert (figure["tier"], figure["burst"], figure["hops"]) == ("prepared", 1, 0)
    assert (figure["n"], figure["failures"], figure["fallbacks"]) == (2, [], 0)
    assert 0 < figure["p50_ms"] <= figure["p90_ms"] <= figure["p99_ms"]
    assert len(figure["series"]) == len(figure["reference_series"]) == 2
    assert figure["ratio"] == pytest.approx(figure["p50_ms"] / figure["reference_p50_ms"], abs=1e-3)
    assert {"request_seen", "facts", "slot", "first_packet_out"} <= figure["phases"].keys()
    assert figure["machine"]["accelerator"]


def test_memory_of_guests_is_told() -> None:
    one, two = run("memory", "--tier", "prepared", "--guests", "1,2")
    assert [one["guests"], two["guests"]] == [1, 2]
    assert one["private_mib"] > 0
    assert one["anonymous_mib"] < two["anonymous_mib"]
    assert two["shared_mib"] > 0
