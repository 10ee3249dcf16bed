"""What may be written in a topology file, value by value: parser and JSON schema side by side.

Owns: units, names, the tables of host options and link attributes. May import: host.config. Parsers
take a plain YAML value and raise ValueError with a message that fits behind "FILE:LINE: KEY: ".
"""

from __future__ import annotations

import difflib
import ipaddress
import re
import shlex
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from fabric.host.config import Limits, LivenessConfig, PoolConfig
from fabric.lab.standing import DOWN, UP
from fabric.routing.rules import TIERS
from fabric.routing.topology import MAX_COST
from fabric.wire.packet import HEADER_SIZE, UNDERLAY_OVERHEAD

MAX_LAB_NAME = 16
"""Characters: lab and host names together make namespace names, domain names and socket paths."""
MAX_HOST_NAME = 12
"""Characters: ``to-HOST`` must fit in an interface name of 15."""
MAX_SERVICE_NAME = 24
"""Characters: it becomes the name of a log file."""
MIN_OVERLAY_MTU = 1280
"""Bytes: what IPv6 demands of every link (RFC 8200 section 5)."""
MIN_LINK_MTU = MIN_OVERLAY_MTU + UNDERLAY_OVERHEAD + HEADER_SIZE
MAX_LINK_MTU = 65535
"""Bytes, the most a veth takes."""
MAX_LATENCY_US = 10_000_000
"""One way, µs: longer than to the Moon and back three times; surely a wrong unit."""

NAME_PATTERN = "[a-z0-9]([a-z0-9-]*[a-z0-9])?"
_NAME = re.compile(NAME_PATTERN)
WORD_PATTERN = "[A-Za-z0-9][A-Za-z0-9._-]{0,31}"
_WORD = re.compile(WORD_PATTERN)
_QUANTITY = re.compile(r"-?([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*([A-Za-z%µ]+)(/s)?")
_SECONDS = {"us": Decimal("1e-6"), "µs": Decimal("1e-6"), "ms": Decimal("1e-3"), "s": Decimal(1)}
_SECONDS |= {"m": Decimal(60), "min": Decimal(60)}
_BITS = {"bit": 1, "kbit": 10**3, "mbit": 10**6, "gbit": 10**9, "tbit": 10**12}
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True)
class Field:
    """One key: how to read its value, and what an editor may offer."""

    parse: Callable[[object], Any]
    schema: dict[str, Any]


def quoted(value: object) -> str:
    """A value as it is shown in a message."""
    return f'"{value}"' if isinstance(value, str) else "nothing" if value is None else str(value)


def suggestion(word: str, known: Iterable[str]) -> str:
    """``(did you mean "x"?)``, or the list of what is known."""
    known = list(known)
    close = difflib.get_close_matches(word, known, 1)
    return f'(did you mean "{close[0]}"?)' if close else f"(known: {', '.join(known)})"


def name_parser(what: str, longest: int) -> Callable[[object], str]:
    """Parser of lab and host names; they end up in interface, file and domain names."""

    def parse(value: object) -> str:
        text = value if isinstance(value, str) else str(value)
        if value is None or isinstance(value, (bool, list, dict)):
            raise ValueError(f"a {what} name must be a text, not {quoted(value)}")
        if not _NAME.fullmatch(text):
            raise ValueError(
                f"{quoted(text)} is not a {what} name: lower-case letters, digits and inner hyphens"
            )
        if len(text) > longest:
            raise ValueError(
                f"{quoted(text)} is too long for a {what} name: {len(text)} characters, "
                f"at most {longest}"
            )
        return text

    return parse


def _quantity(value: object, units: dict[str, Any], example: str) -> Decimal:
    if value == 0 and not isinstance(value, bool):
        return Decimal(0)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        raise ValueError(f"{value} has no unit: write for example {example}")  # noqa: TRY004
    match = _QUANTITY.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None or match[2].lower() not in units or (match[3] and units is not _BITS):
        raise ValueError(f"must be like {example} (units: {', '.join(units)}), not {quoted(value)}")
    if match[0].startswith("-"):
        raise ValueError(f"{value} is negative")
    return Decimal(match[1]) * Decimal(units[match[2].lower()])


def parse_latency(value: object) -> int:
    """``5ms`` → µs."""
    microseconds = int(_quantity(value, _SECONDS, "5ms") * 10**6)
    if microseconds > MAX_LATENCY_US:
        raise ValueError(f"{value} is more than {MAX_LATENCY_US // 10**6} s: is the unit right?")
    return microseconds


def parse_seconds(value: object) -> float:
    """``30s`` → seconds, above zero."""
    seconds = float(_quantity(value, _SECONDS, "30s"))
    if seconds <= 0:
        raise ValueError("must be longer than nothing")
    return seconds


