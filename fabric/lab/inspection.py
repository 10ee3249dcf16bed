"""What of a lab is there right now, as one document.

Owns: the shape of ``fabric inspect``. May import: errors, host, lab. Asks the orchestrators and
/sys; neither netlink nor libvirt, which would cost more than all the rest.
"""

from __future__ import annotations

from typing import Any

from fabric.errors import FabricError
from fabric.host.config import HostConfig
from fabric.host.network.netns import NETNS_DIR
from fabric.lab import names
from fabric.lab.client import HostClient
from fabric.lab.spec import LinkSpec
from fabric.lab.state import LabState

TIMEOUT = 3.0
"""Seconds for one host's answer."""


def inspect_lab(lab: LabState) -> dict[str, Any]:
    """The lab, its hosts with orchestrator and guests, its links."""
    hosts = [_host(lab, host) for host in lab.spec.hosts]
    emulator = lab.processes.get(names.LINKS_HOST)
    emulating = emulator is not None and emulator.is_alive()
    good = lab.phase == "up" and all(h["orchestrator"]["state"] == "ready" for h in hosts)
    return {
        "lab": lab.spec.name,
        "state": "up" if good else "damaged" if lab.live else "dead",
        "file": lab.spec.path,
        "digest": lab.spec.digest,
        "run_dir": str(lab.spec.run_dir),
        "link_emulator": {"pid": emulator.pid if emulator else None, "running": emulating},
        "hosts": hosts,
        "links": [_link(lab, link, emulating) for link in lab.spec.links],
    }


def _host(lab: LabState, host: HostConfig) -> dict[str, Any]:
    process = lab.processes.get(host.host)
    alive = process is not None and process.is_alive()
    client = HostClient(host.host, host.api_socket)
    status: dict[str, Any] = {}
    guests: list[dict[str, Any]] = []
    answer = "dead"
    if alive:
        try:
            status = client.get("/v1/status", timeout=TIMEOUT)
            guests = client.get("/v1/guests", timeout=TIMEOUT)
            answer = "ready"
        except FabricError:
            answer = "not answering"
    namespace = names.namespace_name(host.lab, host.host)
    return {
        "host": host.host,
        "node": host.node,
        "namespace": namespace,
        "namespace_present": (NETNS_DIR / namespace).exists(),
        "addresses": [address.partition("/")[0] for address in host.overlay_addresses],
        "bridge": host.bridge,
        "api_socket": str(host.api_socket),
        "orchestrator": {"state": answer, "pid": process.pid if process and alive else None},
        "tier": status.get("tier", host.tier),
        "kept_ready": status.get("kept_ready", {}),
        "acceleration": status.get("acceleration"),
        "table_version": status.get("table_version"),
        "connections": status.get("connections", 0),
        "guests": guests,
        "refused_packets": status.get("refused_packets", {}),
    }


def _link(lab: LabState, link: LinkSpec, emulating: bool) -> dict[str, Any]:
    ends = (link.a, link.b)
    there = all((NETNS_DIR / names.namespace_name(lab.spec.name, e.host)).exists() for e in ends)
    works = there and (emulating or not link.impaired)
    return {
        "a": link.a.host,
        "b": link.b.host,
        "a_interface": link.a.interface,
        "b_interface": link.b.interface,
        "a_address": link.a.address,
        "b_address": link.b.address,
        "latency_us": link.latency_us,
        "bandwidth_bps": link.bandwidth_bps,
        "loss": link.loss,
        "mtu": link.mtu,
        "state": "up" if works else "down",
    }
