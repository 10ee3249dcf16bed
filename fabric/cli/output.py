"""How results look: JSON for programs, tables for people.

Owns: writing to standard output and error. May import: errors. rich is imported only when a table
is really drawn.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

WIDTH_WITHOUT_TERMINAL = 200
"""Columns of a table that goes into a pipe or file: wide enough for one line per row."""


class Format(StrEnum):
    """What ``-o`` takes."""

    TABLE = "table"
    JSON = "json"


OutputOption = Annotated[
    Format, typer.Option("-o", "--output", help="table for people, json for programs.")
]


def emit_json(document: Any) -> None:
    """One JSON document on standard output."""
    json.dump(document, sys.stdout, indent=2)
    sys.stdout.write("\n")


def emit_line(document: Any) -> None:
    """One JSON line, flushed: somebody may be following."""
    sys.stdout.write(json.dumps(document) + "\n")
    sys.stdout.flush()


def say(line: str) -> None:
    """A line of result."""
    print(line, flush=True)


def note(line: str) -> None:
    """A line beside the result: progress, warnings; never in the way of a pipe. Where nobody reads
    any more (``fabric down 2>&1 | head``), what it tells of goes on."""
    try:
        print(line, file=sys.stderr, flush=True)
    except BrokenPipeError:
        # What is still buffered goes there, too: nothing is left to fail at the end.
        with open(os.devnull, "w") as nowhere:  # noqa: PTH123 - a device
            os.dup2(nowhere.fileno(), sys.stderr.fileno())


@contextlib.contextmanager
def progress(title: str) -> Iterator[Callable[[str], None]]:
    """A place to report steps of long work: a live line with the time gone by on a terminal, one
    line per step otherwise. On standard error."""
    if not sys.stderr.isatty():
        yield note
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as live:
        task = live.add_task(title, total=None)
        yield lambda step: live.update(task, description=f"{title}: {escape(step)}")


def emit_table(columns: Sequence[str], rows: Iterable[Sequence[Any]], *, empty: str) -> None:
    """A table; ``empty`` is said instead when there are no rows."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        # Text, not markup: a program's name may well hold square brackets.
        table.add_row(*(Text("-" if cell is None or cell == "" else str(cell)) for cell in row))
    if table.row_count:
        _console().print(table)
    else:
        note(empty)


def _console() -> Console:
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else WIDTH_WITHOUT_TERMINAL)


def flow_text(flow: dict[str, Any] | None) -> str:
    """A five-tuple for people: ``tcp 10.77.0.1:40312 > 10.77.0.4:8000``."""
    if not flow:
        return ""
    known = {1: "icmp", 6: "tcp", 17: "udp", 58: "icmp6"}
    name = known.get(flow["protocol"], str(flow["protocol"]))
    if name.startswith("icmp"):
        return f"{name} {flow['source']} > {flow['destination']}"
    ends = []
    for side in ("source", "destination"):
        address = flow[side]
        shown = f"[{address}]" if ":" in address else address
        ends.append(f"{shown}:{flow[f'{side}_port']}")
    return f"{name} {ends[0]} > {ends[1]}"


def clock_text(iso: str | None) -> str:
    """The time of day of an ISO 8601 stamp, milliseconds."""
    if not iso or "T" not in iso:
        return iso or ""
    return iso.partition("T")[2][:12]
