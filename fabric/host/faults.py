"""The named steps in a guest's life, and stopping at one of them.

Owns: the list of steps, and the stop, which is for tests only. May import: nothing of fabric.

Whatever can be killed can be killed between any two things it does. The steps are those moments:
each is reached when what its comment says has just become true. A test that writes a step's name
into the file ``stop-at`` of a host's directory has that host's orchestrator stop itself there
(SIGSTOP, once), so that the test can kill whom it likes exactly then, and let it go on or not.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from enum import Enum
from pathlib import Path


class Step(Enum):
    """In the order of a connection's life. Some are of one spawn tier only."""

    CLAIMED = "claimed"
    """The guest has a slot."""
    ATTACHED = "attached"
    """Its neighbour entries are in the kernel."""
    INTENDED = "intended"
    """It is in the journal."""
    CREATED = "created"
    """Its domain exists, and only the hypervisor knows."""
    SECURED = "secured"
    """Its bridge port takes nothing but its MAC."""
    STARTED = "started"
    """The orchestrator knows, too."""
    JOINED = "joined"
    """Its control channel is connected."""
    REACHED = "reached"
    """Cold: its SSH server answers."""
    PUSHED = "pushed"
    """Cold: its agent was started."""
    GREETED = "greeted"
    """Cold: the agent said hello."""
    ARMED = "armed"
    """Copies: it waits, paused, for its state."""
    RESUMED = "resumed"
    """Copies: it runs, and has found what it was told."""
    CONFIGURED = "configured"
    """It was told its connection (a copy that wakes up for it: before RESUMED)."""
    READY = "ready"
    """It said that it is ready."""
    RELEASED = "released"
    """The held packets were delivered to it."""
    RECORDED = "recorded"
    """The connection's record is written."""
    STEERED = "steered"
    """The kernel sends the connection's packets to it."""
    UNSTEERED = "unsteered"
    """No more."""
    FORGOTTEN = "forgotten"
    """The connection's record is gone."""
    ENDING = "ending"
    """The guest is to be destroyed."""
    DESTROYED = "destroyed"
    """Its domain is proven gone."""
    DISOWNED = "disowned"
    """Its journal entry and its channel socket are gone."""
    DETACHED = "detached"
    """Its neighbour entries are gone; the slot is about to be free."""


OnStep = Callable[[Step], None]
"""Called at each step, on the thread that takes it."""


def pass_by(_step: Step) -> None:
    """An OnStep that does nothing."""


class StopAt:
    """An OnStep that stops the process where the file says; a look at it costs 3 µs."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __call__(self, step: Step) -> None:
        try:
            wanted = self._path.read_text().strip()
        except OSError:
            return
        if wanted == step.value:
            self._path.unlink(missing_ok=True)
            stop_here()


def stop_here() -> None:
    """Stop the whole process at this very instruction, until SIGCONT."""
    # To this thread: a signal to the process might be taken by another one, a moment later.
    signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)
