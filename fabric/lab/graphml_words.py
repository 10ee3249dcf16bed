"""What GraphML files mean by their words: speeds, delays, names.

Owns: the reading of attributes. May import: lab.fields.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping
from typing import Any

from fabric.lab.fields import MAX_HOST_NAME, MAX_LAB_NAME, parse_latency

_PREFIXES = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_SPEED = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(?:b|bits?)(?:/s|ps|it/s|\b)", re.IGNORECASE)
_SHORT_SPEED = re.compile(r"\b(\d+(?:\.\d+)?)\s*([kmgt])\b", re.IGNORECASE)
_CARRIER = re.compile(r"\b(OC|STM|STS|DS|T|E)-?\s?(\d+)", re.IGNORECASE)
_HIERARCHY = {
    **{("t", 1): 1_544_000, ("ds", 1): 1_544_000, ("t", 3): 44_736_000, ("ds", 3): 44_736_000},
    **{("e", 1): 2_048_000, ("e", 3): 34_368_000, ("e", 4): 139_264_000},
}
"""Bit/s of what telephone companies lease (ITU-T G.702)."""
_OC_BPS, _STM_BPS = 51_840_000, 155_520_000
"""Bit/s of OC-1 and STM-1 (ITU-T G.707); others are multiples."""
MAX_BPS = 10**15
"""Above it a number is no speed of a link."""


def number(value: object) -> float | None:
    """A finite number, or None."""
    try:
        found = float(str(value))
    except ValueError:
        return None
    return found if math.isfinite(found) else None


def speed_bps(told: Mapping[str, Any]) -> int:
    """Bandwidth of a link in bit/s, from whichever attribute tells it; 0: none does.

    The Zoo's ``LinkSpeedRaw`` is in bit/s, ``LinkSpeed`` in ``LinkSpeedUnits``; labels and types
    are texts such as "10 Gbps", "OC-192", "E3".
    """
    raw = number(told.get("LinkSpeedRaw"))
    speed, unit = number(told.get("LinkSpeed")), str(told.get("LinkSpeedUnits") or "").lower()[:1]
    if not raw and speed and unit in _PREFIXES:
        raw = speed * _PREFIXES[unit]
    if raw and 0 < raw <= MAX_BPS:
        return round(raw)
    texts = (str(told.get(key) or "") for key in ("LinkLabel", "LinkType", "LinkNote", "label"))
    return next((found for text in texts if (found := _speed_in(text))), 0)


def _speed_in(text: str) -> int:
    if match := _SPEED.search(text) or _SHORT_SPEED.search(text):
        return round(float(match[1]) * _PREFIXES[match[2].lower()])
    if match := _CARRIER.search(text):
        kind, times = match[1].lower(), int(match[2])
        if kind in ("oc", "sts", "stm"):
            return times * (_STM_BPS if kind == "stm" else _OC_BPS)
        return _HIERARCHY.get((kind, times), 0)
    return 0


def delay_us(told: Mapping[str, Any]) -> int | None:
    """Latency of a link in µs where the file has one; a number without unit counts ms."""
    for key, value in told.items():
        if key.lower() in ("latency", "delay"):
            plain = number(value)
            if plain is not None and plain >= 0:
                return max(1, round(plain * 1000))
            try:
                return max(1, parse_latency(str(value)))
            except ValueError:
                return None
    return None


def word(text: str) -> str:
    """Lower-case letters, digits and inner hyphens; empty when nothing of a text is left."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    return re.sub("[^a-z0-9]+", "-", plain).strip("-")[:32].strip("-")


def lab_name(*texts: str) -> str:
    """A lab's name from the first text that gives one."""
    names = (word(text)[:MAX_LAB_NAME].strip("-") for text in texts)
    return next((name for name in names if name), "imported")


def distinct_names(labels: Mapping[str, object], repairs: list[str]) -> dict[str, str]:
    """A host name for every key, by its label; what is more than a matter of spelling is told."""
    whole = {key: word(str(label or "")) for key, label in labels.items()}
    missing = [key for key, name in whole.items() if name in ("", "none", "null")]
    for key in missing:
        plain = word(key)
        whole[key] = plain if plain[:1].isalpha() else f"n{plain}"
    if missing:
        names = ", ".join(whole[key] for key in missing[:12])
        repairs.append(f"{len(missing)} hosts have no label: {names}{' …' * (len(missing) > 12)}")
    count = Counter(name[:MAX_HOST_NAME].strip("-") for name in whole.values())
    found: dict[str, str] = {}
    taken: set[str] = set()
    for key, name in whole.items():
        short = name[:MAX_HOST_NAME].strip("-")
        if count[short] > 1 or short in taken:
            short = _numbered(short, taken)
        taken.add(short)
        found[key] = short
        if short != name:
            repairs.append(f'the host labelled "{labels[key] or name}" is called {short}')
    return found


def _numbered(name: str, taken: set[str]) -> str:
    for at in range(1, len(taken) + 2):
        tail = f"-{at}"
        numbered = name[: MAX_HOST_NAME - len(tail)].strip("-") + tail
        if numbered not in taken:
            return numbered
    raise AssertionError("one of n + 1 names is free of n taken ones")
