"""What neighbours send each other about the link between them: liveness and measurement in one.

Owns: the link probe and its codec. May import: fabric.wire.{errors,fact}, struct.

States, timers and discriminators mean what they mean in BFD (RFC 5880, section 4.1); the times that
are echoed make each probe one half of a round-trip measurement (as in NTP, RFC 5905, and TWAMP, RFC
5357). 60 bytes of UDP on port :data:`PORT`, never routed: see fabric.host.links.
"""

from __future__ import annotations

from struct import Struct

from fabric.wire.errors import ProbeInvalid
from fabric.wire.fact import Fact

PORT = 7705
"""UDP, on the underlay address of the link."""
VERSION = 1

ADMIN_DOWN, DOWN, INIT, UP = range(4)
"""RFC 5880, section 4.1: Sta."""
STATE_NAMES = ("admin-down", "down", "init", "up")

NO_DIAGNOSTIC, TIME_EXPIRED, NEIGHBOUR_SIGNALED, PATH_DOWN, ADMINISTRATIVELY = 0, 1, 3, 5, 7
"""RFC 5880, section 4.1: Diag; why the sender last left the state *up*."""
DIAGNOSTICS = {
    NO_DIAGNOSTIC: "",
    TIME_EXPIRED: "detection time expired",
    NEIGHBOUR_SIGNALED: "the neighbour says so",
    PATH_DOWN: "no carrier",
    ADMINISTRATIVELY: "taken down",
}

_LAYOUT = Struct("!BBBBIIIIIHHIQQQI")
SIZE = _LAYOUT.size


class LinkProbe(Fact):
    """One probe. Times are µs; clock readings are µs of the clock named beside them."""

    state: int
    diagnostic: int
    detect_multiplier: int
    """Probes in a row whose absence means *down*."""
    my_discriminator: int
    """The sender's name for this session, never 0; another one after each start of its process."""
    your_discriminator: int
    """The receiver's name, as far as the sender knows it; 0: it does not."""
    desired_min_tx_us: int
    required_min_rx_us: int
    node: int
    interface: int
    """The sender's node and interface ids: a cable in the wrong port is noticed."""
    sequence: int
    """Counts the probes of this session, from 1: gaps are loss."""
    sent_at_us: int
    clock: int
    """Which clock ``sent_at_us`` was read from. Of two ends with the same clock the difference is
    the one-way delay."""
    echo_sent_at_us: int
    """``sent_at_us`` of the newest probe received; 0: none yet."""
    echo_held_us: int
    """How long ago that probe had come when this one was sent."""


def encode(probe: LinkProbe) -> bytes:
    """The probe as it goes over the link."""
    return _LAYOUT.pack(
        VERSION, probe.state, probe.diagnostic, probe.detect_multiplier,
        probe.my_discriminator, probe.your_discriminator,
        probe.desired_min_tx_us, probe.required_min_rx_us,
        probe.node, probe.interface, 0, probe.sequence,
        probe.sent_at_us, probe.clock, probe.echo_sent_at_us, probe.echo_held_us,
    )  # fmt: skip


def decode(data: bytes) -> LinkProbe:
    """Raises ProbeInvalid for what RFC 5880, section 6.8.6, has discarded: another version or
    length, an unknown state, no multiplier, no discriminator."""
    if len(data) != SIZE:
        raise ProbeInvalid("link probe", f"{SIZE} bytes", len(data))
    version, state, diagnostic, multiplier, mine, yours, tx, rx, node, interface, _, *rest = (
        _LAYOUT.unpack(data)
    )
    if version != VERSION:
        raise ProbeInvalid("link probe's version", VERSION, version)
    if state > UP:
        raise ProbeInvalid("link probe's state", f"at most {UP}", state)
    if not multiplier or not mine:
        raise ProbeInvalid("link probe", "a multiplier and a discriminator", 0)
    if not yours and state in (INIT, UP):
        raise ProbeInvalid("link probe", "the receiver's discriminator", 0)
    return LinkProbe(state, diagnostic, multiplier, mine, yours, tx, rx, node, interface, *rest)
