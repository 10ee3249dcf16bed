"""A benchmark that ends early tells what it measured until then."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from fabric.cli import bench
from fabric.errors import EnvironmentFault
from fabric.lab.bench import blackout, peers


@pytest.fixture(autouse=True)
def no_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is looked up, and a signal's handler stays what it was."""
    monkeypatch.setattr(bench, "_begin", lambda: (None, {"cpus": 2}, "a machine"))


def ends_early(monkeypatch: pytest.MonkeyPatch, end: BaseException, *series: list[float]) -> None:
    """The blackout benchmark measures ``series``, one a system, and then ends with ``end``."""

    def measure(_plan: Any, _options: Any, _progress: Any, figures: list[blackout.Figure]) -> None:
        names = (blackout.FABRIC, *peers.PEERS)
        figures += [
            blackout.Figure(name, "adjacent", ms) for name, ms in zip(names, series, strict=False)
        ]
        raise end

    monkeypatch.setattr(blackout, "_measure", measure)


def run(*options: str) -> Result:
    return CliRunner().invoke(bench.app, ["blackout", "--system", "fabric", *options])


@pytest.mark.parametrize(
    "end", [SystemExit(bench.STOPPED), KeyboardInterrupt(), EnvironmentFault("it broke")]
)
def test_what_was_measured_is_told_and_the_end_stays_an_end(
    end: BaseException, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ends_early(monkeypatch, end, [100.0, 120.0, 130.0], [1000.0], [])
    page, plot = tmp_path / "page.md", tmp_path / "plot.svg"
    done = run("--markdown", str(page), "--plot", str(plot), "-o", "json")
    ours, theirs = json.loads(done.stdout)
    assert (ours["n"], ours["series_ms"], theirs["n"]) == (3, [100.0, 120.0, 130.0], 1)
    assert ours["ratio"] == {theirs["system"]: 0.12}
    assert ours["machine"] == {"cpus": 2}
    assert "100, 120, 130" in page.read_text()
    assert "<svg" in plot.read_text()
    assert done.exit_code not in (0, None)


def test_the_table_is_told_too(monkeypatch: pytest.MonkeyPatch) -> None:
    ends_early(monkeypatch, EnvironmentFault("it broke"), [100.0])
    done = run()
    assert "a machine" in done.stdout
    assert "fabric" in done.stdout
    assert isinstance(done.exception, EnvironmentFault)


def test_with_nothing_measured_nothing_is_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ends_early(monkeypatch, EnvironmentFault("it broke"), [])
    page = tmp_path / "page.md"
    page.write_text("of another run")
    done = run("--markdown", str(page))
    assert done.stdout == ""
    assert page.read_text() == "of another run"
