"""The numbers and names of protocols, the needs people speak of, and what DSCP says about them.

Owns: these constants. May import: nothing (it runs in the guest).
"""

from __future__ import annotations

SHORTEST, LOW_LATENCY, WIDE, RELIABLE = 0, 1, 2, 3
DISJOINT, DISPERSE, FLOOD, SOURCE, DEFLECT, BOUNDED, AVOID = range(4, 11)
"""Ids of the built-in protocols, as they stand in every packet."""

PROTOCOL_NAMES = {
    SHORTEST: "shortest",
    LOW_LATENCY: "low-latency",
    WIDE: "wide",
    RELIABLE: "reliable",
    DISJOINT: "disjoint",
    DISPERSE: "disperse",
    FLOOD: "flood",
    SOURCE: "source",
    DEFLECT: "deflect",
    BOUNDED: "bounded",
    AVOID: "avoid",
}

MAX_PROTOCOL = 255
"""The id is one byte on the wire."""
FIRST_USER_PROTOCOL = 128
"""Ids from here on are the user's to define, as with IGP Flexible Algorithm (RFC 9350)."""

DEFAULT_NEED = "default"
NEEDS = {
    DEFAULT_NEED: SHORTEST,
    "low-latency": LOW_LATENCY,
    "bandwidth": WIDE,
    "reliable": RELIABLE,
    "survivable": DISJOINT,
    "dispersed": DISPERSE,
    "bounded": BOUNDED,
}
"""What an application may say it needs → the protocol that serves it."""

DSCP_NAMES = {
    **{f"cs{n}": 8 * n for n in range(8)},
    **{f"af{c}{d}": 8 * c + 2 * d for c in range(1, 5) for d in range(1, 4)},
    "df": 0,
    "le": 1,
    "va": 44,
    "ef": 46,
}
"""Lower-case class name → code point (RFC 2474, 2597, 3246, 5865, 8622)."""

_REAL_TIME = ("low-latency", "telephony and real-time classes")
_INTERACTIVE = ("low-latency", "low-latency data")
_STREAMING = ("bandwidth", "multimedia streaming")
_BULK = ("bandwidth", "high-throughput data")
_BACKGROUND = ("bandwidth", "low-priority data")
_CAREFUL = ("reliable", "classes that tolerate little loss")

DSCP_NEEDS = {
    "ef": _REAL_TIME,
    "va": _REAL_TIME,
    "cs5": _REAL_TIME,
    "cs4": _REAL_TIME,
    "af41": _REAL_TIME,
    "af42": _REAL_TIME,
    "af43": _REAL_TIME,
    "af21": _INTERACTIVE,
    "af22": _INTERACTIVE,
    "af23": _INTERACTIVE,
    "af31": _STREAMING,
    "af32": _STREAMING,
    "af33": _STREAMING,
    "af11": _BULK,
    "af12": _BULK,
    "af13": _BULK,
    "cs1": _BACKGROUND,
    "le": _BACKGROUND,
    "cs6": _CAREFUL,
    "cs3": _CAREFUL,
    "cs2": _CAREFUL,
}
"""RFC 4594 figures 2 and 3 in terms of our needs: class → (need, why). Absent ones are standard."""


def dscp_class(code: int) -> str | None:
    """The class of a code point that asks for something, in lower case; None for standard ones."""
    for name in DSCP_NEEDS:
        if DSCP_NAMES[name] == code:
            return name
    return None


def protocol_id(name: str | int, names: dict[int, str] = PROTOCOL_NAMES) -> int | None:
    """The id of a protocol given by name, number, or number as text; None when it is none of ours.

    ``names``: all protocols, the network's own ones included, where they are known. Numbers of the
    user's range are accepted: whether a table holds them is the table's matter.
    """
    for number, known in names.items():
        if name == known:
            return number
    text = str(name)
    if not (text.isascii() and text.isdigit()):
        return None
    number = int(text)
    if number in PROTOCOL_NAMES or FIRST_USER_PROTOCOL <= number <= MAX_PROTOCOL:
        return number
    return None
