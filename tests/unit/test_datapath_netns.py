"""Assembling the kernel data path, in a namespace of its own."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
STORY = """
    import socket
    from fabric.errors import Conflict
    from fabric.host.config import HostConfig
    from fabric.host.datapath import KernelDatapath
    from fabric.routing.topology import Node, Topology

    topology = Topology((Node(1, "h1", ("10.77.0.1/32",)),), ())
    config = HostConfig(
        lab="t", host="h1", node=1, bridge="b", guest_interface="lo",
        overlay_addresses=("10.77.0.1/32",), overlay_prefixes=("10.77.0.0/16",),
        topology=topology.to_json(),
    )
    squatter = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    squatter.bind(("0.0.0.0", config.port))
    try:
        with KernelDatapath(config, topology):
            print("no conflict")
    except Conflict as exc:
        print(exc)
    print(sorted(name for _, name in socket.if_nameindex()))
"""


@pytest.mark.root
def test_a_taken_port_is_a_clear_conflict_and_changes_nothing() -> None:
    words = ["unshare", "--net", sys.executable, "-c", textwrap.dedent(STORY)]
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, timeout=60)
    said, interfaces = done.stdout.strip().splitlines()
    assert "UDP port 7704 is in use" in said and "ss -ulpn" in said, done.stderr
    assert "fabric0" not in interfaces
