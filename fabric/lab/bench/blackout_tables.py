"""Figures of blackouts as a table and as Markdown.

Owns: columns and units. May import: lab. Works on the JSON documents.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from fabric.lab.bench.report import Row, markdown

COLUMNS = (
    "SYSTEM", "LINK CUT", "N", "P50 MS", "P90 MS", "P99 MS", "MAX MS", "RATIO OF MEDIANS TO",
)  # fmt: skip


def rows(results: Iterable[dict[str, Any]]) -> list[Row]:
    """One row per system and cut."""
    return [
        (
            each["system"],
            each["cut"],
            each["n"],
            *(f"{each[name]:.0f}" for name in ("p50_ms", "p90_ms", "p99_ms", "max_ms")),
            ", ".join(f"{name} {ratio:.2f}" for name, ratio in each["ratio"].items()),
        )
        for each in results
    ]


def series(results: Iterable[dict[str, Any]]) -> dict[str, list[float]]:
    """Every blackout, ms, of each system and cut; none is shown as what one packet is."""
    return {
        f"{each['system']}, {each['cut']}": [
            max(ms, 1000 / each["rate"]) for ms in each["series_ms"]
        ]
        for each in results
    }


def page(results: Sequence[dict[str, Any]]) -> str:
    """The tables, and the raw series."""
    lines = [markdown(COLUMNS, rows(results)), "", "Raw series, ms:", ""]
    lines += [
        f"- {each['system']}, {each['cut']}: {', '.join(f'{ms:.0f}' for ms in each['series_ms'])}"
        for each in results
    ]
    return "\n".join(lines) + "\n"
