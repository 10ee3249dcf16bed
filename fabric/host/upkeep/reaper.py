"""What has no owner goes, what is ours and missing is mended: the comparison, without the doing.

Owns: what is compared, and what follows from a difference. May import: wire. Pure. Looking and
doing are :mod:`fabric.host.upkeep.housekeeping`'s.

Looking takes time, and life goes on meanwhile: a guest may appear or go between two looks. So a
difference counts only if it is one by what was known before the look *and* by what is known after
it (:func:`due`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass, field
from enum import Enum

from fabric.wire.inner import FiveTuple


class Verb(Enum):
    """What can be done about a difference."""

    INSTALL = "install"
    """Put the base rules of steering back."""
    DESTROY = "destroy"
    """End whatever has a guest's name, and prove its absence. Target: the name."""
    LOSE = "lose"
    """Treat a guest as lost: its connection gets another. Target: (name, UUID)."""
    UNSTEER = "unsteer"
    """Take a steering entry away. Target: a flow or a connection id."""
    STEER = "steer"
    """Steer a connection to its guest (again). Target: the connection id."""
    DETACH = "detach"
    """Take a slot's neighbour entries away. Target: the slot."""
    ATTACH = "attach"
    """Put a slot's neighbour entries back. Target: the slot."""
    RECORD = "record"
    """Write a connection's record. Target: the connection id."""
    FORGET = "forget"
    """Remove a connection's record. Target: the connection id."""
    UNLINK = "unlink"
    """Remove the channel socket of a slot. Target: the slot."""
    ABANDON = "abandon"
    """Remove a template's draft. Target: its name."""


Target = str | int | FiveTuple | tuple[str, str] | None


@dataclass(frozen=True)
class Action:
    """One thing to do. ``what`` and ``why`` are for people."""

    verb: Verb
    what: str
    why: str
    target: Target = None


@dataclass(frozen=True)
class Observed:
    """What is there. ``None``: it could not be looked at, so nothing follows from it."""

    domains: Mapping[str, str] | None = None
    """Domains with this host's mark: name → UUID."""
    processes: Set[str] = frozenset()
    """Names of this host's guests that a QEMU process has in its command line."""
    journal: Set[str] = frozenset()
    """Names of guests in open entries of the journal."""
    flows: Mapping[FiveTuple, int] | None = None
    """Steering: flow → slot. None: there are no rules at all."""
    connections: Mapping[int, int] = field(default_factory=dict)
    """Steering: connection id → slot."""
    neighbours: Mapping[int, str] = field(default_factory=dict)
    """Slot → MAC."""
    records: Set[int] = frozenset()
    """Connection ids."""
    channels: Set[int] = frozenset()
    """Slots that have a channel socket."""
    drafts: Set[str] = frozenset()
    """Drafts of templates that nobody is working on."""


@dataclass(frozen=True)
class KnownGuest:
    slot: int
    uuid: str
    """Empty until its domain exists."""
    alive: bool
    """Its domain should be there."""


@dataclass(frozen=True)
class Known:
    """What should be there."""

    guests: Mapping[str, KnownGuest]
    """By the name of the domain; every slot that is not free."""
    established: Mapping[int, int]
    """Connection id → slot of its guest."""
    flows: Mapping[FiveTuple, int]
    """Local flow → connection id, of established connections."""
    neighbours: Mapping[int, str]
    """Slot → MAC."""
    live: Set[int] = frozenset()
    """Ids of all connections, held ones included: those keep the record they have."""


def due(observed: Observed, before: Known, after: Known) -> list[Action]:
    """What to do about ``observed``, which was gathered between the two moments, in order."""
    earlier = set(plan(observed, before))
    return [action for action in plan(observed, after) if action in earlier]


def plan(observed: Observed, known: Known) -> list[Action]:
    """What would make the two agree, in order."""
    return [
        *_rules(observed),
        *_ownerless(observed, known),
        *_missing_domains(observed, known),
        *_steering(observed, known),
        *_neighbours(observed, known),
        *_files(observed, known),
    ]


def _rules(observed: Observed) -> Iterator[Action]:
    if observed.flows is None:
        yield Action(Verb.INSTALL, "steering rules", "they are gone")


def _ownerless(observed: Observed, known: Known) -> Iterator[Action]:
    found = {name: "domain" for name in observed.domains or {}}
    if observed.domains is not None:
        # While libvirt is silent it may know them, and nothing could be ended cleanly.
        found |= {name: "process of" for name in observed.processes - set(found)}
        found |= {name: "journal entry of" for name in observed.journal - set(found)}
    for name in sorted(set(found) - set(known.guests)):
        yield Action(Verb.DESTROY, f"{found[name]} {name}", "no guest has this name", name)


def _missing_domains(observed: Observed, known: Known) -> Iterator[Action]:
    if observed.domains is None:
        return
    for name, guest in sorted(known.guests.items()):
        if guest.alive and guest.uuid and observed.domains.get(name) != guest.uuid:
            target = (name, guest.uuid)
            yield Action(Verb.LOSE, f"guest {name}", "libvirt does not know its domain", target)


def _steering(observed: Observed, known: Known) -> Iterator[Action]:
    flows = observed.flows or {}
    for flow in flows:
        if flow not in known.flows:
            why = "no established connection has this flow"
            yield Action(Verb.UNSTEER, f"steering of {_words(flow)}", why, flow)
    for number in observed.connections:
        if number not in known.established:
            why = "the connection is not established"
            yield Action(Verb.UNSTEER, f"steering of {number:016x}", why, number)
    owned = {number: flow for flow, number in known.flows.items()}
    for number, slot in sorted(known.established.items()):
        flow_slot = flows.get(owned[number]) if number in owned else slot
        if (observed.connections.get(number), flow_slot) != (slot, slot):
            why = f"it does not lead to its guest g{slot}"
            yield Action(Verb.STEER, f"steering of {number:016x}", why, number)


def _neighbours(observed: Observed, known: Known) -> Iterator[Action]:
    for slot in sorted(observed.neighbours.keys() - known.neighbours.keys()):
        yield Action(Verb.DETACH, f"neighbour entries of g{slot}", "no guest has this slot", slot)
    for slot, mac in sorted(known.neighbours.items()):
        if observed.neighbours.get(slot) != mac:
            why = f"they do not lead to {mac}"
            yield Action(Verb.ATTACH, f"neighbour entries of g{slot}", why, slot)


def _files(observed: Observed, known: Known) -> Iterator[Action]:
    for number in sorted(observed.records - known.live):
        why = "there is no such connection"
        yield Action(Verb.FORGET, f"record of {number:016x}", why, number)
    for number in sorted(known.established.keys() - observed.records):
        yield Action(Verb.RECORD, f"record of {number:016x}", "there is none", number)
    slots = {guest.slot for guest in known.guests.values()}
    for slot in sorted(observed.channels - slots):
        yield Action(Verb.UNLINK, f"channel of g{slot}", "no guest has this slot", slot)
    for name in sorted(observed.drafts):
        yield Action(Verb.ABANDON, f"template draft {name}", "nobody is making it", name)


def _words(flow: FiveTuple) -> str:
    source, destination = flow.source, flow.destination
    return f"{source}:{flow.source_port} > {destination}:{flow.destination_port}"