def parse_bandwidth(value: object) -> int:
    """``100mbit`` → bits per second, above zero. Units are decimal, as tc's."""
    bits = int(_quantity(value, _BITS, "100mbit"))
    if bits <= 0:
        raise ValueError(f"{value} is no bandwidth: must be above zero (no key means no limit)")
    return bits


def parse_share(value: object) -> float:
    """``40%`` → part of the whole, above none and at most all of it."""
    percent = _quantity(value, {"%": 1}, "40%")
    if not 0 < percent <= 100:
        raise ValueError(f"{value} is no share: must be above 0% and at most 100%")
    return float(percent / 100)


def parse_load(value: object) -> float:
    """``30%`` → part of the whole, all of it at most."""
    percent = _quantity(value, {"%": 1}, "30%")
    if percent > 100:
        raise ValueError(f"{value} is more than all: at most 100%")
    return float(percent / 100)


def parse_word(value: object) -> str:
    """A tag, region or affinity: free, but it must survive being shown in a list."""
    text = value if isinstance(value, str) else ""
    if not _WORD.fullmatch(text):
        raise ValueError(f"must be a word such as eu-west, not {quoted(value)}")
    return text


def parse_words(value: object) -> tuple[str, ...]:
    """A list of words, each once; a single one needs no brackets."""
    listed = value if isinstance(value, list) else [value]
    words = tuple(parse_word(item) for item in listed)
    if len(set(words)) < len(words):
        raise ValueError("names something twice")
    return words


def one_of(what: str, known: tuple[str, ...]) -> Field:
    """One of some names."""

    def parse(value: object) -> str:
        if value not in known:
            raise ValueError(f"{quoted(value)} is not a {what} {suggestion(str(value), known)}")
        return str(value)

    return Field(parse, {"enum": list(known)})


def parse_loss(value: object) -> float:
    """``0.1%`` → probability."""
    percent = _quantity(value, {"%": 1}, "0.1%")
    if percent >= 100:
        raise ValueError(f"{value} leaves nothing: must be below 100%")
    return float(percent / 100)


