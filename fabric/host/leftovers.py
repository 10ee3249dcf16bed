"""What a former life of this host's orchestrator left behind.

Owns: finding and ending it. May import: host.domains, host.journal.
"""

from __future__ import annotations

from fabric.host.domains import Hypervisor
from fabric.host.journal import Journal

GUEST_KIND = "guest"
"""Kind of the journal's entries that stand for domains."""


def clear_leftovers(hypervisor: Hypervisor, journal: Journal, lab: str, host: str) -> int:
    """Destroy this host's domains, known by our mark or by an open journal entry. Blocks.

    Returns how many there were. Raises HypervisorDown, SpawnFailed (one cannot be ended).
    """
    marked = {domain.name for domain in hypervisor.list_owned(lab, host)}
    noted = {entry.name for entry in journal.open_entries() if entry.kind == GUEST_KIND}
    for name in sorted(marked | noted):
        hypervisor.destroy(name)
        journal.done(GUEST_KIND, name)
    return len(marked | noted)
