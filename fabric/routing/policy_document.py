"""From a policy document (plain data) to rules, with every mistake and its place.

Owns: the shape of the document. May import: fabric.wire, routing.{needs,rules} (it runs in the
guest; ``ipaddress`` is loaded only by documents that name prefixes).
"""

from __future__ import annotations

from fabric.routing.needs import DEFAULT_NEED, DSCP_NAMES, NEEDS, PROTOCOL_NAMES, protocol_id
from fabric.routing.rules import MATCH_KEYS, TIERS, Rule
from fabric.wire.inner import ICMP, ICMPV6, TCP, UDP

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

MAX_PORT = 65535
MAX_DSCP = 63
_TRANSPORTS = {"tcp": (TCP,), "udp": (UDP,), "icmp": (ICMP, ICMPV6)}

Problem = tuple[tuple[str | int, ...], str]
"""Where in the document (keys and positions), and what is wrong there."""


def place(path: tuple[str | int, ...]) -> str:
    """``("rules", 2, "match")`` as people write it: ``rules[2].match``."""
    text = ""
    for step in path:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else step
    return text or "document"


def read_rules(
    document: object, protocols: dict[int, str] = PROTOCOL_NAMES
) -> tuple[tuple[Rule, ...], list[Problem]]:
    """The rules and every mistake in the document; with mistakes the rules are not to be used.

    ``protocols``: names of all of them, the network's own ones included.
    """
    if not isinstance(document, dict):
        return (), [((), "must be a mapping with the key rules")]
    problems: list[Problem] = [
        ((key,), f"unknown key {key!r} (known: rules)") for key in document if key != "rules"
    ]
    listed = document.get("rules")
    if listed is None:
        listed = []
    if not isinstance(listed, list):
        return (), [*problems, (("rules",), "must be a list of rules")]
    rules = [_read_rule(rule, ("rules", n), problems, protocols) for n, rule in enumerate(listed)]
    names: dict[str, int] = {}
    for number, rule in enumerate(rules):
        first = names.setdefault(rule.name, number)
        if first != number:
            text = f"{rule.name!r} is already the name of rules[{first}]"
            problems.append((("rules", number, "name"), text))
    return tuple(rules), problems


def _read_rule(
    rule: object, path: tuple[str | int, ...], problems: list[Problem], protocols: dict[int, str]
) -> Rule:
    unnamed = place(path)
    if not isinstance(rule, dict):
        problems.append((path, "must be a mapping with match and need (or protocol)"))
        return Rule(unnamed, (), DEFAULT_NEED, NEEDS[DEFAULT_NEED])
    known = ("name", "match", "need", "protocol", "reply", "tier", "protect")
    for key in rule:
        if key not in known:
            problems.append(((*path, key), f"unknown key (known: {', '.join(known)})"))
    name = rule.get("name", unnamed)
    if not isinstance(name, str) or not name:
        problems.append(((*path, "name"), f"must be a text, not {name!r}"))
        name = unnamed
    conditions = tuple(_read_match(rule, path, problems))
    need, protocol = _read_target(rule, path, problems, protocols)
    reply = rule.get("reply")
    if reply is not None:
        reply = _read_protocol(reply, (*path, "reply"), problems, protocols)
    tier = rule.get("tier", "")
    if tier and tier not in TIERS:
        problems.append(((*path, "tier"), f"unknown tier {tier!r} (known: {', '.join(TIERS)})"))
        tier = ""
    protect = rule.get("protect", False)
    if not isinstance(protect, bool):
        problems.append(((*path, "protect"), f"must be true or false, not {protect!r}"))
        protect = False
    return Rule(name, conditions, need, protocol, tier, reply, protect)


def _read_protocol(
    value: object, path: tuple[str | int, ...], problems: list[Problem], protocols: dict[int, str]
) -> int | None:
    number = protocol_id(value, protocols) if isinstance(value, (str, int)) else None
    if number is None:
        known = ", ".join(protocols.values())
        problems.append((path, f"unknown protocol {value!r} (known: {known}, 128 to 255)"))
    return number


def _read_target(
    rule: dict[Any, Any],
    path: tuple[str | int, ...],
    problems: list[Problem],
    protocols: dict[int, str],
) -> tuple[str, int]:
    need, protocol = rule.get("need"), rule.get("protocol")
    if (need is None) == (protocol is None):
        problems.append((path, "needs either need or protocol, and not both"))
    elif need is not None:
        if isinstance(need, str) and need in NEEDS:
            return need, NEEDS[need]
        problems.append(((*path, "need"), f"unknown need {need!r} (known: {', '.join(NEEDS)})"))
    else:
        number = _read_protocol(protocol, (*path, "protocol"), problems, protocols)
        if number is not None:
            return "", number
    return DEFAULT_NEED, NEEDS[DEFAULT_NEED]


def _read_match(
    rule: dict[Any, Any], path: tuple[str | int, ...], problems: list[Problem]
) -> Iterator[tuple[str, tuple[Any, ...]]]:
    match = rule.get("match")
    if not isinstance(match, dict):
        problems.append(
            ((*path, "match"), "must be a mapping of conditions ({} matches everything)")
        )
        return
    for key, written in match.items():
        where = (*path, "match", key)
        if key not in _READERS:
            problems.append((where, f"unknown condition (known: {', '.join(MATCH_KEYS)})"))
            continue
        values = written if isinstance(written, list) else [written]
        if not values:
            problems.append((where, "an empty list can never match"))
        read = []
        for value in values:
            try:
                read.append(_READERS[key](value))
            except (ValueError, TypeError) as exc:
                problems.append((where, str(exc)))
        yield key, tuple(read)


def _read_glob(value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, (str, int)) or value == "":
        raise ValueError(f"must be a text, * and ? are wildcards, not {value!r}")
    return str(value)


def _read_ports(value: object) -> tuple[int, int]:
    low, dash, high = str(value).partition("-")
    if not low.isdigit() or (dash and not high.isdigit()):
        raise ValueError(f"must be a port or a range such as 8000-8099, not {value!r}")
    ports = int(low), int(high or low)
    if not ports[0] <= ports[1] <= MAX_PORT:
        raise ValueError(f"{value!r} is not a range within 0-{MAX_PORT}")
    return ports


def _read_prefix(value: object) -> object:
    import ipaddress

    if not isinstance(value, str):
        raise ValueError(f"must be a prefix such as 10.77.0.0/24, not {value!r}")  # noqa: TRY004
    return ipaddress.ip_network(value)


def _read_dscp(value: object) -> int:
    if isinstance(value, str) and value.lower() in DSCP_NAMES:
        return DSCP_NAMES[value.lower()]
    if isinstance(value, bool) or not str(value).isdigit() or int(str(value)) > MAX_DSCP:
        raise ValueError(f"must be a class such as EF or AF21, or 0-{MAX_DSCP}, not {value!r}")
    return int(str(value))


def _read_transport(value: object) -> tuple[int, ...]:
    if value not in _TRANSPORTS:
        raise ValueError(f"must be one of {', '.join(_TRANSPORTS)}, not {value!r}")
    return _TRANSPORTS[str(value)]


_READERS: dict[str, Callable[[object], Any]] = {
    "executable": _read_glob,
    "user": _read_glob,
    "cgroup": _read_glob,
    "unit": _read_glob,
    "transport": _read_transport,
    "source_port": _read_ports,
    "destination_port": _read_ports,
    "source": _read_prefix,
    "destination": _read_prefix,
    "dscp": _read_dscp,
}
