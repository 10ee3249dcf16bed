"""Assembling the kernel data path, in a namespace of its own."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
BEGINNING = """
    import json
    import socket
    from dataclasses import replace
    from fabric.errors import Conflict, HypervisorDown
    from fabric.host.config import HostConfig
    from fabric.host.control.connections import Connection, Role
    from fabric.host.control.datapath import KernelDatapath
    from fabric.host.identity import GuestIdentity
    from fabric.host.network.netlink import Netlink
    from fabric.host.network.nftables import Nftables
    from fabric.routing.topology import Node, Topology
    from fabric.wire.inner import FiveTuple

    topology = Topology((Node(1, "h1", ("10.77.0.1/32",)),), ())
    config = HostConfig(
        lab="t", host="h1", node=1, bridge="b", guest_interface="guests",
        overlay_addresses=("10.77.0.1/32",), overlay_prefixes=("10.77.0.0/16",),
        topology=topology.to_json(),
    )
    with Netlink() as net:
        net.create_bridge("guests", alias="guests")
        net.set_up("guests")
    flow = FiveTuple(4, 6, "10.77.0.1", 4000, "10.77.0.2", 80)
    connection = Connection(7, Role.INGRESS, 1, 2, 0, flow=flow)
    identity = GuestIdentity.derive(config, 3)

    def interfaces():
        return sorted(name for _, name in socket.if_nameindex())

    def ruleset():
        with Nftables() as nft:
            return nft.run("list ruleset")
"""


def tell(story: str) -> list[Any]:
    """What a program says, one JSON document a line, in a network namespace of its own."""
    program = textwrap.dedent(BEGINNING) + textwrap.dedent(story)
    words = ["unshare", "--net", sys.executable, "-c", program]
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.root
def test_a_taken_port_is_a_clear_conflict_and_changes_nothing() -> None:
    said, found = tell("""
        squatter = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        squatter.bind(("0.0.0.0", config.port))
        try:
            with KernelDatapath(config, topology):
                print(json.dumps("no conflict"))
        except Conflict as exc:
            print(json.dumps(str(exc)))
        print(json.dumps(interfaces()))
    """)
    assert "UDP port 7704 is in use" in said and "ss -ulpn" in said
    assert "fabric0" not in found


FAILING = """
    def fail(steering):
        try:
            with KernelDatapath(config, topology) as datapath:
                if steering:
                    datapath.attach(identity)
                    datapath.steer(connection, 3)
                raise HypervisorDown("as if libvirt did not answer")
        except HypervisorDown:
            pass
"""


@pytest.mark.root
def test_an_orchestrator_that_fails_leaves_established_connections_to_its_successor() -> None:
    kept, entries, neighbours, after, rules = tell(
        FAILING
        + """
    fail(True)
    print(json.dumps(interfaces()))
    with KernelDatapath(config, topology) as datapath:
        entries = datapath.entries()
        print(json.dumps([list(entries.flows.values()), list(entries.connections.items())]))
        print(json.dumps(list(datapath.neighbours().items())))
    print(json.dumps(interfaces()))
    print(json.dumps(ruleset()))
    """
    )
    assert "fabric0" in kept
    assert entries == [[3], [[7, 3]]]
    assert neighbours == [[3, "02:fa:" + neighbours[0][1][6:]]]
    assert "fabric0" not in after and rules == "", "an orderly end takes everything away"


@pytest.mark.root
def test_an_orchestrator_that_fails_and_serves_nobody_leaves_nothing() -> None:
    found, rules = tell(
        FAILING
        + """
    fail(False)
    print(json.dumps(interfaces()))
    print(json.dumps(ruleset()))
    """
    )
    assert "fabric0" not in found and rules == ""


@pytest.mark.root
def test_what_others_took_away_is_seen_and_put_back() -> None:
    before, gone, half, whole, steered = tell("""
        with KernelDatapath(config, topology) as datapath:
            datapath.attach(identity)
            datapath.steer(connection, 3)
            print(json.dumps([datapath.neighbours() == datapath.attached()]))
            with Nftables() as nft:
                nft.run("flush ruleset")
            with Netlink() as net:
                net.delete_neighbour("guests", identity.address)
            print(json.dumps(datapath.entries()))
            print(json.dumps(list(datapath.neighbours().items())))
            datapath.reinstall()
            datapath.attach_again(3)
            print(json.dumps([datapath.neighbours() == datapath.attached()]))
            datapath.steer(connection, 3)
            datapath.remove_entry(flow)
            entries = datapath.entries()
            print(json.dumps([len(entries.flows), list(entries.connections.items())]))
    """)
    assert (before, gone, half, whole) == ([True], None, [[3, ""]], [True])
    assert steered == [0, [[7, 3]]]


@pytest.mark.root
def test_packets_that_come_while_an_orchestrator_starts_wait_for_it() -> None:
    """While none holds the device the kernel drops them, and applications send them again."""
    dropped, served = tell(
        FAILING
        + """
    def send(text):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
            udp.sendto(text, ("10.77.0.2", 9))

    fail(True)
    send(b"nobody is there")
    with KernelDatapath(config, topology) as datapath:
        print(json.dumps(len(datapath.read_miss())))
        send(b"adopting")
        print(json.dumps([packet[28:].decode() for packet, _ in datapath.read_miss()]))
    """
    )
    assert (dropped, served) == (0, ["adopting"])
