"""QEMU's monitor (QMP), by way of libvirt.

Owns: executing one command in a domain's QEMU, and the only import of ``libvirt_qemu``. May import:
errors. What to execute, and in which order, is :mod:`fabric.host.vmm.migration`'s; libvirt's own
errors are the caller's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import libvirt_qemu

from fabric.errors import SpawnFailed


class DomainMonitor:
    """Implements :class:`fabric.host.vmm.migration.Monitor`, but raises libvirtError as well."""

    def __init__(self, domain: Any, name: str) -> None:
        self._domain = domain
        self._name = name

    def __call__(
        self, command: str, arguments: Mapping[str, Any] | None = None, files: Sequence[int] = ()
    ) -> Any:
        line = json.dumps({"execute": command, "arguments": arguments or {}})
        # Without descriptors the plain call: the other needs libvirt 8.2.
        if files:
            answer = libvirt_qemu.qemuMonitorCommandWithFiles(self._domain, line, list(files), 0)
            answer = answer[0] if isinstance(answer, tuple | list) else answer
        else:
            answer = libvirt_qemu.qemuMonitorCommand(self._domain, line, 0)
        document = json.loads(answer)
        if "error" in document:
            raise SpawnFailed(f"{command} in {self._name}: {document['error'].get('desc')}")
        return document["return"]
