"""What of a lab is there right now, as one document.

Owns: the shape of ``fabric inspect`` and ``fabric link show``. May import: errors, host, lab.
``inspect`` asks the orchestrators and the record; neither netlink nor libvirt, which would cost
more than all the rest.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from fabric.errors import FabricError
from fabric.host.config import HostConfig
from fabric.host.network.netns import NETNS_DIR
from fabric.lab import names
from fabric.lab.client import HostClient
from fabric.lab.spec import End, LinkSpec
from fabric.lab.standing import DOWN
from fabric.lab.state import LabState

if TYPE_CHECKING:
    from fabric.host.network.netlink import Traffic
    from fabric.lab.world import World

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


def inspect_links(lab: LabState, world: World) -> list[dict[str, Any]]:
    """Every link as it was wanted and as it is, with carrier and counters of its ends.

    Raises NotRoot, EnvironmentFault when a namespace is gone. Asks netlink, unlike
    :func:`inspect_lab`.
    """
    counted = {
        host.host: world.netlink(names.namespace_name(lab.spec.name, host.host)).traffic()
        for host in lab.spec.hosts
    }
    measured = {
        (host.host, link["address"]): link for host in lab.spec.hosts for link in _watched(host)
    }
    found = []
    for link in lab.spec.links:
        ends = [(end, counted[end.host].get(end.interface)) for end in (link.a, link.b)]
        ways = (ends, ends[::-1])
        found.append(
            {
                "link": link.label,
                "a": link.a.host,
                "b": link.b.host,
                "wanted": link.standing.to_json(),
                "now": lab.standing(link).to_json(),
                "changed": link.number in lab.standings,
                "cut": link.number in lab.cuts,
                "ends": [
                    {**_end(end, here, there), "measured": measured.get((end.host, far.address))}
                    for (end, here), (far, there) in zip(*ways, strict=True)
                ],
            }
        )
    return found


def _watched(host: HostConfig) -> list[dict[str, Any]]:
    """What a host's link watch says; nothing when nobody answers."""
    try:
        answer = HostClient(host.host, host.api_socket).get("/v1/links")
    except FabricError:
        return []
    return list(answer["links"])


def _end(end: End, here: Traffic | None, there: Traffic | None) -> dict[str, Any]:
    shown = {"host": end.host, "interface": end.interface, "present": here is not None}
    if here is None:
        return {**shown, "carrier": False}
    lost = here.sent_packets - there.received_packets if there else 0
    # One counter is read after the other: what came through in between is no loss.
    return {**shown, **asdict(here), "lost_packets": max(0, lost)}


def _link(lab: LabState, link: LinkSpec, emulating: bool) -> dict[str, Any]:
    ends = (link.a, link.b)
    there = all((NETNS_DIR / names.namespace_name(lab.spec.name, e.host)).exists() for e in ends)
    now = lab.standing(link)
    works = there and (emulating or not now.impaired)
    state = ("cut" if link.number in lab.cuts else now.state) if works else DOWN
    return {
        "a": link.a.host,
        "b": link.b.host,
        "a_interface": link.a.interface,
        "b_interface": link.b.interface,
        "a_address": link.a.address,
        "b_address": link.b.address,
        "mtu": link.mtu,
        **now.to_json(),
        "changed": link.number in lab.standings,
        "state": state,
    }
