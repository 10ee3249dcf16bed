"""Which of several equally good next hops a connection takes.

Owns: the choice. May import: nothing (it runs in the guest).

Every hop gets a score from a hash of the connection and itself, and the highest wins (highest
random weight, RFC 2991). A connection thus keeps to one hop, connections spread evenly,
and when a hop goes only its own connections move (RFC 2992 compares the alternatives). The node is
hashed too: with one hash everywhere, the second relay would never use half of its choices.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from fabric.routing.table import NextHop

_MASK = 0xFFFFFFFF


def choose(hops: Sequence[NextHop], connection: int, node: int) -> NextHop:
    """The hop for ``connection`` at host ``node``. ``hops`` must not be empty."""
    if len(hops) == 1:
        return hops[0]
    flow = (connection ^ connection >> 32 ^ node * 0x85EBCA6B) & _MASK
    scores = [_mix(flow ^ _mix(hop.node ^ hop.interface << 16)) for hop in hops]
    return hops[scores.index(max(scores))]


def _mix(value: int) -> int:
    # The finalizer of MurmurHash3: every bit of the input reaches every bit of the result.
    value = (value ^ value >> 16) * 0x85EBCA6B & _MASK
    value = (value ^ value >> 13) * 0xC2B2AE35 & _MASK
    return value ^ value >> 16
