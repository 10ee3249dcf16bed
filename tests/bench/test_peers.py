"""The fabric's `shortest` beside others' routing, on the same namespaces and links."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fabric.lab.bench import peers
from fabric.lab.bench.bed import Bed
from fabric.lab.spec import Options
from fabric.routing.protocols import by_name, compute_table

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root and network namespaces"),
]
ABILENE = (Path(__file__).parents[2] / "examples/abilene.yaml").read_text()
SETTLED = 60.0
"""Seconds in which a peer has the best of its paths, and all equal ones; the first comes within a
few."""


@contextmanager
def abilene(*costs: int) -> Iterator[Bed]:
    """Abilene, its links' costs in turn those given; none of its hosts opens connections."""
    text = re.sub(r"^name: .*", "name: peers", ABILENE, flags=re.MULTILINE)
    text = text.replace("hosts: {pool: {minimum: 1, maximum: 4}}", "hosts: {spawning: false}")
    for number in range(text.count("], latency")):
        text = text.replace("], latency", f"], cost: {costs[number % len(costs)]}, latency", 1)
    with Bed(0, "peers", Options(), lambda _line: None, text=text) as made:
        yield made


def test_of_equal_paths_shortest_has_those_that_ospf_has() -> None:
    with abilene(10) as bed:
        ours = agree(bed, "bird-ospf")
    assert any(len(hops) > 1 for hops in ours.values()), "no equal paths"


@pytest.fixture(scope="module")
def mixed() -> Iterator[Bed]:
    with abilene(3, 5, 7, 4, 6) as bed:
        yield bed


@pytest.mark.parametrize("peer", ["bird-ospf", "bird-babel", "frr-ospf"])
def test_shortest_has_the_next_hops_of_others_on_abilene(peer: str, mixed: Bed) -> None:
    if peer == "frr-ospf" and peer not in peers.available():
        pytest.skip("FRR is not among what tests fetch: scripts/fetch.sh bench")
    ours = agree(mixed, peer)
    assert all(len(hops) == 1 for hops in ours.values()), "equal paths: Babel has one of them"


def agree(bed: Bed, peer: str) -> dict[tuple[int, int], set[str]]:
    """Fails unless the peer gets the next hops, as interfaces, that `shortest` has."""
    topology = bed.spec.topology()
    shortest = by_name("shortest").id
    ours = {}
    for host in bed.hosts:
        table = compute_table(topology, host.node, 1)
        for other in bed.hosts:
            if host is not other:
                hops = table.lookup(other.node, shortest)
                names = {interface_of(bed, host.host, topology.name_of(h.node)) for h in hops}
                ours[host.node, other.node] = names
    assert len(ours) == 110
    with peers.running(peer, bed):
        deadline = time.monotonic() + SETTLED
        theirs = shown(bed, ours)
        while theirs != ours and time.monotonic() < deadline:
            time.sleep(0.5)
            # A process per question: those that agreed are asked again when all do.
            theirs |= shown(bed, [pair for pair in ours if theirs[pair] != ours[pair]])
            if theirs == ours:
                theirs = shown(bed, ours)
    assert theirs == ours
    return ours


def interface_of(bed: Bed, host: str, neighbour: str) -> str:
    return next(own.interface for own, far, _ in bed.spec.links_of(host) if far.host == neighbour)


def shown(bed: Bed, pairs: Iterable[tuple[int, int]]) -> dict[tuple[int, int], set[str]]:
    namespace = {host.node: bed.namespace(host) for host in bed.hosts}
    return {
        (here, there): peers.next_hops(namespace[here], peers.address(there))
        for here, there in pairs
    }
