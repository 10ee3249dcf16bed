"""A short soak; `make soak` is the long one."""

from __future__ import annotations

from pathlib import Path

from tests.vm.conftest import lab
from tests.vm.soak import TOPOLOGY, soak


def test_half_a_minute_of_kills_leaves_nothing(tmp_path: Path) -> None:
    with lab("soak", TOPOLOGY, tmp_path, "--idle-timeout", "10") as made:
        report = soak(made, tmp_path, connections=24, seconds=36, seed=8848704, kills=3)
    assert report.wrong == []
    assert sum(report.kills.values()) == 3
    assert report.outcomes["complete"] >= 15, "kills are few: most never notice"
    assert not report.leaks
