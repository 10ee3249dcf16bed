"""What host and guest agree on without a message.

Owns: the addresses by which every guest knows its host. May import: nothing.

They are the same for every guest of every host, so that a template can be saved with its routes in
place: a copy that wakes up has only its own address to learn. The gateway is never asked for its
MAC and needs no address of its own on the guests' network (as in Calico's 169.254.1.1).
"""

from __future__ import annotations

GATEWAY_V4 = "169.254.77.1"
"""Next hop of everything a copy sends; link-local (RFC 3927), on no interface."""

GATEWAY_V6 = "fe80::1"
"""The same for IPv6; the host's interface has it."""

GATEWAY_MAC = "02:fa:fa:00:00:01"
"""Of the host's interface towards its guests; locally administered (IEEE 802). Each host's guests
are on a bridge of their own, so that all hosts may have the same."""
