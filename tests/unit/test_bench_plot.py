"""Pictures of benchmarks: every series by name, every value positive, a file that stands alone."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

from fabric.cli.plot import draw_distributions
from fabric.lab.bench import blackout_tables, spawn_tables


def test_every_series_is_in_the_picture(tmp_path: Path) -> None:
    spawned = {
        "tier": "warm", "burst": 4, "hops": 0,
        "series": [{"total_ms": 9.5}, {"total_ms": 3.5}],
        "reference_series": [{"total_ms": 2.5}],
    }  # fmt: skip
    file = tmp_path / "spawns.svg"
    draw_distributions("spawns", "ms", spawn_tables.series([spawned]), file)
    drawn = ElementTree.parse(file).getroot()
    words = "".join(drawn.itertext())
    assert "warm, burst 4, hops 0" in words
    assert "warm, burst 4, hops 0, by hand" in words
    assert "http" not in "".join(node.get("href", "") for node in drawn.iter())


def test_a_blackout_that_lost_nothing_can_be_drawn_on_a_logarithmic_scale(tmp_path: Path) -> None:
    cut = {"system": "fabric", "cut": "remote", "rate": 200.0, "series_ms": [0.0, 120.0]}
    series = blackout_tables.series([cut])
    assert series == {"fabric, remote": [5.0, 120.0]}
    draw_distributions("cuts", "ms", series, tmp_path / "cuts.svg")
    assert (tmp_path / "cuts.svg").stat().st_size > 1000
