"""Figures of spawning and of memory as tables and as Markdown.

Owns: columns and units. May import: lab. Works on the JSON documents, so that a kept result can be
shown again.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from fabric.lab.bench.report import Row, markdown

COLUMNS = (
    "TIER", "BURST", "HOPS", "N", "P50 MS", "P90 MS", "P99 MS", "BY HAND P50 MS", "RATIO",
    "OTHER TIER", "FAILED", "LOAD",
)  # fmt: skip
PATH_COLUMNS = (
    "TIER", "HOPS", "CONNECT P50 MS", "P90 MS", "ONE HOST P50 MS", "RATIO",
)  # fmt: skip
PHASE_COLUMNS = ("TIER", "BURST", "HOPS", "MEDIANS OF PHASES, MS", "BY HAND, MS")
MEMORY_COLUMNS = (
    "TIER", "GUESTS", "PRIVATE MIB", "SHARED MIB", "ANONYMOUS MIB", "MIB PER GUEST", "LOAD",
)  # fmt: skip


def rows(results: Iterable[dict[str, Any]]) -> list[Row]:
    """One row per figure of spawning."""
    return [
        (
            *_where(each), each["n"], *(_cell(each[f"{p}_ms"]) for p in ("p50", "p90", "p99")),
            _cell(each["reference_p50_ms"]), _cell(each["ratio"]), each["fallbacks"],
            len(each["failures"]), each["load"],
        )
        for each in results
    ]  # fmt: skip


def path_rows(results: Iterable[dict[str, Any]]) -> list[Row]:
    """What connect() took over several hosts, beside one host's spawn in the same minutes."""
    found = []
    for each in results:
        if (connect := each["connect"]) is not None:
            numbers = ("p50_ms", "p90_ms", "one_host_p50_ms", "ratio_to_one_host")
            found.append((each["tier"], each["hops"], *(_cell(connect[name]) for name in numbers)))
    return found


def phase_rows(results: Iterable[dict[str, Any]]) -> list[Row]:
    """Where the time went."""
    return [
        (*_where(each), _phases(each["phases"]), _phases(each["reference_phases"]))
        for each in results
    ]


def memory_rows(results: Iterable[dict[str, Any]]) -> list[Row]:
    """One row per figure of memory."""
    names = (
        "tier", "guests", "private_mib", "shared_mib", "anonymous_mib", "per_guest_mib", "load",
    )  # fmt: skip
    return [tuple(_cell(each[name]) for name in names) for each in results]


def series(results: Iterable[dict[str, Any]]) -> dict[str, list[float]]:
    """Every spawn, ms, of each tier, burst and number of hops, and of its reference."""
    found = {}
    for each in results:
        name = f"{each['tier']}, burst {each['burst']}, hops {each['hops']}"
        found[name] = [sample["total_ms"] for sample in each["series"]]
        found[f"{name}, by hand"] = [sample["total_ms"] for sample in each["reference_series"]]
    return found


def page(results: Sequence[dict[str, Any]]) -> str:
    """All tables of spawning as Markdown."""
    text = "### Spawning\n\n" + markdown(COLUMNS, rows(results))
    if paths := path_rows(results):
        text += "\n### Over several hosts\n\n" + markdown(PATH_COLUMNS, paths)
    return text + "\n### Phases\n\n" + markdown(PHASE_COLUMNS, phase_rows(results))


def memory_page(results: Sequence[dict[str, Any]]) -> str:
    """The table of memory as Markdown."""
    return "### Memory\n\n" + markdown(MEMORY_COLUMNS, memory_rows(results))


def _where(each: dict[str, Any]) -> tuple[Any, Any, Any]:
    return each["tier"], each["burst"], each["hops"]


def _phases(phases: dict[str, float]) -> str:
    return ", ".join(f"{name} {ms:.1f}" for name, ms in phases.items())


def _cell(value: Any) -> Any:
    return "" if value is None else value
