"""What a copy will do first, done before its template is saved, and again by copies kept ready.

Owns: a connection that does not exist. May import: the standard library, fabric.wire,
fabric.routing, fabric.agent.identity.

A copy that wakes up runs everything for the first time: its interpreter specializes each
instruction (PEP 659), its kernel maps each page and fills each cache. Done here, that is in the
picture, for the price of a moment when a template is made. Nothing of it stays: addresses are from
the ranges for documentation (RFC 5737), and nobody is told. Packets leave for a gateway that drops
what is of no connection of its own.

A copy that runs before its connection comes does the connection's part again: its emulator
translates code when it meets it, and translations are in no picture.
"""

from __future__ import annotations

from fabric.routing.forwarder import Forwarder, ForwarderConfig
from fabric.routing.needs import DISJOINT, PROTOCOL_NAMES
from fabric.routing.policy import ApplicationFacts
from fabric.routing.table import ForwardingTable, NextHop
from fabric.wire.control import Configure, Identify, encode
from fabric.wire.inner import TCP, FiveTuple
from fabric.wire.packet import PORT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from fabric.agent.identity import Uplink

ROUNDS = 24
"""More than the interpreter needs to specialize what it runs."""
AGAIN = 12
"""Rounds of a copy: code that runs the first time is translated, the second time it is joined."""
_HERE, _THERE = 1, 2
_SOURCE, _DESTINATION, _NEIGHBOUR, _GUEST = "192.0.2.1", "198.51.100.1", "203.0.113.1", "192.0.2.77"
_NOBODYS_MAC = "02:fa:fa:00:00:00"
_MTU = 1500
_INNER = bytes.fromhex(
    "4500003c0000400040060000" + "c0000201" + "c6336401"  # RFC 791: to, from, as above
    "eb92005012609028" + "00000000" + "a002fec000000000" + "020405b40402080a" * 2 + "0103030a"
)
"""A TCP connection's first packet: 60 bytes."""


def prepare(uplink: Uplink, perform: Callable[[bytes, Uplink], None]) -> None:
    """Have ``perform`` obey what a host says to a copy, until it is well practised. The uplink is
    nobody's before; afterwards it wants to be released."""
    table = _table()
    connection = encode(_connection(table, _MTU))
    first = encode(_identity()) + connection
    for _ in range(ROUNDS):
        uplink.release()
        perform(first, uplink)
        perform(connection, uplink)  # with an address: by the way all packets but the first take
        _relay(table)


def practise(overlay_mtu: int, perform: Callable[[bytes], None]) -> None:
    """The same for one that is somebody already; ``overlay_mtu``: as it is."""
    table = _table()
    lines = encode(_connection(table, overlay_mtu))
    for _ in range(AGAIN):
        perform(lines)
        _relay(table)


def _table() -> ForwardingTable:
    # As a host gives it to a connection: some rows with paths, all protocols' names.
    there, names = str(_THERE), {str(n): {"name": name} for n, name in PROTOCOL_NAMES.items()}
    rows: dict[str, dict[str, list[Any]]] = {number: {there: [2, [0]]} for number in names}
    rows[str(DISJOINT)] = {there: [2, [0], [], [[2, _THERE]]]}
    document = {
        "node": _HERE,
        "version": 595_673_133,
        "hops": [[_THERE, _NEIGHBOUR, 1, _MTU]],
        "protocols": names,
        "routes": rows,
    }
    return ForwardingTable.from_json(document)


def _identity() -> Identify:
    return Identify(
        mac=_NOBODYS_MAC,
        address=_GUEST,
        mtu=_MTU,
        overlay_mtu=_MTU,
        entropy="",
        host_key="",
        host_now_us=1,
    )


def _connection(table: ForwardingTable, overlay_mtu: int) -> Configure:
    """As long as a real one, numbers as large: each kind of number has code of its own."""
    flow = FiveTuple(4, TCP, _SOURCE, 60306, _DESTINATION, 80)
    words = ("/usr/bin/curl", "-sS", "-o", "/dev/null", "http://there/1MiB")
    facts = ApplicationFacts(flow, 4082, words[0], words, "root", 0, "/user.slice", None, 0)
    return Configure(
        connection=4421235923,
        lab="lab",
        host="here",
        node=_HERE,
        guest=1,
        role="ingress",
        source_node=_HERE,
        destination_node=_THERE,
        table=table.to_json(),
        interfaces={_NEIGHBOUR: 1},
        port=PORT,
        overlay_mtu=overlay_mtu,
        requested_at_us=1795835903687551,
        host_now_us=1795835903691425,
        facts=facts.to_json(),
        policy={},
        first=[_INNER.hex()],
        first_sequence=751769220636673,
        notice_key="687623c74713a4fa",
    )


def _relay(table: ForwardingTable) -> None:
    """The engine's other ways: through a relay, and out at the destination."""
    to_relay = ForwardingTable(3, 1, {(_THERE, 0): (NextHop(_HERE, _NEIGHBOUR, 1, _MTU, 1),)})
    actions = Forwarder(_config(3), to_relay).from_application([_INNER], 1)
    for node in (_HERE, _THERE):
        datagrams = [(d, _NEIGHBOUR) for batch in actions.batches for d in batch.datagrams()]
        actions = Forwarder(_config(node), table).from_underlay(datagrams, 2)


def _config(node: int) -> ForwarderConfig:
    return ForwarderConfig(
        node=node,
        guest=1,
        connection=1,
        source_node=3,
        destination_node=_THERE,
        protocol=0,
        interfaces={_NEIGHBOUR: 1},
    )
