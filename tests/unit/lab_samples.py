"""Labs for tests: resolved specs without a file, and a machine without libvirt or orchestrators."""

from __future__ import annotations

import sys
from pathlib import Path

from fabric.host.config import HostConfig
from fabric.host.vmm.hypervisor_fake import FakeHypervisor
from fabric.lab import names
from fabric.lab.builder import Machine
from fabric.lab.spec import End, LabSpec, LinkSpec
from fabric.routing.topology import Link, Node, Topology

FAKE_ORCHESTRATOR = Path(__file__).with_name("fake_orchestrator.py")


def spec(
    run_dir: Path,
    name: str = "utlab",
    hosts: tuple[str, ...] = ("h1", "h2", "h3"),
    *,
    latency_us: int = 5000,
    loss: float = 0.0,
    bandwidth_bps: int = 50_000_000,
    path: str = "/labs/ut.yaml",
    state: str = "up",
) -> LabSpec:
    """A line of hosts; only the first link is impaired."""
    links = tuple(
        LinkSpec(
            number=n,
            a=End(hosts[n - 1], n, f"to-{hosts[n]}", f"172.31.0.{2 * n - 2}"),
            b=End(hosts[n], n + 1, f"to-{hosts[n - 1]}", f"172.31.0.{2 * n - 1}"),
            latency_us=latency_us if n == 1 else 0,
            bandwidth_bps=bandwidth_bps if n == 1 else 0,
            loss=loss if n == 1 else 0.0,
            mtu=9000,
            state=state if n == 1 else "up",
        )
        for n in range(1, len(hosts))
    )
    topology = Topology(
        tuple(Node(node, host) for node, host in enumerate(hosts, 1)),
        tuple(
            Link(
                link.a.node, link.b.node, a_address=link.a.address, b_address=link.b.address,
                a_interface=min(link.number, 2), b_interface=1, mtu=link.mtu,
            )
            for link in links
        ),
    )  # fmt: skip
    configs = tuple(
        HostConfig(
            lab=name,
            host=host,
            node=node,
            bridge=names.bridge_name(name, node),
            guest_interface=names.GUEST_INTERFACE,
            overlay_addresses=(f"10.77.0.{node}/32", f"fd77::{node}/128"),
            overlay_prefixes=("10.77.0.0/16", "fd77::/64"),
            topology=topology.to_json(),
            run_dir=str(run_dir),
        )
        for node, host in enumerate(hosts, 1)
    )
    return LabSpec(name, path, configs, links)


def machine(directory: Path, hypervisor: FakeHypervisor | None = None) -> Machine:
    """Real namespaces and links, files under ``directory``, stand-ins for everything else."""
    fake = hypervisor or FakeHypervisor()
    return Machine(
        open_hypervisor=lambda: fake,
        check=lambda _spec: None,
        orchestrator=(sys.executable, str(FAKE_ORCHESTRATOR)),
        netns_files=directory / "netns",
    )
