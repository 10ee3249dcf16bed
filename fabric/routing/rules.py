"""One policy rule: what it looks at, and whether it matches.

Owns: Rule and the conditions. May import: fabric.wire, routing.facts (it runs in the guest;
``ipaddress`` is loaded only by rules that name prefixes).
"""

from __future__ import annotations

from fabric.routing.facts import ApplicationFacts
from fabric.wire.fact import Fact

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


class Rule(Fact):
    """One policy rule: all of its conditions must hold, each by any one of its values."""

    name: str
    conditions: tuple[tuple[str, tuple[Any, ...]], ...]
    need: str
    """Empty where the rule names a protocol."""
    protocol: int
    tier: str = ""
    """How the guest of such a connection appears at its first host; empty: as the host has it."""
    reply: int | None = None
    """Protocol of the direction back; None: the same."""
    protect: bool = False
    """Have guests ready on the alternate paths of such a connection, too."""

    def matches(self, facts: ApplicationFacts) -> bool:
        """Whether every condition holds."""
        return all(_MATCHERS[key](facts, values) for key, values in self.conditions)

    def seen(self, facts: ApplicationFacts) -> str:
        """What the conditions looked at, for people."""
        return ", ".join(f"{key} {_SEEN[key](facts)}" for key, _ in self.conditions)


def glob_matches(pattern: str, text: str) -> bool:
    """``*`` is any run of characters (slashes too), ``?`` any one.

    No regular expressions: compiling one costs a guest more than the whole selection.
    """
    at = step = 0  # in text, in pattern
    star, mark = -1, 0  # the last * and where in text it stopped for now
    while at < len(text):
        if step < len(pattern) and pattern[step] == "*":
            star, mark = step, at
            step += 1
        elif step < len(pattern) and pattern[step] in ("?", text[at]):
            step += 1
            at += 1
        elif star >= 0:
            mark += 1
            step, at = star + 1, mark
        else:
            return False
    return not pattern[step:].strip("*")


def _match_executable(facts: ApplicationFacts, patterns: tuple[Any, ...]) -> bool:
    path = facts.executable
    if path is None:
        return False
    name = path[path.rfind("/") + 1 :]
    return any(glob_matches(p, path if "/" in p else name) for p in patterns)


def _match_text(field: str) -> Callable[[ApplicationFacts, tuple[Any, ...]], bool]:
    def match(facts: ApplicationFacts, patterns: tuple[Any, ...]) -> bool:
        value = getattr(facts, field)
        return value is not None and any(glob_matches(p, value) for p in patterns)

    return match


def _match_user(facts: ApplicationFacts, patterns: tuple[Any, ...]) -> bool:
    names = [str(who) for who in (facts.user, facts.uid) if who is not None]
    return any(glob_matches(p, name) for p in patterns for name in names)


def _match_port(field: str) -> Callable[[ApplicationFacts, tuple[Any, ...]], bool]:
    def match(facts: ApplicationFacts, ranges: tuple[Any, ...]) -> bool:
        if facts.flow.is_echo:  # what stands there is an identifier, not a port
            return False
        port: int = getattr(facts.flow, field)
        return any(low <= port <= high for low, high in ranges)

    return match


def _match_address(field: str) -> Callable[[ApplicationFacts, tuple[Any, ...]], bool]:
    def match(facts: ApplicationFacts, networks: tuple[Any, ...]) -> bool:
        import ipaddress

        address = ipaddress.ip_address(getattr(facts.flow, field))
        return any(address in network for network in networks)

    return match


def _match_dscp(facts: ApplicationFacts, codes: tuple[Any, ...]) -> bool:
    return facts.dscp in codes


def _match_transport(facts: ApplicationFacts, transports: tuple[Any, ...]) -> bool:
    return any(facts.flow.protocol in numbers for numbers in transports)


_MATCHERS: dict[str, Callable[[ApplicationFacts, tuple[Any, ...]], bool]] = {
    "executable": _match_executable,
    "user": _match_user,
    "cgroup": _match_text("cgroup"),
    "unit": _match_text("unit"),
    "transport": _match_transport,
    "source_port": _match_port("source_port"),
    "destination_port": _match_port("destination_port"),
    "source": _match_address("source"),
    "destination": _match_address("destination"),
    "dscp": _match_dscp,
}
_SEEN: dict[str, Callable[[ApplicationFacts], object]] = {
    "executable": lambda facts: facts.executable,
    "user": lambda facts: facts.user if facts.user is not None else facts.uid,
    "cgroup": lambda facts: facts.cgroup,
    "unit": lambda facts: facts.unit,
    "transport": lambda facts: facts.flow.protocol,
    "source_port": lambda facts: facts.flow.source_port,
    "destination_port": lambda facts: facts.flow.destination_port,
    "source": lambda facts: facts.flow.source,
    "destination": lambda facts: facts.flow.destination,
    "dscp": lambda facts: facts.dscp,
}
TIERS = ("cold", "template", "prepared", "warm")
"""Spawn tiers a guest can come from: a boot from the image; a copy of a booted guest; a copy whose
domain was created ahead and waits, paused, for its state; a copy that runs already and is idle."""
MATCH_KEYS = tuple(_MATCHERS)
"""What a rule can look at."""
