"""The measurement of tables gives what it promises; how fast a machine is, no test can know."""

from __future__ import annotations

import pytest

from tests.bench.tables import KINDS, run


@pytest.mark.exhaustive
def test_every_kind_of_change_is_measured_beside_networkx() -> None:
    found = run("random-6", 2)
    assert len(found["hosts"]) == 3
    for host in found["hosts"]:
        assert all(len(host["series"][kind]) == 2 for kind in KINDS)
        assert host["series"]["networkx"]
        assert host["ratio"] > 0
        assert set(host["percentiles"]["down"]) == {"p50", "p90", "max"}
