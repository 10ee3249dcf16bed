"""The ``validate`` of a topology file: what ``fabric check`` tries on the running lab.

Owns: what may be written of a check. May import: routing, lab. Host, link and protocol names are
looked up in the same file, so a check never names something that is not there.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from fabric.lab.fields import (
    LOSS,
    NAME_PATTERN,
    SECONDS,
    Field,
    integer,
    name_parser,
    one_of,
    parse_boolean,
    parse_words,
    quoted,
    suggestion,
)
from fabric.lab.links_section import pairs_in
from fabric.lab.model import LinkModel
from fabric.lab.section import Section
from fabric.lab.validation import PING, PROGRAMS, TCP, UDP, Blackout, Check, Path, Reach
from fabric.routing.needs import NEEDS

MAX_CHECK_NAME = 48
MAX_COUNT = 1000


def _parse_text(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError(f"must be a name, not {quoted(value)}")
    return value


_TEXT = Field(_parse_text, {"type": "string", "minLength": 1})
_LINK = Field(_parse_text, {"type": "string", "pattern": ".-.", "examples": ["h1-h2"]})
_BOOLEAN = Field(parse_boolean, {"type": "boolean"})
_ONE_HOST = {"type": "string", "pattern": f"^{NAME_PATTERN}$"}
_HOSTS = Field(
    parse_words,
    {"anyOf": [_ONE_HOST, {"type": "array", "items": _ONE_HOST, "uniqueItems": True}]},
)
_COMMON: dict[str, Field] = {
    "from": _TEXT,
    "to": _TEXT,
    "need": one_of("need", tuple(NEEDS)),
    "protocol": _TEXT,
    "within": SECONDS,
}
KINDS: dict[str, dict[str, Field]] = {
    "reach": {
        **_COMMON,
        "with": one_of("way to try it", PROGRAMS),
        "count": integer(1, MAX_COUNT),
        "port": integer(1, 65535),
        "loss": LOSS,
    },
    "path": {
        **_COMMON,
        "with": one_of("way to try it", (TCP, UDP, PING)),
        "contains": _HOSTS,
        "avoids": _HOSTS,
        "exactly": _HOSTS,
    },
    "blackout": {**_COMMON, "cut": _LINK, "below": SECONDS, "silent": _BOOLEAN},
}
"""Kind → what may be said of a check of it."""
REQUIRED = {
    "reach": ("from", "to"),
    "path": ("from", "to"),
    "blackout": ("from", "to", "cut", "below"),
}
ENTRY_FIELDS: dict[str, Field] = {
    "name": Field(
        name_parser("check", MAX_CHECK_NAME),
        {"type": "string", "pattern": f"^{NAME_PATTERN}$", "maxLength": MAX_CHECK_NAME},
    ),
    "warning": _BOOLEAN,
}
"""What may stand beside the kind."""
_CLASSES: dict[str, type[Check]] = {"reach": Reach, "path": Path, "blackout": Blackout}
_ATTRIBUTES = {"from": "source", "to": "target", "with": "program"}


def read_validate(
    top: Section, hosts: Sequence[str], links: Sequence[LinkModel], protocols: Collection[str]
) -> tuple[Check, ...]:
    """All checks without mistakes; the others are remembered as problems."""
    listed = top.values.get("validate")
    if listed is None:
        return ()
    if not isinstance(listed, list):
        top.problem("validate", f"must be a list of checks, not {quoted(listed)}")
        return ()
    reader = _Reader(hosts, links, protocols)
    found = []
    for position, entry in enumerate(listed):
        section = Section(top.source, ("validate", position), entry, (*ENTRY_FIELDS, *KINDS))
        if entry is None:
            section.source.problem(section.path, f"needs one of {', '.join(KINDS)}")
        check = reader.read(section)
        if check is not None:
            found.append(check)
    return tuple(found)


class _Reader:
    def __init__(
        self, hosts: Sequence[str], links: Sequence[LinkModel], protocols: Collection[str]
    ) -> None:
        self._hosts = hosts
        self._links = {frozenset((link.a, link.b)) for link in links}
        self._protocols = protocols
        self._taken: set[str] = set()

    def read(self, section: Section) -> Check | None:
        beside = section.read_all(ENTRY_FIELDS)
        kinds = [kind for kind in KINDS if kind in section.values]
        if len(kinds) != 1:
            if section.values:
                what = f"needs one of {', '.join(KINDS)}, and has {' and '.join(kinds) or 'none'}"
                section.source.problem(section.path, what)
            return None
        kind = kinds[0]
        inner = section.section(kind, tuple(KINDS[kind]))
        written = inner.read_all(KINDS[kind])
        good = self._complete(inner, kind)
        good = self._names(inner, written) and good
        if kind == "path":
            good = self._path(inner, written) and good
        if kind == "blackout" and "cut" in written:
            written["cut"] = self._cut(inner, written["cut"])
            good = good and written["cut"] is not None
        name = self._name(section, kind, written, beside)
        if not good or name is None:
            return None
        given: dict[str, Any] = {_ATTRIBUTES.get(key, key): v for key, v in written.items()}
        return _CLASSES[kind](name=name, warning=beside.get("warning", False), **given)

    def _complete(self, inner: Section, kind: str) -> bool:
        missing = [key for key in REQUIRED[kind] if key not in inner]
        if missing:
            inner.source.problem(inner.path, f"needs {' and '.join(missing)}")
        return not missing

    def _names(self, inner: Section, written: dict[str, Any]) -> bool:
        good = True
        for key in ("from", "to", "contains", "avoids", "exactly"):
            value = written.get(key, ())
            for host in (value,) if isinstance(value, str) else value:
                if host not in self._hosts:
                    inner.problem(
                        key, f'host "{host}" is not defined {suggestion(host, self._hosts)}'
                    )
                    good = False
        if written.get("from", 0) == written.get("to", 1):
            inner.problem("to", "is the host the traffic comes from")
            good = False
        protocol = written.get("protocol")
        if protocol is not None and protocol not in self._protocols:
            known = suggestion(protocol, self._protocols)
            inner.problem("protocol", f'protocol "{protocol}" is not defined {known}')
            good = False
        if protocol is not None and "need" in written:
            inner.problem("protocol", "wins over need: give one of them")
            good = False
        if "port" in written and written.get("with") != "http":
            inner.problem("port", "is only asked with: http")
            good = False
        return good

    def _path(self, inner: Section, written: dict[str, Any]) -> bool:
        exactly = written.get("exactly", ())
        ends = (written.get("from"), written.get("to"))
        if not any(key in inner for key in ("contains", "avoids", "exactly")):
            inner.source.problem(inner.path, "needs one of contains, avoids, exactly")
            return False
        if exactly and (exactly[0], exactly[-1]) != ends:
            inner.problem("exactly", f"must lead from {ends[0]} to {ends[1]}, both named")
            return False
        clash = [h for h in written.get("avoids", ()) if h in (*written.get("contains", ()), *ends)]
        if clash:
            inner.problem("avoids", f"{clash[0]} is on every path that is asked for")
        return not clash

    def _cut(self, inner: Section, text: str) -> tuple[str, str] | None:
        found = [p for p in pairs_in(text, self._hosts) if frozenset(p) in self._links]
        if len(found) == 1:
            return found[0]
        known = [f"{a}-{b}" for a, b in (sorted(link) for link in self._links)]
        inner.problem("cut", f'there is no link "{text}" {suggestion(text, sorted(known))}')
        return None

    def _name(
        self, section: Section, kind: str, written: dict[str, Any], beside: dict[str, Any]
    ) -> str | None:
        """The name given, or one made of kind and ends; derived ones are counted up."""
        name: str = beside.get("name", "")
        if not name:
            base = name = f"{kind}-{written.get('from')}-{written.get('to')}"
            number = 1
            while name in self._taken:
                number += 1
                name = f"{base}-{number}"
        elif name in self._taken:
            section.problem("name", f'"{name}" is already that of another check')
            return None
        self._taken.add(name)
        return name
