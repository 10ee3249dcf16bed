"""The measurement of tables gives what it promises; how fast a machine is, no test can know."""

from __future__ import annotations

import pytest

from tests.bench.tables import KINDS, PASSES, medians, run


@pytest.mark.exhaustive
def test_every_kind_of_change_is_measured_beside_networkx() -> None:
    found = run("random-6", 2)
    assert len(found["hosts"]) == 3
    for host in found["hosts"]:
        assert len(host["passes"]) == PASSES
        assert all(len(each[kind]) == 2 for each in host["passes"] for kind in KINDS)
        assert host["networkx"]
        assert host["ratio"] > 0
        assert set(host["percentiles"]["down"]) == {"p50", "p90", "max"}
    assert found["any change"]["max"] <= found["any single value"]["max"]


def test_the_cost_of_a_change_is_the_median_of_its_passes() -> None:
    passes = [{"down": [1.0, 20.0]}, {"down": [50.0, 22.0]}, {"down": [2.0, 21.0]}]
    assert medians(passes) == {"down": [2.0, 21.0]}
