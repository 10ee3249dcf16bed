"""Networks that grow by themselves, as large as one likes.

Owns: the making. May import: errors, routing.

Hosts appear at random places and link to two that were there before, near ones rather than far ones
(Waxman, "Routing of multipoint connections", IEEE JSAC 6(9), 1988; grown as BRITE does): connected,
a few links each, some twelve links across for ten thousand hosts.
"""

from __future__ import annotations

import math
from collections import Counter
from random import Random

from fabric.errors import UserError
from fabric.routing.topology import Link, Node, Topology

SIDE_KM = 5000.0
"""Of the square they are on: a continent."""
REACH = 0.15
"""Waxman's alpha: the chance of a link falls to 1/e at this part of the square's diagonal."""
LINKS_EACH = 2
KM_PER_US = 0.2
"""Light in fibre."""
BANDWIDTHS = (10**8, 10**9, 10**10, 10**11)
LEAST, MOST = 3, 100_000


def synthetic(count: int, rng: Random) -> Topology:
    """``count`` hosts n1 … nCOUNT. Raises UserError when that is too few or too many."""
    if not LEAST <= count <= MOST:
        raise UserError(f"a synthetic network has {LEAST} … {MOST} hosts, not {count}")
    places: list[tuple[float, float]] = []
    pairs: list[tuple[int, int]] = []
    for node in range(1, count + 1):
        place = (rng.random() * SIDE_KM, rng.random() * SIDE_KM)
        chosen: set[int] = set()
        while len(chosen) < min(LINKS_EACH, len(places)):
            other = rng.randrange(len(places))
            distance = math.dist(place, places[other])
            if rng.random() < math.exp(-distance / (REACH * SIDE_KM * math.sqrt(2))):
                chosen.add(other + 1)
        pairs += [(node, other) for other in sorted(chosen)]
        places.append(place)
    interfaces: Counter[int] = Counter()
    links = []
    for at, (a, b) in enumerate(pairs):
        interfaces.update((a, b))
        distance = math.dist(places[a - 1], places[b - 1])
        links.append(
            Link(
                a,
                b,
                latency_us=max(1, round(distance / KM_PER_US)),
                bandwidth_bps=rng.choice(BANDWIDTHS),
                a_interface=interfaces[a],
                b_interface=interfaces[b],
                a_address=_address(2 * at),
                b_address=_address(2 * at + 1),
            )
        )
    return Topology(tuple(Node(n, f"n{n}") for n in range(1, count + 1)), tuple(links))


def _address(number: int) -> str:
    return f"172.{16 + (number >> 16)}.{number >> 8 & 255}.{number & 255}"