def integer(low: int, high: int, unit: str = "") -> Field:
    """A whole number within bounds."""

    def parse(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise ValueError(f"must be a whole number, not {quoted(value)}")  # noqa: TRY004
        if not low <= value <= high:
            raise ValueError(f"{value} is not in {low} … {high}{unit}")
        return value

    return Field(parse, {"type": "integer", "minimum": low, "maximum": high})


def parse_boolean(value: object) -> bool:
    """true or false; YAML 1.2 has no yes and no."""
    if not isinstance(value, bool):
        raise ValueError(f"must be true or false, not {quoted(value)}")  # noqa: TRY004
    return value


def _parse_tier(value: object) -> str:
    if value not in TIERS:
        raise ValueError(f"{quoted(value)} is not a spawn tier {suggestion(str(value), TIERS)}")
    return str(value)


def parse_network(value: object) -> Network:
    """A prefix, IPv4 or IPv6, without host bits."""
    if not isinstance(value, str):
        raise ValueError(f"must be a prefix such as 10.77.0.0/16, not {quoted(value)}")  # noqa: TRY004
    return ipaddress.ip_network(value)


def network_of(version: int, least: int, example: str) -> Field:
    """A prefix of one IP version with at least ``least`` addresses."""

    def parse(value: object) -> str:
        network = parse_network(value)
        if network.version != version:
            raise ValueError(f"must be an IPv{version} prefix such as {example}, not {value}")
        if network.num_addresses < least:
            raise ValueError(f"{value} is too small: {least} addresses are the least")
        return str(network)

    return Field(parse, {"type": "string", "examples": [example]})


def _parse_prefixes(value: object) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise ValueError(f"must be a list of prefixes, not {quoted(value)}")  # noqa: TRY004
    return tuple(str(parse_network(item)) for item in value)


def _parse_services(value: object) -> dict[str, tuple[str, ...]]:
    if not isinstance(value, dict):
        raise ValueError(f"must map names to commands, not {quoted(value)}")  # noqa: TRY004
    found = {}
    parse_name = name_parser("service", MAX_SERVICE_NAME)
    for key, command in value.items():
        words = shlex.split(command) if isinstance(command, str) else command
        plain = isinstance(words, list) and all(isinstance(w, (str, int, float)) for w in words)
        if not plain or not words:
            raise ValueError(
                f"{quoted(key)}: must be a command such as [python3, -m, http.server], "
                f"not {quoted(command)}"
            )
        found[parse_name(key)] = tuple(str(word) for word in words)
    return found


def _parse_rate(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e6:
        raise ValueError(f"must be a number above zero, not {quoted(value)}")
    return float(value)


def _written(pattern: str, *examples: str) -> dict[str, Any]:
    return {"type": "string", "pattern": f"^{pattern}$", "examples": list(examples)}


_NUMBER = r"([0-9]+(\.[0-9]*)?|\.[0-9]+)\s*"
_ZERO = {"const": 0}
_DURATION = _written(_NUMBER + "(us|µs|ms|s|m|min)", "5ms", "30s")

_ONE_WORD = {"type": "string", "pattern": f"^{WORD_PATTERN}$"}
DURATION = Field(parse_latency, {"anyOf": [_DURATION, _ZERO]})
SECONDS = Field(parse_seconds, _DURATION)
BANDWIDTH = Field(
    parse_bandwidth, _written(_NUMBER + "([kKmMgGtT]?[bB][iI][tT])(/s)?", "100mbit", "1gbit")
)
LOSS = Field(parse_loss, {"anyOf": [_written(_NUMBER + "%", "0.1%"), _ZERO]})
SHARE = Field(parse_share, _written(_NUMBER + "%", "40%"))
WORDS = Field(
    parse_words,
    {"anyOf": [_ONE_WORD, {"type": "array", "items": _ONE_WORD, "uniqueItems": True}]},
)

LINK_FIELDS: dict[str, Field] = {
    "cost": integer(1, MAX_COST),
    "latency": DURATION,
    "jitter": DURATION,
    "bandwidth": BANDWIDTH,
    "loss": LOSS,
    "affinities": WORDS,
    "mtu": integer(MIN_LINK_MTU, MAX_LINK_MTU, " bytes"),
    "state": one_of("state of a link", (UP, DOWN)),
}
"""Attributes of a link."""

LIMIT_FIELDS: dict[str, Field] = {
    "guests": integer(1, 1022),
    "guest_memory_mib": integer(64, 1 << 24, " MiB"),
    "held_packets": integer(1, 1 << 16),
    "held_total": integer(1, 1 << 20),
    "held_seconds": integer(1, 1 << 20, " s"),
    "memory_reserve_mib": integer(0, 1 << 24, " MiB"),
    "spawns_per_second": Field(_parse_rate, {"type": "number", "exclusiveMinimum": 0}),
}
"""Capacity of a host."""
assert LIMIT_FIELDS.keys() == Limits.__dataclass_fields__.keys()

POOL_FIELDS: dict[str, Field] = {
    "minimum": integer(0, 1022),
    "maximum": integer(0, 1022),
    "memory_floor_mib": integer(0, 1 << 24, " MiB"),
}
"""Guests kept ready on a host."""
assert POOL_FIELDS.keys() == PoolConfig.__dataclass_fields__.keys()

LIVENESS_FIELDS: dict[str, Field] = {
    "enabled": Field(parse_boolean, {"type": "boolean"}),
    "slow": DURATION,
    "fast": DURATION,
    "multiplier": integer(1, 50),
    "steady": DURATION,
}
"""How links are watched; times are µs."""


def liveness(given: dict[str, Any]) -> LivenessConfig:
    """The configuration that parsed LIVENESS_FIELDS describe.

    Raises ValueError when its times do not go together.
    """
    times = ("slow", "fast", "steady")
    renamed = {
        (f"{k}_ms" if k in times else k): v / 1e3 if k in times else v for k, v in given.items()
    }
    found = LivenessConfig(**renamed)
    if not 1 <= found.fast_ms <= found.slow_ms:
        raise ValueError(
            f"fast ({found.fast_ms:g} ms) must be at least 1 ms, and not longer than slow "
            f"({found.slow_ms:g} ms)"
        )
    return found


HOST_FIELDS: dict[str, Field] = {
    "prefixes": Field(
        _parse_prefixes, {"type": "array", "items": {"type": "string"}, "uniqueItems": True}
    ),
    "tags": WORDS,
    "region": Field(parse_word, _ONE_WORD),
    "load": Field(parse_load, {"anyOf": [_written(_NUMBER + "%", "30%"), _ZERO]}),
    "tier": Field(_parse_tier, {"enum": list(TIERS)}),
    "idle_timeout": SECONDS,
    "guest_memory_mib": integer(64, 1 << 16, " MiB"),
    "guest_subnet": network_of(4, 8, "100.115.0.0/22"),
    "announce": Field(parse_boolean, {"type": "boolean"}),
    "protect": Field(parse_boolean, {"type": "boolean"}),
    "spawning": Field(parse_boolean, {"type": "boolean"}),
    "watch_agents": Field(parse_boolean, {"type": "boolean"}),
    "services": Field(
        _parse_services,
        {
            "type": "object",
            "propertyNames": {"pattern": f"^{NAME_PATTERN}$", "maxLength": MAX_SERVICE_NAME},
            "additionalProperties": {
                "anyOf": [
                    {"type": "string", "minLength": 1},
                    {"type": "array", "items": {"type": ["string", "number"]}, "minItems": 1},
                ]
            },
        },
    ),
}
"""Options of a host; ``limits``, ``pool`` and ``policy`` are mappings of their own."""
