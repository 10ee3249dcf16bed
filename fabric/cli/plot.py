"""Pictures of results.

Owns: drawing. The only module that imports pygal, which is pure Python and writes SVG.
"""

from __future__ import annotations

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
