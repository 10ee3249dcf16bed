"""The command line of a guest's QEMU, made fit to be started by hand.

Owns: adapted, template_of. May import: errors. Pure. The command line is a real guest's, so the
reference has the very devices the fabric's guests have; changed is only what libvirt hands over as
open descriptors, and what is the guest's own.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fabric.errors import EnvironmentFault

DESCRIPTORS = ("fd", "vhost", "vhostfd")
"""Of a network backend: libvirt opens the tap, by hand QEMU does."""


@dataclass(frozen=True)
class Place:
    """Where one reference guest is, and who."""

    name: str
    tap: str
    mac: str
    address: str
    """IPv4 with prefix length, for a guest that boots."""
    monitor: Path
    channel: Path


def adapted(argv: Sequence[str], place: Place) -> list[str]:
    """``argv`` of a guest that libvirt started, for one that is started by hand at ``place``.

    Raises EnvironmentFault when it is not the command line we know how to change.
    """
    found = [argv[0]]
    for option, value in _options(argv[1:]):
        if value is None:
            # -S: libvirt has it wait for "cont". By hand it goes on by itself.
            found += [] if option == "-S" else [option]
            continue
        change = _CHANGES.get(option)
        new = change(value, place) if change else value
        found += [] if new is None else [option, new]
    whole = " ".join(found)
    own = (str(place.monitor), str(place.channel), place.tap, place.mac)
    if missing := [each for each in own if each not in whole]:
        raise EnvironmentFault(
            f"libvirt starts QEMU with another command line than expected: no place for {missing}",
            cure="adapt fabric.lab.bench.raw_command",
        )
    return found


def template_of(argv: Sequence[str]) -> Path | None:
    """The directory of the template a guest is a copy of; None for one that booted."""
    for option, value in _options(argv[1:]):
        if option == "-object" and (path := re.search(r"mem-path=([^,]+)", value or "")):
            return Path(path[1]).parent
    return None


def _options(words: Sequence[str]) -> list[tuple[str, str | None]]:
    """(option, its value or None), in order; QEMU's options begin with a hyphen, no value does."""
    found: list[tuple[str, str | None]] = []
    for word in words:
        if word.startswith("-"):
            found.append((word, None))
        elif found and found[-1][1] is None:
            found[-1] = (found[-1][0], word)
    return found


def _name(_value: str, place: Place) -> str:
    return f"guest={place.name}"


def _object(value: str, _place: Place) -> str | None:
    # libvirt's secret is in a file that goes with the real guest.
    return None if '"secret"' in value else value


def _append(value: str, place: Place) -> str:
    return re.sub(r"fabric\.ip=\S+", f"fabric.ip={place.address}", value)


def _chardev(value: str, place: Place) -> str:
    for identity, path in (("charmonitor", place.monitor), ("charchannel0", place.channel)):
        if value.startswith(f"socket,id={identity},"):
            return f"socket,id={identity},path={path},server=on,wait=off"
    return value


def _netdev(value: str, place: Place) -> str:
    if not value.startswith("{"):
        return value
    kept = {name: v for name, v in json.loads(value).items() if name not in DESCRIPTORS}
    return json.dumps({**kept, "ifname": place.tap, "script": "no", "downscript": "no"})


def _device(value: str, place: Place) -> str:
    return json.dumps({**json.loads(value), "mac": place.mac}) if '"mac"' in value else value


_CHANGES: dict[str, Callable[[str, Place], str | None]] = {
    "-name": _name,
    "-object": _object,
    "-append": _append,
    "-chardev": _chardev,
    "-netdev": _netdev,
    "-device": _device,
}
