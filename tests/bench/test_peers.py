"""The fabric's `shortest` beside others' routing, on the same namespaces and links."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest

from fabric.lab.bench import peers
from fabric.lab.bench.bed import Bed
from fabric.lab.spec import Options
from fabric.routing.protocols import by_name, compute_table

pytestmark = pytest.mark.vm
ABILENE = (Path(__file__).parents[2] / "examples/abilene.yaml").read_text()
SETTLED = 60.0
"""Seconds in which a peer has the best of its paths, and all equal ones; the first comes within a
few."""
EQUAL, MIXED = (10,), (3, 5, 7, 4, 6)


@pytest.mark.parametrize(
    ("peer", "costs"),
    [("bird-ospf", EQUAL), ("bird-ospf", MIXED), ("frr-ospf", MIXED), ("bird-babel", MIXED)],
    ids=["bird-ospf-equal", "bird-ospf", "frr-ospf", "bird-babel"],
)
def test_shortest_has_the_next_hops_of_others_on_abilene(peer: str, costs: tuple[int, ...]) -> None:
    if peer == "frr-ospf" and peer not in peers.available():
        pytest.skip("FRR is not among what tests fetch: scripts/fetch.sh bench")
    text = re.sub(r"^name: .*", "name: peers", ABILENE, flags=re.MULTILINE)
    text = text.replace("hosts: {pool: {minimum: 1, maximum: 4}}", "hosts: {spawning: false}")
    for number in range(text.count("], latency")):
        text = text.replace("], latency", f"], cost: {costs[number % len(costs)]}, latency", 1)
    with Bed(0, "peers", Options(), lambda _line: None, text=text) as bed:
        topology = bed.spec.topology()
        with peers.running(peer, bed):
            ours = {
                (host.node, other.node): {
                    interface_of(bed, host.host, topology.name_of(hop.node))
                    for hop in compute_table(topology, host.node, 1).lookup(
                        other.node, by_name("shortest").id
                    )
                }
                for host in bed.hosts
                for other in bed.hosts
                if host is not other
            }
            deadline = time.monotonic() + SETTLED
            while (theirs := shown(bed, ours)) != ours and time.monotonic() < deadline:
                time.sleep(0.5)
    differing = {pair: (ours[pair], theirs[pair]) for pair in ours if ours[pair] != theirs[pair]}
    assert len(ours) == 110
    assert not differing
    assert len(costs) > 1 or any(len(hops) > 1 for hops in ours.values()), "no equal paths"


def interface_of(bed: Bed, host: str, neighbour: str) -> str:
    return next(own.interface for own, far, _ in bed.spec.links_of(host) if far.host == neighbour)


def shown(bed: Bed, pairs: dict[tuple[int, int], set[str]]) -> dict[tuple[int, int], set[str]]:
    namespace = {host.node: bed.namespace(host) for host in bed.hosts}
    return {
        (here, there): peers.next_hops(namespace[here], peers.address(there))
        for here, there in pairs
    }
