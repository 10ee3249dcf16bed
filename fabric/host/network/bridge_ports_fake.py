"""Bridge ports that only remember: for tests of the guest life cycle.

Owns: a stand-in for :class:`fabric.host.network.bridge_ports.KernelBridgePorts`. May import:
errors.
"""

from __future__ import annotations

from fabric.errors import SpawnFailed


class FakeBridgePorts:
    """Test helpers: ``fail_next``, ``locks``, ``log``."""

    def __init__(self, log: list[tuple[str, str]] | None = None) -> None:
        """``log``: where to write ("secure", tap), e.g. a fake hypervisor's."""
        self.log = [] if log is None else log
        self.secured: dict[str, str] = {}
        """Tap → MAC."""
        self.fail_next = 0
        """How many of the next ports cannot be secured."""
        self.locks = True
        """Whether the kernel knows locked ports."""

    def secure(self, tap: str, mac: str) -> bool:
        self.log.append(("secure", tap))
        if self.fail_next:
            self.fail_next -= 1
            raise SpawnFailed(f"the port {tap} cannot be secured: told to fail")
        self.secured[tap] = mac
        return self.locks
