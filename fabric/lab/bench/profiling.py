"""Where the time goes in the agents of a measured path.

Owns: profiles. May import: wire, routing, host, lab. One guest of each role at a time runs its
agent under fabric.lab.bench.guest_profile while packets flow at a rate that fills it; the others
run theirs as always. The guest's own agent is replaced, so this comes last.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path as File
from typing import Any

from fabric.errors import FabricError, GuestFault
from fabric.host.guest.provision import AGENT_PATH
from fabric.lab.bench import guest_profile
from fabric.lab.bench.bed import Bed, Seat
from fabric.lab.bench.paths import Path
from fabric.routing.protocols import compute_table
from fabric.routing.topology import Topology
from fabric.wire.control import Configure, encode

SIZE = 512
"""Bytes of the packets of a UDP profile: their number is what costs, not their size."""
PRESSURE = 1.3
"""Offered rate over the sustained one: a profile of waiting says little."""
SLICE = 1.0
"""Seconds of traffic at a time, until the profile is there: nobody knows how long a busy machine
takes to start Python in a guest."""
SETTLE = 2.0
"""Seconds that do not count: a TCP stream needs them to recover from the change of agents."""
_TABLE_VERSION = 1
_MODES = ("split", "calls")


def profiles(bed: Bed, path: Path, seconds: float, rate: float) -> Iterator[dict[str, Any]]:
    """One result per role and mode. ``rate``: packets/s the path sustains; 0 for a TCP stream.

    Raises GuestFault when a guest's profile fails twice.
    """
    roles = {seat.view["role"]: seat for seat in path.seats}
    for role, seat in roles.items():
        for mode in _MODES:
            try:
                found = _profile(bed, path, seat, mode, seconds, rate)
            except GuestFault:
                # Once more: on an overloaded machine SSH into a busy guest may well fail.
                found = _profile(bed, path, seat, mode, seconds, rate)
            yield {
                "hops": path.hops,
                "kind": "profile",
                "role": role,
                "transport": "udp" if rate else "tcp",
                "size": SIZE if rate else None,
                "mode": mode,
                **found,
            }


def _profile(
    bed: Bed, path: Path, seat: Seat, mode: str, seconds: float, rate: float
) -> dict[str, Any]:
    order = {
        "agent": AGENT_PATH,
        "configure": encode(_configure(seat)).decode(),
        "settle": SETTLE,
        "seconds": seconds,
        "mode": mode,
    }
    argv = ["python3", "-I", "-S", "-", json.dumps(order)]

    done = threading.Event()

    def send() -> None:
        # If it breaks off, the profile shows an idle agent.
        with contextlib.suppress(FabricError):
            while not done.is_set():
                if rate:
                    path.send(SIZE, rate * PRESSURE, SLICE)
                else:
                    path.send_stream(SLICE)

    thread = threading.Thread(target=send)
    thread.start()
    try:
        answer: dict[str, Any] = json.loads(bed.in_guest(seat, argv, File(guest_profile.__file__)))
    finally:
        done.set()
        thread.join()
    return answer


def _configure(seat: Seat) -> Configure:
    """What the host told the agent that is replaced."""
    host, view = seat.host, seat.view
    topology = Topology.from_json(host.topology)
    now = time.time_ns() // 1000
    node = {each.name: each.id for each in topology.nodes}
    return Configure(
        connection=int(view["id"], 16),
        lab=host.lab,
        host=host.host,
        node=host.node,
        guest=int(seat.domain.rpartition("-g")[2]),
        role=view["role"],
        source_node=node[view["source_node"]],
        destination_node=node[view["destination_node"]],
        table=compute_table(topology, host.node, _TABLE_VERSION).to_json(),
        interfaces={hop.address: hop.interface for hop in topology.neighbours(host.node)},
        port=host.port,
        overlay_mtu=host.overlay_mtu,
        requested_at_us=now,
        host_now_us=now,
        protocol=view["protocol"],
    )
