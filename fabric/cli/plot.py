"""Pictures of results.

Owns: drawing. The only module that imports pygal, which is pure Python and writes SVG.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

SIZE = (1000, 480)
"""Pixels."""


def draw_arrivals(result: dict[str, Any], file: Path) -> None:
    """A simulation's packets that arrived, by the time they were sent: a line for each protocol.

    Raises OSError when the file cannot be written.
    """
    import pygal
    from pygal.style import CleanStyle

    events = ", ".join(f"{each['what']} at {each['at_ms']:g} ms" for each in result["events"])
    chart = pygal.XY(
        width=SIZE[0],
        height=SIZE[1],
        style=CleanStyle,
        show_dots=False,
        js=[],  # a file by itself, with nothing from elsewhere
        title=f"{result['hosts']} hosts, {result['links']} links: {events or 'no failure'}",
        x_title="sent at, ms",
        y_title="arrived, %",
        range=(0, 100),
    )
    for each in result["protocols"]:
        points = [(at, 100 * part) for at, part in each.get("arrivals", ())]
        chart.add(each["protocol"], points)
    file.write_bytes(chart.render())


def draw_distributions(
    title: str, unit: str, series: Mapping[str, Sequence[float]], file: Path
) -> None:
    """Every value of some series, ordered: how large (upwards, logarithmic) the smallest so many
    percent (to the right) are. Values are positive; empty series are left out.

    Raises OSError when the file cannot be written.
    """
    import pygal
    from pygal.style import CleanStyle

    chart = pygal.XY(
        width=SIZE[0],
        height=SIZE[1],
        style=CleanStyle,
        dots_size=2,
        js=[],
        logarithmic=True,
        title=title,
        x_title="% of all, from the smallest",
        y_title=unit,
        xrange=(0, 100),
        truncate_legend=-1,
    )
    for name, values in series.items():
        ordered = sorted(values)
        points = [(100 * (at + 1) / len(ordered), value) for at, value in enumerate(ordered)]
        if points:
            chart.add(name, points)
    file.write_bytes(chart.render())
