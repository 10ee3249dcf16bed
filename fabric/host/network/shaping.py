"""The rate of a link: as fast as it is, and control packets first.

Owns: the queueing discipline behind a rate. May import: nothing of fabric.

    htb fab:  rate of the link
     ├─ fab:17  control packets: first in line, and never without a share of their own
     └─ fab:20  everything else, in a queue of its own

A link that is full must not look dead: what finds out whether it lives (RFC 5880) never waits in,
and is never dropped from, the queue that traffic fills. A socket's packets are control packets when
its SO_PRIORITY is CONTROL_PRIORITY: a class that a packet's priority names takes it (tc-htb(8)), so
there need be no filter. Its low bits are TC_PRIO_CONTROL: the kernel's usual disciplines, too, put
them first.
"""

from __future__ import annotations

from typing import Any

_HANDLE = 0xFAB0000
"""``fab:``; by this handle we know the discipline as ours."""
CONTROL_PRIORITY = _HANDLE | 0x17
_OTHERS = _HANDLE | 0x20
_QUEUES = {CONTROL_PRIORITY: 0xFAC0000, _OTHERS: 0xFAD0000}
"""Class → handle of its queue."""
_TC_H_ROOT = 0xFFFFFFFF
_CONTROL_SHARE, _CONTROL_BYTES = 2, 32_000
"""At least half of a slow link, at most 256 kbit/s, are for control packets, if there are any."""
_BURST_SECONDS, _MIN_BURST = 0.01, 16_384
_QUEUE_SECONDS, _MIN_QUEUE = 0.05, 131_072
"""What waits at most; never less than two packets of 64 KiB, as offloads hand them over."""
_QUANTUM = 65_536
_LEAST = 125
"""Bytes/s: what the kernel counts in."""


def shape(route: Any, index: int, bits_per_second: int) -> None:
    """Limit what leaves through an interface, given by index; 0 takes the limit away. What waits
    stays where it is while a limit changes. ``route``: a pyroute2 IPRoute in the interface's
    namespace, that knows bfifo. Raises what that raises."""
    there = any(discipline["handle"] == _HANDLE for discipline in route.get_qdiscs(index))
    if bits_per_second == 0:
        if there:  # deleting the kernel's default discipline would be an error
            route.tc("del", index=index, parent=_TC_H_ROOT)
        return
    if not there:
        route.tc("add", "htb", index, handle=_HANDLE, parent=_TC_H_ROOT, default=_OTHERS & 0xFFFF)
    verb = "change" if there else "add"
    rate = max(_LEAST, bits_per_second // 8)
    control = min(rate // _CONTROL_SHARE, _CONTROL_BYTES)
    whole = _HANDLE | 1
    classes = [(whole, _HANDLE, rate, 0), (CONTROL_PRIORITY, whole, control, 0)]
    classes.append((_OTHERS, whole, rate - control, 1))
    for handle, parent, share, priority in classes:
        route.tc(
            f"{verb}-class", "htb", index, handle=handle, parent=parent, rate=share, ceil=rate,
            burst=_burst(share), cburst=_burst(rate), prio=priority, quantum=_QUANTUM,
        )  # fmt: skip
    queue = max(_MIN_QUEUE, int(rate * _QUEUE_SECONDS))
    for parent, handle in _QUEUES.items():
        route.tc(verb, "bfifo", index, handle=handle, parent=parent, limit=queue)


def _burst(rate: int) -> int:
    return max(_MIN_BURST, int(rate * _BURST_SECONDS))
