"""What is known of the program behind a connection.

Owns: ApplicationFacts. May import: fabric.wire (it runs in the guest).
"""

from __future__ import annotations

from fabric.wire.fact import Fact
from fabric.wire.inner import FiveTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class ApplicationFacts(Fact):
    """What the kernel told about the program behind a flow. None: nobody knows."""

    flow: FiveTuple
    pid: int | None = None
    executable: str | None = None
    """Absolute path."""
    arguments: tuple[str, ...] = ()
    user: str | None = None
    uid: int | None = None
    cgroup: str | None = None
    """Path in the unified hierarchy, e.g. ``/system.slice/nginx.service``."""
    unit: str | None = None
    """Last ``.service`` or ``.scope`` component of the cgroup."""
    dscp: int = 0
    """Six bits, of the connection's first packet."""
    declared_need: str | None = None
    """FABRIC_NEED of the program's environment."""
    declared_protocol: str | None = None
    """FABRIC_PROTOCOL of the program's environment: a name or a number."""

    def to_json(self) -> dict[str, Any]:
        document = dict(zip(self.names, self.values(), strict=True))
        return {**document, "flow": self.flow.to_json(), "arguments": list(self.arguments)}

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> ApplicationFacts:
        """Inverse of :meth:`to_json`; ignores unknown keys.

        Raises KeyError, TypeError or ValueError on a malformed mapping.
        """
        known = {name: document[name] for name in cls.names if name in document}
        known["flow"] = FiveTuple.from_json(document["flow"])
        known["arguments"] = tuple(document.get("arguments", ()))
        return cls(**known)
