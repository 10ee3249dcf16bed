"""Every name and mark the lab builder puts on this machine, derived from (lab, host, node).

Owns: the naming rules of namespaces, bridges, veth pairs and files of a lab, and the ownership
mark. May import: errors, host.identity. Nothing is random: what was made can be recognised, and
what was not made by us can never match both the name and the mark.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from fabric.host.identity import MAX_INTERFACE_NAME, lab_tag

NAMESPACE_PREFIX = "fabric-"
ALIAS_PREFIX = "fabric:"
GUEST_INTERFACE = "guests"
"""Inner end of the veth pair that leads from a host's namespace to its guests' bridge."""
LINKS_HOST = "-links"
"""Owner name of the link emulator. A host name never starts with a hyphen, so it cannot clash."""

# libvirt makes the taps: `ft`; `fb` and `fv` are ours. See fabric.host.identity.
_DERIVED = re.compile(r"f[bvt](?P<tag>[0-9a-f]{4})h?[0-9a-f]+(g\d+)?")


@dataclass(frozen=True)
class Owner:
    """Whom a thing belongs to, as written in its mark."""

    lab: str
    host: str

    def alias(self) -> str:
        """The mark: an interface alias (``ip link show`` prints it)."""
        return f"{ALIAS_PREFIX}{self.lab}:{self.host}"

    @classmethod
    def from_alias(cls, alias: str | None) -> Owner | None:
        """Inverse of :meth:`alias`; None for anything that is not a mark of ours."""
        if not alias or not alias.startswith(ALIAS_PREFIX):
            return None
        lab, separator, host = alias.removeprefix(ALIAS_PREFIX).partition(":")
        return cls(lab, host) if separator and lab and host else None


def namespace_name(lab: str, host: str) -> str:
    """Network namespace that stands for a host, as ``ip netns`` shows it."""
    return f"{NAMESPACE_PREFIX}{lab}-{host}"


def emulator_namespace(lab: str) -> str:
    """Network namespace all links of the lab run through."""
    return namespace_name(lab, LINKS_HOST)


def bridge_name(lab: str, node: int) -> str:
    """Bridge of a host's guests, in the root namespace."""
    return f"fb{lab_tag(lab)}h{node}"


def veth_name(lab: str, node: int) -> str:
    """Outer end of the veth pair into a host's namespace, a port of its bridge."""
    return f"fv{lab_tag(lab)}h{node}"


def link_watch_key(host: str) -> str:
    """What a host's link watch is recorded as. No service can be called so: see NAME_PATTERN."""
    return f"{host}/-links"


def underlay_interface(peer: str, interface: int) -> str:
    """Interface to a neighbour inside a host's namespace; ``interface`` is its id on that host."""
    plain = f"to-{peer}"
    return plain if len(plain) <= MAX_INTERFACE_NAME else f"l{interface}"


def emulator_ports(link: int) -> tuple[str, str]:
    """The two interfaces of link number ``link`` inside the emulator's namespace."""
    return f"e{link}a", f"e{link}b"


def middle_ports(link: int) -> tuple[str, str]:
    """The veth pair inside the emulator's namespace that a limited or impaired link runs through:
    what enters one comes out of the other."""
    return f"m{link}a", f"m{link}b"


def aside_ports(link: int) -> tuple[str, str]:
    """A second such pair, at which the emulator takes frames off."""
    return f"n{link}a", f"n{link}b"


def tag_of_interface(name: str) -> str | None:
    """The lab tag in a derived interface name of the root namespace, None if it is not one."""
    match = _DERIVED.fullmatch(name)
    return match["tag"] if match else None
