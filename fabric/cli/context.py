"""Which lab, which directories: what the commands take from the environment.

Owns: environment variables and the choice of a lab. May import: errors, lab (lazily). Together with
the other modules of ``cli`` the only place that reads the environment.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fabric.errors import NameUnknown

if TYPE_CHECKING:
    from fabric.host.config import HostConfig
    from fabric.lab.builder import Machine
    from fabric.lab.spec import LabSpec
    from fabric.lab.state import LabState


def run_dir() -> Path:
    """Runtime files of all labs; FABRIC_RUN moves it."""
    return Path(os.environ.get("FABRIC_RUN", "/run/fabric"))


def state_dir() -> Path:
    """Image and keys; FABRIC_STATE moves it."""
    return Path(os.environ.get("FABRIC_STATE", "/var/lib/fabric"))


def libvirt_uri() -> str:
    """FABRIC_LIBVIRT_URI, or the system's libvirt."""
    return os.environ.get("FABRIC_LIBVIRT_URI", "qemu:///system")


def machine() -> Machine:
    """This machine, for the lab builder."""
    from fabric.lab.builder import Machine

    return Machine.real(libvirt_uri())


def pick_lab(name: str | None) -> LabState:
    """The lab meant: the one named, or the only one that is up.

    Raises NameUnknown listing the labs when there is none or more than one to choose from.
    """
    from fabric.lab import state

    if name:
        return state.require(run_dir(), name)
    labs = state.recorded_labs(run_dir())
    if not labs:
        raise NameUnknown("no lab is up", cure="`fabric up FILE` brings one up")
    if len(labs) > 1:
        raise NameUnknown(
            f"{len(labs)} labs are up: {', '.join(labs)}",
            cure="name one by --lab NAME or in the environment variable FABRIC_LAB",
        )
    return state.require(run_dir(), labs[0])


def pick_host(spec: LabSpec, name: str) -> HostConfig:
    """A host of the lab. Raises NameUnknown listing the hosts."""
    host = spec.host(name)
    if host is None:
        known = ", ".join(each.host for each in spec.hosts)
        raise NameUnknown(f"lab {spec.name} has no host {name}", cure=f"its hosts are: {known}")
    return host


def complete_host(incomplete: str) -> list[str]:
    """Host names for the shell's completion: silent about every error."""
    try:
        hosts = pick_lab(os.environ.get("FABRIC_LAB")).spec.hosts
    except Exception:
        return []
    return [host.host for host in hosts if host.host.startswith(incomplete)]


def complete_link(incomplete: str) -> list[str]:
    """Links of the lab, ``A-B``."""
    try:
        links = pick_lab(os.environ.get("FABRIC_LAB")).spec.links
    except Exception:  # as in complete_host
        return []
    return [link.label for link in links if link.label.startswith(incomplete)]


def complete_protocol(incomplete: str) -> list[str]:
    """Names of protocols: the lab's, when there is one, or the built-in ones."""
    from fabric.routing.needs import PROTOCOL_NAMES

    try:
        protocols = pick_lab(os.environ.get("FABRIC_LAB")).spec.topology().definitions
        names = [protocol.name for protocol in protocols.values()]
    except Exception:  # as in complete_host
        names = list(PROTOCOL_NAMES.values())
    return [name for name in names if name.startswith(incomplete)]


def complete_need(incomplete: str) -> list[str]:
    """Needs an application may declare."""
    from fabric.routing.needs import NEEDS

    return [need for need in NEEDS if need.startswith(incomplete)]


def complete_tier(incomplete: str) -> list[str]:
    """Spawn tiers."""
    from fabric.routing.rules import TIERS

    return [tier for tier in TIERS if tier.startswith(incomplete)]


def complete_lab(incomplete: str) -> list[str]:
    """Lab names for the shell's completion."""
    from fabric.lab.state import recorded_labs

    return [lab for lab in recorded_labs(run_dir()) if lab.startswith(incomplete)]


LabOption = Annotated[
    str | None,
    typer.Option(
        "--lab",
        envvar="FABRIC_LAB",
        help="Which lab; default: the only one that is up.",
        autocompletion=complete_lab,
    ),
]
HostArgument = Annotated[str, typer.Argument(help="A host.", autocompletion=complete_host)]
