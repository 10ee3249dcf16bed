"""What the fabric asks of a hypervisor, and the facts it gets back.

Owns: the seam between the guest life cycle and libvirt. May import: nothing of ours. Implemented by
:mod:`fabric.host.vmm.hypervisor` and, for tests, :mod:`fabric.host.vmm.hypervisor_fake`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Protocol


class DomainEvent(Enum):
    """What :meth:`Hypervisor.watch` reports."""

    STARTED = "started"
    STOPPED = "stopped"
    RECONNECTED = "reconnected"
    """The connection was lost and is back; events in between were missed. No name, no UUID."""


Watcher = Callable[[DomainEvent, str, str], None]
"""Called with the event, the domain's name and its UUID, on a thread of the hypervisor's own. News
may come late: by then the name may be another domain's, the UUID never is."""


@dataclass(frozen=True)
class DomainHandle:
    """A domain that was created."""

    name: str
    uuid: str
    pid: int | None
    """Process id of QEMU where the hypervisor tells."""
    started_at: float
    """Unix seconds at which libvirt reported it running."""


@dataclass(frozen=True)
class OwnedDomain:
    """A domain that carries our mark."""

    name: str
    lab: str
    host: str
    index: int
    connection: int
    active: bool
    started_at: float
    """Unix seconds, from the mark."""
    uuid: str = ""


class Hypervisor(Protocol):
    """What the fabric asks of a hypervisor. Implementations are thread-safe."""

    def create(self, xml: str, *, paused: bool = False) -> DomainHandle:
        """Create and start; ``paused``: have it wait for :meth:`resume`.

        Raises Conflict (name taken), SpawnFailed, HypervisorDown."""

    def resume(self, name: str) -> None:
        """Let a paused domain run. Raises SpawnFailed, HypervisorDown."""

    def save_state(self, name: str, path: Path) -> None:
        """Stop a running domain for good and write its devices' state to a new file.

        Its memory must be a shared file: it is whole there when this returns. Raises SpawnFailed,
        HypervisorDown, OSError (``path``)."""

    def arm(self, name: str, path: Path) -> None:
        """Make a paused domain ready for the state :meth:`save_state` wrote to ``path``.

        Raises SpawnFailed, HypervisorDown, OSError (``path``)."""

    def wake(self, name: str) -> None:
        """Have an armed domain take its state and go on where it was saved.

        It may end a moment later, when the state does not fit it. Raises SpawnFailed,
        HypervisorDown."""

    def assign(self, name: str, mark: str) -> None:
        """Put another mark (an XML element) in place of the domain's.

        Raises SpawnFailed, HypervisorDown."""

    def destroy(self, name: str) -> None:
        """End the domain and prove its absence; idempotent.

        Raises SpawnFailed when something is still there after DESTROY_DEADLINE, HypervisorDown.
        """

    def list_owned(self, lab: str | None = None, host: str | None = None) -> list[OwnedDomain]:
        """Domains with our mark, by name. Raises HypervisorDown."""

    def watch(self, watcher: Watcher) -> None:
        """Report starts and stops of domains from now on, ours and others'."""

    def is_alive(self) -> bool:
        """Whether the hypervisor answers now."""

    def close(self) -> None:
        """Release the connection; domains stay. Idempotent."""
