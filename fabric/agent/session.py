"""One connection as the host described it: which protocol, which forwarder, what to answer.

Owns: turning Configure into a Forwarder and Ready. May import: fabric.wire, fabric.routing.
"""

from __future__ import annotations

from fabric.routing.forwarder import Forwarder, ForwarderConfig
from fabric.routing.needs import PROTOCOL_NAMES
from fabric.routing.policy import ApplicationFacts, Policy, Selection, select
from fabric.routing.table import ForwardingTable
from fabric.wire.control import Ready

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from fabric.wire.control import Configure

CARRIED = "carried in packet"
"""The rule of every host but the ingress: somebody chose before."""


class Session:
    """See the module docstring. Made by :meth:`begin`."""

    def __init__(
        self, forwarder: Forwarder, selection: Selection | None, names: dict[int, str]
    ) -> None:
        """``names``: of the protocols this network has."""
        self.forwarder = forwarder
        self._names = names or PROTOCOL_NAMES
        self._selection = selection

    @classmethod
    def begin(cls, message: Configure, now_us: int) -> Session:
        """Select the protocol (at the ingress) and build the forwarder.

        Raises ConfigError for a table or policy that cannot be read.
        """
        table = ForwardingTable.from_json(message.table)
        selection = None
        protocol = message.protocol
        if message.facts is not None and message.node == message.source_node:
            policy = Policy.from_json(message.policy or {}, table.names or PROTOCOL_NAMES)
            selection = select(policy, ApplicationFacts.from_json(message.facts))
            protocol = selection.protocol
        config = ForwarderConfig(
            node=message.node,
            guest=message.guest,
            connection=message.connection,
            source_node=message.source_node,
            destination_node=message.destination_node,
            protocol=protocol,
            spawn_ms=max(0, now_us - message.requested_at_us) // 1000,
            interfaces=message.interfaces,
            reply_protocol=selection.reply_protocol if selection is not None else None,
            first_sequence=message.first_sequence,
        )
        return cls(Forwarder(config, table), selection, table.names)

    def install(self, table: dict[str, Any]) -> None:
        """Use another table. Raises ConfigError."""
        self.forwarder.install(ForwardingTable.from_json(table))

    def ready(self) -> Ready:
        """The answer to Configure."""
        forwarder, selection = self.forwarder, self._selection
        config = forwarder.config
        if selection is not None:
            name, need = selection.name, selection.need
            rule, reason = selection.rule, selection.reason
        else:
            known = "" if forwarder.protocol is None else f"protocol {forwarder.protocol}"
            protocol = -1 if forwarder.protocol is None else forwarder.protocol
            name = self._names.get(protocol, known)
            need, rule, reason = "", CARRIED, CARRIED
        return Ready(
            config.connection, forwarder.protocol, name, need, rule, reason, config.spawn_ms
        )
