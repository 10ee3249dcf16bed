"""What host and agent tell each other over the guest's virtio-serial channel: JSON, one per line.

Owns: the messages and their codec. May import: fabric.wire.errors, fabric.wire.fact, json.

host → agent: Configure, InstallTable, Query, Align, Quiesce, Identify.
agent → host: Hello, Ready, AgentEvent, Counters, Traces, ClockReading, Identity, Quiesced,
Identified.
A line is ``{"type": NAME, …fields}``. Fields a receiver does not know are ignored, so that a newer
host can talk to an older agent; fields it lacks and that have no default are an error.
"""

from __future__ import annotations

import json

from fabric.wire.errors import ControlInvalid
from fabric.wire.fact import Fact

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from fabric.wire.packet import Buffer

MAX_LINE = 8 * 1024 * 1024
"""Bytes of one message: the table of a 10 000-node topology with four protocols is below 4 MiB."""


class Configure(Fact):
    """Everything a guest must know of its connection. Times are Unix µs of the host's clock."""

    connection: int
    lab: str
    host: str
    node: int
    guest: int
    role: str
    """ingress, transit or egress: a hint for events; the node ids decide."""
    source_node: int
    destination_node: int
    table: dict[str, Any]
    """ForwardingTable.to_json()."""
    interfaces: dict[str, int]
    """Underlay address of a neighbour → our interface id towards it."""
    port: int
    overlay_mtu: int
    requested_at_us: int
    host_now_us: int
    """The host's clock when it sent this message; the agent aligns its own by it."""
    facts: dict[str, Any] | None = None
    """ApplicationFacts.to_json(), at the ingress only."""
    policy: dict[str, Any] | None = None
    protocol: int | None = None
    """Fixed by the packet or the announcement everywhere but at the ingress."""
    first: list[str] = []  # noqa: RUF012 - a fact is never mutated
    """Hex of inner packets that wait already, at the ingress only: to be sent on before anything
    else is done."""
    first_sequence: int = 1
    """Number of the first packet this guest sends: above all of the guests it may succeed."""
    down: list[str] = []  # noqa: RUF012
    """Neighbours that must not be used, as in fabric.wire.notice."""
    notice_key: str = ""
    """Hex: the connection's key; see fabric.wire.notice. Empty: no notices will come."""


class InstallTable(Fact):
    """Replace the forwarding table."""

    table: dict[str, Any]


class Query(Fact):
    """Ask for ``counters``, the ``last`` newest ``traces``, a reading of the ``clock``, or the
    ``identity``, which is also how a quiet agent shows that it lives."""

    what: str
    last: int = 256


class Align(Fact):
    """Move the agent's clock forward by what the host found it to lack, µs."""

    delta_us: int


class Quiesce(Fact):
    """Become nobody, for a template is about to be saved: no address, no keys, and silent."""

    reason: str = "template"


class Identify(Fact):
    """Become somebody, after waking up as a copy of a template. Before it no frame leaves."""

    mac: str
    address: str
    """IPv4, without prefix length: the host is the only other one on this link."""
    mtu: int
    """Of the uplink, bytes."""
    overlay_mtu: int
    """Of the TUN, as every connection of this host will want it, bytes."""
    entropy: str
    """Hex, never used twice: without it every copy would draw the same random numbers."""
    host_key: str
    """Hex of the SSH server's Ed25519 key, private seed and public half (RFC 8032), 64 bytes."""
    host_now_us: int


class Hello(Fact):
    """The agent runs. ``uptime_us``: µs since the guest booted."""

    digest: str
    python: str
    uptime_us: int


class Ready(Fact):
    """Configured: the connection's packets are welcome."""

    connection: int
    protocol: int | None
    protocol_name: str
    need: str
    rule: str
    reason: str
    spawn_ms: int


class Quiesced(Fact):
    """Nobody is left in here. What the guest's kernel has, not what it was told."""

    addresses: list[str]


class Identified(Fact):
    """It is who the host said. ``mac`` and ``address`` as the guest's kernel has them, not as it
    was told; ``sample`` is the digest of random bytes drawn since: two guests never send the same;
    ``host_key`` is the public half of the SSH server's key, hex."""

    mac: str
    address: str
    sample: str
    host_key: str


class AgentEvent(Fact):
    """Something an operator may want to know of."""

    name: str
    fields: dict[str, Any]
    at_us: int


class Counters(Fact):
    """Sums since Configure; sent at most once a second and only when changed."""

    counters: dict[str, int]
    last_activity_us: int
    closing: bool
    """TCP said goodbye: FIN both ways, or a reset."""


