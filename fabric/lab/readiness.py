"""Waiting until a lab's hosts have guests to give.

Owns: what "ready" means beyond "answers". May import: errors, lab. A lab works before that: its
first connections only wait longer, and compete with what is being prepared for the processors.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from fabric.errors import FabricError
from fabric.lab.client import HostClient
from fabric.lab.spec import LabSpec

DEADLINE = 120.0
"""Seconds. A template takes 10 s without KVM, and the first guest of each host one more; on a
machine with a dozen hosts and other work it takes a minute."""

_POLL = 0.25


def wait_for_guests(
    spec: LabSpec, progress: Callable[[str], None], deadline: float = DEADLINE
) -> dict[str, str]:
    """Wait until no host prepares guests any more; host → what it still does after ``deadline``
    seconds. A host that does not answer is not waited for: others say so better."""
    clients = [HostClient(host.host, host.api_socket) for host in spec.hosts]
    end, said = time.monotonic() + deadline, ""
    while True:
        pending = {c.host: what for c in clients if (what := _preparing(c))}
        if not pending or time.monotonic() >= end:
            return pending
        news = f"preparing guests: {'; '.join(sorted(set(pending.values())))}"
        if news != said:
            progress(news)
        said = news
        time.sleep(_POLL)


def _preparing(client: HostClient) -> str:
    try:
        return str(client.get("/v1/status").get("preparing", ""))
    except FabricError:
        return ""
