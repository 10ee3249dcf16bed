"""One mapping of a file under check.

Owns: Section. May import: lab.fields, lab.yaml_reader. Reading never stops at a mistake: it
is remembered, a harmless value is returned, and the check goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeVar

from fabric.lab.fields import Field, quoted, suggestion
from fabric.lab.yaml_reader import Source, Steps

T = TypeVar("T")


class Section:
    """A mapping at ``path``; a key without a value counts as empty."""

    def __init__(self, source: Source, path: Steps, value: object, known: Collection[str]) -> None:
        """``known``: the keys that may appear; empty when any may."""
        self.source = source
        self.path = path
        self.values: dict[str, Any] = {}
        if isinstance(value, dict):
            self.values = value
        elif value is not None:
            source.problem(path, f"must be a mapping, not {quoted(value)}")
        for key in self.values:
            if known and key not in known:
                source.problem((*path, key), f'unknown key "{key}" {suggestion(key, known)}')

    def __contains__(self, key: str) -> bool:
        return self.values.get(key) is not None

    def problem(self, key: str, message: str) -> None:
        """Remember a mistake in the value of ``key``."""
        self.source.problem((*self.path, key), message)

    def read(self, key: str, parse: Callable[[object], T], default: T) -> T:
        """The parsed value; ``default`` when the key is absent, empty or wrong."""
        value = self.values.get(key)
        if value is None:
            return default
        try:
            return parse(value)
        except ValueError as exc:
            self.problem(key, str(exc))
            return default

    def read_all(self, fields: Mapping[str, Field]) -> dict[str, Any]:
        """The parsed values of all ``fields`` that are there and right."""
        found = {key: self.read(key, fields[key].parse, None) for key in fields}
        return {key: value for key, value in found.items() if value is not None}

    def section(self, key: str, known: Collection[str]) -> Section:
        """The mapping under ``key``."""
        return Section(self.source, (*self.path, key), self.values.get(key), known)