class Traces(Fact):
    """Hex of packed Header and records, one per delivered packet, newest last."""

    traces: list[str]


class ClockReading(Fact):
    """The agent's clock when it read the question, Unix µs."""

    now_us: int


class Identity(Fact):
    """Whom the agent serves, by its own account. ``digest`` is its program's, as in Hello."""

    connection: int
    """0: none yet."""
    protocol: int | None
    table_version: int
    digest: str
    key: str = ""
    """Digest of the connection's key, as the agent has it: two guests never have the same."""


ToAgent = Configure | InstallTable | Query | Align | Quiesce | Identify
ToHost = (
    Hello | Ready | AgentEvent | Counters | Traces | ClockReading | Identity | Quiesced | Identified
)
Message = ToAgent | ToHost
MESSAGES: dict[str, type[Fact]] = {
    cls.__name__: cls
    for cls in (
        *(Configure, InstallTable, Query, Align, Quiesce, Identify),
        *(Hello, Ready, AgentEvent, Counters, Traces, ClockReading, Identity),
        *(Quiesced, Identified),
    )
}


KINDS: dict[str, type] = {"int": int, "str": str, "bool": bool, "dict": dict, "list": list}

# Made once: under emulation, before the first packet, what json.loads and json.dumps do around
# these (a regular expression at either end, a new encoder) costs as much as they do.
_parse = json.JSONDecoder().raw_decode
_compose = json.JSONEncoder(separators=(",", ":")).encode


def encode(message: Message) -> bytes:
    """One line, newline included."""
    document = {"type": type(message).__name__}
    document.update(zip(message.names, message.values(), strict=True))
    return _compose(document).encode() + b"\n"


def decode(line: bytes) -> Message:
    """One message. Raises ControlInvalid: not JSON, unknown type, missing or misfit fields."""
    try:
        text = line.decode()
        document, end = _parse(text)
        kind = MESSAGES[document.pop("type")]
        if text[end:].strip():
            raise ValueError("something behind the object")
    except (ValueError, KeyError, TypeError, AttributeError) as exc:
        known = ", ".join(MESSAGES)
        raise ControlInvalid("message", f"JSON object of type {known}", line[:80]) from exc
    return _fact(kind, document)  # type: ignore[return-value]  # exactly the union's members


def _fact(kind: type[Fact], document: dict[str, Any]) -> Fact:
    """What the constructor would make, with the kind of each value checked: a guest may be
    corrupted, and what it says must not surprise the host far from here. In one pass, because a
    copied guest does this before its first packet."""
    values: dict[str, Any] = {}
    for name, expected, annotation in _FIELDS[kind]:
        if name not in document:
            if not hasattr(kind, name):
                raise ControlInvalid(kind.__name__, "all its fields", f"no {name}")
            continue
        value = document[name]
        if type(value) is not expected and (value is not None or not annotation.endswith("| None")):
            raise ControlInvalid(f"{kind.__name__}.{name}", annotation, repr(value)[:80])
        values[name] = value
    return kind.restore(values)


_FIELDS: dict[type, list[tuple[str, type, str]]] = {
    kind: [
        (name, KINDS[annotation.partition("[")[0].partition(" ")[0]], annotation)
        for name, annotation in kind.__annotations__.items()
    ]
    for kind in MESSAGES.values()
}


class Decoder:
    """Cuts a byte stream into messages. Raises ControlInvalid for a line beyond MAX_LINE."""

    def __init__(self, max_line: int = MAX_LINE) -> None:
        self._pending = bytearray()
        self._ready: list[Message] = []
        self._max_line = max_line

    @property
    def unfinished(self) -> bool:
        """A line has begun to come whose end is not there yet."""
        return bool(self._pending)

    def feed(self, data: Buffer) -> list[Message]:
        """Messages completed by ``data``. An error costs the offending line only: messages before
        and behind it come with the next call."""
        self._pending += data
        while (end := self._pending.find(b"\n")) >= 0:
            line = bytes(self._pending[:end])
            del self._pending[: end + 1]
            if len(line) > self._max_line:
                raise ControlInvalid("line", f"at most {self._max_line} bytes", len(line))
            if line.strip():
                self._ready.append(decode(line))
        if len(self._pending) > self._max_line:
            actual = len(self._pending)
            self._pending.clear()
            raise ControlInvalid("line", f"at most {self._max_line} bytes", actual)
        messages, self._ready = self._ready, []
        return messages
