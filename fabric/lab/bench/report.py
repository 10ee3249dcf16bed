"""Results of a benchmark as rows and as Markdown.

Owns: columns and units. May import: errors, host, lab. Works on the JSON documents, so that a kept
result can be shown again.
"""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Iterable, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from fabric.host.vmm.acceleration import probe
from fabric.host.vmm.image import load_image

COLUMNS = (
    "HOPS", "PATH", "WHAT", "PACKETS/S", "MB/S", "LOSS %", "DELAY P50 MS", "P99 MS",
    "GUEST CPU US/PACKET", "OF KERNEL", "OF LOOP", "LOAD",
)  # fmt: skip
SPLIT_COLUMNS = (
    "ROLE", "WHAT", "PACKETS/S", "PER BURST", "READ US", "ENGINE US", "WRITE US", "TIMER US",
    "POLL US", "AGENT USER %", "AGENT SYSTEM %", "SOFTIRQ %", "IDLE %",
)  # fmt: skip
TOP_FUNCTIONS = 12
_PARTS = ("read", "engine", "write", "timer", "idle")
Row = tuple[Any, ...]


def rows(results: Iterable[dict[str, Any]]) -> list[Row]:
    """One row per measured figure."""
    found = []
    for each in results:
        if each["kind"] == "profile":
            continue
        delay = each["delay_us"] or {}
        found.append(
            (
                each["hops"],
                each["kind"],
                _what(each),
                _number(each["packets_per_s"], 0),
                _number(each["mbit_s"], 1),
                _number(each["loss"], 2, 100),
                _number(delay.get("p50"), 1, 1e-3),
                _number(delay.get("p99"), 1, 1e-3),
                _number(each["guest_cpu_us_per_packet"], 0),
                _number(each["ratio_to_kernel"], 3),
                _number(each["ratio_to_loop"], 3),
                _number(each["load"], 1),
            )
        )
    return found


def split_rows(results: Iterable[dict[str, Any]]) -> list[Row]:
    """Where the time of one packet goes, µs of wall time by part of the agent's loop."""
    found = []
    for each in results:
        if each["kind"] != "profile" or each["mode"] != "split":
            continue
        packets, ticks = max(1, each["packets"]), max(1, sum(each["ticks"].values()))
        parts = [each["seconds"][part] / packets * 1e6 for part in _PARTS]
        wall = each["wall"]
        found.append(
            (
                each["role"],
                _what(each),
                _number(packets / wall, 0),
                _number(packets / max(1, each["calls"]["engine"]), 1),
                *(_number(part, 0) for part in parts),
                _number(each["user"] / wall, 0, 100),
                _number(each["system"] / wall, 0, 100),
                _number((each["ticks"]["softirq"] + each["ticks"]["irq"]) / ticks, 0, 100),
                _number(each["ticks"]["idle"] / ticks, 0, 100),
            )
        )
    return found


def function_rows(profile: dict[str, Any]) -> list[Row]:
    """The most expensive functions of a ``calls`` profile: name, calls, share of the time in %."""
    # Waiting for packets is not work.
    functions = [each for each in profile["functions"] if "'poll'" not in each[0]]
    total = sum(each[2] for each in functions) or 1.0
    return [
        (_plain(name), calls, _number(own / total, 1, 100))
        for name, calls, own, _ in functions[:TOP_FUNCTIONS]
    ]


def machine_facts(state_dir: Path) -> dict[str, Any]:
    """What figures of this machine depend on. Names nobody. Raises ImageMissing, ImageInvalid,
    EnvironmentFault when no guest boots here."""
    verdict = probe(load_image(state_dir), state_dir)
    return {
        "cpu": _cpu_model(),
        "cpus": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "kernel": platform.release(),
        "qemu": _first_line(["qemu-system-x86_64", "--version"]),
        "python": platform.python_version(),
        "accelerator": f"{verdict.kind}/{verdict.machine}",
    }


def page(results: Sequence[dict[str, Any]]) -> str:
    """All tables as Markdown, as kept in docs/benchmarks.md."""
    profiles = [each for each in results if each["kind"] == "profile"]
    text = "### Rates\n\n" + markdown(COLUMNS, rows(results))
    if profiles:
        text += "\n### The agent's loop: µs of wall time per packet\n\n"
        text += markdown(SPLIT_COLUMNS, split_rows(profiles))
    calls = [each for each in profiles if each["mode"] == "calls"]
    if calls:
        text += "\n### The agent's functions: own time under cProfile, share in %\n\n"
        heads = [f"{each['role']}, {each['transport']}" for each in calls]
        columns = [[f"{name} {share}" for name, _, share in function_rows(each)] for each in calls]
        lines = zip_longest(*columns, fillvalue="")
        text += markdown(heads, lines)
    return text


def markdown(columns: Sequence[str], body: Iterable[Row]) -> str:
    """A Markdown table."""
    lines = [columns, ["---"] * len(columns), *body]
    return "".join(f"| {' | '.join(str(cell) for cell in line)} |\n" for line in lines)


def _plain(name: str) -> str:
    # <method 'sendmsg' of '_socket.socket' objects>, <built-in method posix.readv>
    quoted = name.split("'")
    if name.startswith("<method") and len(quoted) > 3:
        return f"{quoted[3]}.{quoted[1]}"
    return name.removeprefix("<built-in method ").removesuffix(">")


def _what(each: dict[str, Any]) -> str:
    size = "" if each["size"] is None else f" {each['size']} B"
    return f"{each['transport']}{size or ' stream'}"


def _number(value: float | None, digits: int, factor: float = 1) -> str:
    return "" if value is None else f"{value * factor:.{digits}f}"


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.machine())


def _first_line(argv: list[str]) -> str:
    try:
        done = subprocess.run(argv, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.splitlines()[0]
