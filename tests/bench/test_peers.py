"""The fabric's `shortest` beside BIRD's OSPF, on the same namespaces and links."""

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
SETTLED = 30.0
"""Seconds in which OSPF has all of several equal paths; the first comes within a few."""


@pytest.mark.parametrize("costs", [(10,), (3, 5, 7, 4, 6)], ids=["equal", "mixed"])
def test_shortest_has_the_next_hops_of_ospf_on_abilene(costs: tuple[int, ...]) -> None:
    text = re.sub(r"^name: .*", "name: peers", ABILENE, flags=re.MULTILINE)
    text = text.replace("hosts: {pool: {minimum: 1, maximum: 4}}", "hosts: {spawning: false}")
    for number in range(text.count("], latency")):
        text = text.replace("], latency", f"], cost: {costs[number % len(costs)]}, latency", 1)
    with Bed(0, "peers", Options(), lambda _line: None, text=text) as bed:
        topology = bed.spec.topology()
        with peers.running("bird-ospf", bed):
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
            while (theirs := bird(bed, ours)) != ours and time.monotonic() < deadline:
                time.sleep(0.5)
    differing = {pair: (ours[pair], theirs[pair]) for pair in ours if ours[pair] != theirs[pair]}
    assert len(ours) == 110
    assert not differing
    assert len(costs) > 1 or any(len(hops) > 1 for hops in ours.values()), "no equal paths"


def interface_of(bed: Bed, host: str, neighbour: str) -> str:
    return next(own.interface for own, far, _ in bed.spec.links_of(host) if far.host == neighbour)


def bird(bed: Bed, pairs: dict[tuple[int, int], set[str]]) -> dict[tuple[int, int], set[str]]:
    namespace = {host.node: bed.namespace(host) for host in bed.hosts}
    return {
        (here, there): peers.next_hops(namespace[here], peers.address(there))
        for here, there in pairs
    }
