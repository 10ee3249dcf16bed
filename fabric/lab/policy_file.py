"""Policy files: YAML of the rules in fabric.routing.policy.

Owns: reading them, and policies written inside a topology file. May import: errors, routing, lab.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fabric.errors import ConfigError
from fabric.lab.section import Section
from fabric.lab.yaml_reader import Source, Steps, read_source
from fabric.routing.needs import PROTOCOL_NAMES
from fabric.routing.policy_document import read_rules


def load_policy(path: Path | str, protocols: dict[int, str] = PROTOCOL_NAMES) -> dict[str, Any]:
    """The policy document of a file, ready for ``Policy.from_json``.

    Raises ConfigError listing every mistake with file, line and key.
    """
    source = read_source(Path(path))
    document = check_policy(source, (), source.data, protocols)
    source.raise_problems("policy")
    return document


def check_policy(
    source: Source, path: Steps, document: object, protocols: dict[int, str] = PROTOCOL_NAMES
) -> dict[str, Any]:
    """Check the policy document at ``path`` of ``source``; mistakes are remembered there.

    ``protocols``: names of all of them, the lab's own ones included.
    """
    if document is None:
        return {}
    _, problems = read_rules(document, protocols)
    for place, message in problems:
        source.problem((*path, *place), message)
    return document if isinstance(document, dict) else {}


def read_policy(section: Section, base: Path, protocols: dict[int, str]) -> dict[str, Any] | None:
    """The ``policy`` of a lab or host: inline, or the name of a file relative to ``base``.

    None when there is none. Mistakes of the file are remembered beside those of the section.
    """
    value = section.values.get("policy")
    if value is None:
        return None
    if not isinstance(value, str):
        return check_policy(section.source, (*section.path, "policy"), value, protocols)
    try:
        return load_policy(base / value, protocols)
    except ConfigError as exc:
        if exc.problems and not exc.message.endswith("cannot be read"):
            section.source.adopt((*section.path, "policy"), exc.problems)
        else:
            section.problem("policy", f"{exc.message}: {_reason(exc)}")
        return None


def _reason(exc: ConfigError) -> str:
    cause = exc.__cause__
    return cause.strerror if isinstance(cause, OSError) and cause.strerror else str(cause or exc)
