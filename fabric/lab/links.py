"""The underlay links of a lab: veth pairs between namespaces, with the rate, delay and loss given.

Owns: making links. May import: errors, host.network.netlink, lab. The rate is a token bucket on
either end. Delay and loss are the kernel's netem where it has one, and otherwise our link emulator
in the middle (see fabric.lab.emulator); an unimpaired link is a plain veth pair.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from typing import Protocol

from fabric.errors import EnvironmentFault, KernelLacks
from fabric.host.network.netlink import Netlink
from fabric.lab import names
from fabric.lab.names import Owner
from fabric.lab.resources import Resource, delete_if_there
from fabric.lab.spec import End, LinkSpec
from fabric.lab.world import World

NETEM_LIMIT_PACKETS = 20_000
"""netem's queue: its default of 1000 packets would be a hidden loss at 1 Gb/s and 20 ms."""


class Impairment(Protocol):
    """Who applies delay and loss."""

    through_emulator: bool

    def apply(self, namespace: str, end: End, link: LinkSpec) -> None:
        """Impair what leaves ``end``; nothing to do where the emulator does it."""


class EmulatorImpairment:
    """Frames go through the lab's emulator process."""

    through_emulator = True

    def apply(self, namespace: str, end: End, link: LinkSpec) -> None:
        return


class NetemImpairment:
    """The kernel's own emulator, which also does the rate: it replaces the token bucket."""

    through_emulator = False

    def apply(self, namespace: str, end: End, link: LinkSpec) -> None:
        run_tc(netem_arguments(namespace, end, link))


def netem_arguments(namespace: str, end: End, link: LinkSpec) -> list[str]:
    """The ``tc`` command line for one end of a link."""
    argv = ["tc", "-n", namespace, "qdisc", "replace", "dev", end.interface, "root", "netem"]
    argv += ["limit", str(NETEM_LIMIT_PACKETS), "delay", f"{link.latency_us}us"]
    if link.loss:
        argv += ["loss", f"{link.loss * 100:.6f}%"]
    if link.bandwidth_bps:
        argv += ["rate", f"{link.bandwidth_bps}bit"]
    return argv


def run_tc(argv: Sequence[str]) -> None:
    """Run ``tc``. Raises KernelLacks with its message, EnvironmentFault when it is missing."""
    try:
        result = subprocess.run(argv, capture_output=True, text=True, check=False)
    except FileNotFoundError as exc:
        raise EnvironmentFault("`tc` is not installed", cure="install iproute2") from exc
    if result.returncode:
        raise KernelLacks(f"{' '.join(argv)}: {result.stderr.strip()}")


def choose_impairment(world: World, scratch: str) -> Impairment:
    """netem if this kernel has it, tried out on the loopback of the namespace ``scratch``."""
    if shutil.which("tc") is None or scratch not in world.namespaces():
        return EmulatorImpairment()
    probe = ["tc", "-n", scratch, "qdisc"]
    try:
        run_tc([*probe, "replace", "dev", "lo", "root", "netem", "delay", "1us"])
        run_tc([*probe, "del", "dev", "lo", "root"])
    except KernelLacks:
        return EmulatorImpairment()
    return NetemImpairment()


class Link(Resource):
    """One link: a veth pair, or two with the emulator between them."""

    def __init__(self, lab: str, link: LinkSpec) -> None:
        self._lab = lab
        self._link = link
        self._ends = (link.a, link.b)
        self._namespaces = tuple(names.namespace_name(lab, end.host) for end in self._ends)
        self._emulator = names.emulator_namespace(lab)
        self._ports = names.emulator_ports(link.number)
        self.label = f"link {link.a.host} -- {link.b.host}"

    def present(self, world: World) -> bool:
        present = True
        for namespace, end in zip(self._namespaces, self._ends, strict=True):
            owner = Owner(self._lab, end.host)
            present = world.is_ours(end.interface, owner, namespace) and present
        if present and self._link.impaired and self._emulator in world.namespaces():
            # With the emulator's namespace go its ends, and with those ours: this is for order.
            present = all(port in world.links(self._emulator) for port in self._ports)
        return present

    def create(self, world: World) -> None:
        self.remove(world)  # one end may have survived
        impairment: Impairment = EmulatorImpairment()
        if self._link.impaired:
            impairment = choose_impairment(world, self._emulator)
        mtu, a, b = self._link.mtu, self._link.a, self._link.b
        first, second = (world.netlink(namespace) for namespace in self._namespaces)
        alias = Owner(self._lab, a.host).alias()
        if self._link.impaired and impairment.through_emulator:
            middle = world.netlink(self._emulator)
            for near, end, port in ((first, a, self._ports[0]), (second, b, self._ports[1])):
                near.create_veth(
                    end.interface, port, alias=alias, peer_netns=self._emulator, mtu=mtu
                )
                middle.set_alias(port, Owner(self._lab, names.LINKS_HOST).alias())
                middle.set_up(port)
        else:
            first.create_veth(
                a.interface, b.interface, alias=alias, peer_netns=self._namespaces[1], mtu=mtu
            )
        for netlink, namespace, end in zip(
            (first, second), self._namespaces, self._ends, strict=True
        ):
            self._configure(netlink, end)
            if self._link.impaired:
                impairment.apply(namespace, end, self._link)
        world.changed(*self._namespaces, self._emulator)

    def _configure(self, netlink: Netlink, end: End) -> None:
        netlink.set_alias(end.interface, Owner(self._lab, end.host).alias())
        # The underlay is IPv4: no neighbour discovery noise in captures of it.
        netlink.sysctl(f"ipv6/conf/{end.interface}/disable_ipv6", 1)
        netlink.add_address(end.interface, f"{end.address}/31")
        netlink.set_up(end.interface)
        if self._link.bandwidth_bps:
            netlink.set_rate(end.interface, self._link.bandwidth_bps)

    def remove(self, world: World) -> None:
        for namespace, end in zip(self._namespaces, self._ends, strict=True):
            link = world.links(namespace).get(end.interface)
            if link is not None and link.alias == Owner(self._lab, end.host).alias():
                delete_if_there(world, namespace, end.interface)
        world.changed(*self._namespaces, self._emulator)
