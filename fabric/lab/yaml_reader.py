"""YAML with the place of everything in it, so that a mistake can be shown where it stands.

Owns: reading YAML text into plain data; the only importer of ruamel.yaml. May import: errors,
routing.policy_document (how a place is written).

The composed node tree is walked here rather than loaded: a loader stops at the first duplicate key,
and knows no line for a plain number.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from fabric.errors import ConfigError
from fabric.routing.policy_document import place

Steps = tuple[str | int, ...]
"""Keys and positions that lead to a value."""

MAX_FILE_SIZE = 4 * 1024 * 1024
"""Bytes. A lab of a thousand hosts is well below one MiB."""
MAX_DEPTH = 32
"""Levels of nesting; ours has six, and an anchor inside itself has no end."""

# YAML 1.2 core schema, https://yaml.org/spec/1.2.2/#1032-tag-resolution
_NULL = re.compile(r"|~|null|Null|NULL")
_TRUE, _FALSE = re.compile(r"true|True|TRUE"), re.compile(r"false|False|FALSE")
_INTEGER = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.inf|\.nan")
_CORE_TAG = "tag:yaml.org,2002:"


class Source:
    """One file: its data, the line of every value, and the mistakes found so far."""

    def __init__(self, name: str) -> None:
        """``name``: the path as the user wrote it."""
        self.name = name
        self.data: Any = None
        self._lines: dict[Steps, int] = {}
        self._problems: list[tuple[int, str]] = []

    def line(self, path: Steps) -> int:
        """1-based line of a value, or of the nearest thing around it."""
        while path and path not in self._lines:
            path = path[:-1]
        return self._lines.get(path, 1)

    def problem(self, path: Steps, message: str) -> None:
        """Remember a mistake at ``path``."""
        line = self.line(path)
        where = f"{place(path)}: " if path else ""
        self._problems.append((line, f"{self.name}:{line}: {where}{message}"))

    def adopt(self, path: Steps, problems: tuple[str, ...]) -> None:
        """Remember mistakes of another file that ``path`` refers to."""
        self._problems.extend((self.line(path), text) for text in problems)

    @property
    def problems(self) -> tuple[str, ...]:
        """Every mistake as ``FILE:LINE: PLACE: MESSAGE``, in the order of the file."""
        return tuple(text for _, text in sorted(self._problems, key=lambda found: found[0]))

    def raise_problems(self, what: str) -> None:
        """Raise ConfigError when there are any."""
        if count := len(self._problems):
            mistakes = "1 mistake" if count == 1 else f"{count} mistakes"
            raise ConfigError(f"{what} {self.name} has {mistakes}", self.problems)

    # -- from the node tree ----------------------------------------------------------------------

    def load(self, node: Any) -> None:
        """Fill from a composed document."""
        self.data = self._value(node, ()) if node is not None else None

    def _value(self, node: Any, path: Steps) -> Any:
        self._lines.setdefault(path, node.start_mark.line + 1)
        if len(path) > MAX_DEPTH:
            self.problem(path[:1], f"is nested deeper than {MAX_DEPTH} levels")
            return None
        tag = str(node.tag or "")
        if tag and not tag.startswith((_CORE_TAG, "!!")) and tag != "!":
            self.problem(path, f"has the tag {tag}, and tags are not understood here")
        kind = type(node).__name__
        if kind == "MappingNode":
            return self._mapping(node, path)
        if kind == "SequenceNode":
            return [self._value(item, (*path, n)) for n, item in enumerate(node.value)]
        return _scalar(node.value) if node.style is None else node.value

    def _mapping(self, node: Any, path: Steps) -> dict[str, Any]:
        found: dict[str, Any] = {}
        first: dict[str, int] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node.value, str):
                self._problems.append((line, f"{self.name}:{line}: a key must be a plain text"))
                continue
            key: str = key_node.value
            here = (*path, key)
            if key == "<<":
                self.problem(path, "merge keys (<<) are not understood; use defaults")
            elif key in first:
                text = f"{self.name}:{line}: {place(here)}: is there twice"
                self._problems.append((line, f"{text}, first on line {first[key]}"))
            else:
                first[key] = self._lines[here] = line
                found[key] = self._value(value_node, here)
        return found


def _scalar(text: str) -> Any:
    if _NULL.fullmatch(text):
        return None
    if _TRUE.fullmatch(text):
        return True
    if _FALSE.fullmatch(text):
        return False
    if _INTEGER.fullmatch(text):
        return int(text, 10 if text.lstrip("+-").isdigit() else 0)
    if _FLOAT.fullmatch(text):
        return float(text.replace(".inf", "inf").replace(".nan", "nan"))
    return text


def read_source(path: Path) -> Source:
    """Read one YAML file. Raises ConfigError when it cannot be read or is not YAML."""
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_FILE_SIZE + 1)
        text = raw.decode()
    except OSError as exc:
        raise ConfigError(f"{path}: cannot be read", (f"{path}:1: {exc.strerror or exc}",)) from exc
    except UnicodeDecodeError as exc:
        raise ConfigError(f"{path}: is not a text file", (f"{path}:1: {exc}",)) from exc
    if len(raw) > MAX_FILE_SIZE:
        raise ConfigError(f"{path}: is too large", (f"{path}:1: more than {MAX_FILE_SIZE} bytes",))
    return read_text(text, str(path))


def read_text(text: str, name: str) -> Source:
    """Read YAML text, called ``name`` in messages. Raises ConfigError on bad syntax."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import MarkedYAMLError, YAMLError

    source = Source(name)
    try:
        source.load(YAML(typ="safe", pure=True).compose(text))
    except MarkedYAMLError as exc:
        mark = exc.problem_mark or exc.context_mark
        line = mark.line + 1 if mark else 1
        told = " ".join(part for part in (exc.context, exc.problem) if part)
        raise ConfigError(f"{name} is not valid YAML", (f"{name}:{line}: {told}",)) from exc
    except (YAMLError, RecursionError) as exc:
        raise ConfigError(f"{name} is not valid YAML", (f"{name}:1: {exc}",)) from exc
    return source
