"""Waiting until what is measured is measured at rest.

Owns: Readiness. May import: errors, host, lab.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from fabric.errors import EnvironmentFault
from fabric.host.config import HostConfig
from fabric.lab.bench.bed import Bed

DEADLINE = 300.0
"""Seconds until a tier can be had: its template may have to be made first, its pool filled."""
POOLED = ("prepared", "warm")
_POLL = 0.1


class Readiness:
    """Of the hosts of a bed for connections of one tier."""

    def __init__(self, bed: Bed, tier: str) -> None:
        self._bed, self._tier = bed, tier
        self._templates: set[str] = set()
        """Hosts that have one."""

    def wait(self) -> None:
        """Until every host has what guests of the tier come from, and is done with making more.

        Raises EnvironmentFault when that takes too long.
        """
        for host in self._bed.hosts:
            if not host.spawning or self._tier == "cold":
                continue
            if self._tier in POOLED:
                self._await(host, f"full pool of tier {self._tier}", self._pool_is_full)
            elif host.host not in self._templates:
                self._await(host, "template", self._template_is_there)
                self._templates.add(host.host)

    def _pool_is_full(self, host: HostConfig) -> bool:
        kept = self._bed.client(host).get("/v1/status")["kept_ready"]
        return int(kept.get(self._tier, 0)) >= host.pool.minimum

    def _template_is_there(self, host: HostConfig) -> bool:
        events = self._bed.client(host).lines("/v1/events", since=0)
        return any(event["name"] == "template-ready" for event in events)

    def _await(self, host: HostConfig, what: str, there: Callable[[HostConfig], bool]) -> None:
        deadline = time.monotonic() + DEADLINE
        while not there(host):
            if time.monotonic() > deadline:
                raise EnvironmentFault(
                    f"{host.host}: no {what} after {DEADLINE:g} s",
                    cure="`fabric events` and the orchestrators' logs say why",
                )
            time.sleep(_POLL)
