"""The life of a guest as a table.

Owns: states, events, and which event is allowed in which state. May import: errors. Pure.

An absent pair is an error: it means the code around the table believes something false. Events that
may come late or twice (a domain's stop, a second destroy) are present, and lead nowhere.
"""

from __future__ import annotations

from enum import Enum

from fabric.errors import FabricError


class GuestState(Enum):
    """Where a guest is in its life."""

    REQUESTED = "requested"
    """It has a slot and an identity; nothing exists yet."""
    CREATING = "creating"
    """Written in the journal; the hypervisor may have it, or not yet."""
    BOOTING = "booting"
    PREPARED = "prepared"
    """A copy that waits, paused, for its state: it never ran."""
    PROVISIONING = "provisioning"
    """Its SSH server answers; the agent is on its way."""
    CONFIGURING = "configuring"
    """Its agent runs, and is told what to do."""
    WARM = "warm"
    """A copy that runs, is somebody, and waits for a connection."""
    RUNNING = "running"
    DRAINING = "draining"
    """Alive, but no new work comes to it."""
    DESTROYING = "destroying"
    GONE = "gone"
    """Absence is proven; the slot is free."""
    FAILED = "failed"
    """Broken or lost; whatever is left of it must still be destroyed."""


class GuestEvent(Enum):
    """What happens to a guest."""

    CREATE = "create"
    CREATED = "created"
    REACHED = "reached"
    PUSHED = "pushed"
    ARMED = "armed"
    """Nothing but the word is missing for it to take its state."""
    RESUMED = "resumed"
    """It goes on where its template was saved, agent and all."""
    PARKED = "parked"
    """It is somebody, and has no connection yet."""
    CLAIMED = "claimed"
    """A connection came for it."""
    READY = "ready"
    ADOPT = "adopt"
    """It was found running, and proved that it carries its connection."""
    DRAIN = "drain"
    FAULT = "fault"
    """A step failed."""
    LOST = "lost"
    """The domain stopped or the agent's channel ended by itself."""
    DESTROY = "destroy"
    ABSENT = "absent"
    """The hypervisor proved that nothing is left."""


class IllegalTransition(FabricError):
    """A defect of the fabric itself: an event in a state that cannot have it."""


_S, _E = GuestState, GuestEvent

TRANSITIONS: dict[tuple[GuestState, GuestEvent], GuestState] = {
    (_S.REQUESTED, _E.CREATE): _S.CREATING,
    (_S.CREATING, _E.CREATED): _S.BOOTING,
    (_S.BOOTING, _E.REACHED): _S.PROVISIONING,
    (_S.PROVISIONING, _E.PUSHED): _S.CONFIGURING,
    (_S.BOOTING, _E.ARMED): _S.PREPARED,
    (_S.PREPARED, _E.RESUMED): _S.CONFIGURING,
    (_S.CONFIGURING, _E.PARKED): _S.WARM,
    (_S.WARM, _E.CLAIMED): _S.CONFIGURING,
    (_S.CONFIGURING, _E.READY): _S.RUNNING,
    (_S.REQUESTED, _E.ADOPT): _S.RUNNING,
    (_S.RUNNING, _E.DRAIN): _S.DRAINING,
    (_S.DRAINING, _E.DRAIN): _S.DRAINING,
    # Anything may fail or be lost until its destruction began.
    **{
        (state, event): _S.FAILED
        for state in (
            _S.REQUESTED,
            _S.CREATING,
            _S.BOOTING,
            _S.PROVISIONING,
            _S.PREPARED,
            _S.CONFIGURING,
            _S.WARM,
            _S.RUNNING,
            _S.DRAINING,
            _S.FAILED,
        )
        for event in (_E.FAULT, _E.LOST)
    },
    # Anything may be destroyed at any time; where nothing exists, that proves quickly.
    **{(state, _E.DESTROY): _S.DESTROYING for state in _S if state is not _S.GONE},
    (_S.DESTROYING, _E.ABSENT): _S.GONE,
    # Destruction that could not be proven is tried again; the stop it causes is expected.
    (_S.DESTROYING, _E.FAULT): _S.DESTROYING,
    (_S.DESTROYING, _E.LOST): _S.DESTROYING,
    # Late news of the dead.
    (_S.GONE, _E.DESTROY): _S.GONE,
    (_S.GONE, _E.LOST): _S.GONE,
}


def advance(state: GuestState, event: GuestEvent) -> GuestState:
    """The state after ``event``. Raises IllegalTransition for a pair that is not in the table."""
    try:
        return TRANSITIONS[state, event]
    except KeyError:
        raise IllegalTransition(
            f"a guest that is {state.value} cannot have the event {event.value}",
            cure="report this as a defect, with the host's event log",
        ) from None


def diagram() -> str:
    """The table as a Mermaid state diagram; docs/lifecycle.md shows it.

    What may happen to nearly every guest (being lost, being destroyed) is left to the text around.
    """
    drawn = [
        f"    {state.value} --> {target.value}: {event.value}"
        for (state, event), target in TRANSITIONS.items()
        if target is not state and event not in (_E.FAULT, _E.LOST, _E.DESTROY)
    ]
    first, last = _S.REQUESTED.value, _S.GONE.value
    ends = [f"    [*] --> {first}", f"    {_S.FAILED.value} --> {_S.DESTROYING.value}: destroy"]
    return "\n".join(["stateDiagram-v2", *ends, *drawn, f"    {last} --> [*]"]) + "\n"
