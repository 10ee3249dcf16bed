"""The middle of a link: where it can be slowed, impaired and cut while frames run over it.

Owns: the nftables programs of the namespace a lab's links meet in, the token buckets and netem
there. May import: errors, host.network, lab. A link is two veth pairs; their inner ends, here, are
joined by nft's ``fwd`` (docs/decisions/0015-link-middles.md). What frames meet on the way is a
matter of where ``fwd`` leads, and one transaction changes that for both directions: no frame is
lost or doubled by it.

    direct     ea → eb                 the kernel alone
    limited    ea → ma ═ mb → eb       a token bucket on ma (and netem, where the kernel has it)
    emulated   ea → ma ═ mb → na ═ nb → emulator → eb
    cut        ea, eb drop, in and out; with the carrier gone, too: ea and eb are down
"""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Sequence

from fabric.errors import EnvironmentFault, KernelLacks
from fabric.lab import names
from fabric.lab.names import Owner
from fabric.lab.spec import LinkSpec
from fabric.lab.standing import DOWN, UP, Standing
from fabric.lab.world import World

NETEM_LIMIT_PACKETS = 20_000
"""netem's queue: its default of 1000 packets would be a hidden loss at 1 Gb/s and 20 ms."""
WIDEST_BPS = 32_000_000_000
"""Bits per second a token bucket takes for no limit; it counts bytes in 32 bits."""
DRAIN_MARGIN = 0.02
"""Seconds the emulator may be late: it is a process among others."""


def netem_arguments(namespace: str, device: str, standing: Standing) -> list[str]:
    """The ``tc`` command line for what leaves ``device``; netem does the rate, too."""
    argv = ["tc", "-n", namespace, "qdisc", "replace", "dev", device, "root", "netem"]
    argv += ["limit", str(NETEM_LIMIT_PACKETS), "delay", f"{standing.latency_us}us"]
    if standing.jitter_us:
        argv.append(f"{standing.jitter_us}us")
    if standing.loss:
        argv += ["loss", f"{standing.loss * 100:.6f}%"]
    if standing.bandwidth_bps:
        argv += ["rate", f"{standing.bandwidth_bps}bit"]
    return argv


def run_tc(argv: Sequence[str]) -> None:
    """Run ``tc``. Raises KernelLacks with its message, EnvironmentFault when it is missing."""
    try:
        result = subprocess.run(argv, capture_output=True, text=True, check=False)
    except FileNotFoundError as exc:
        raise EnvironmentFault("`tc` is not installed", cure="install iproute2") from exc
    if result.returncode:
        raise KernelLacks(f"{' '.join(argv)}: {result.stderr.strip()}")


def has_netem(world: World, scratch: str) -> bool:
    """Whether this kernel has netem, tried out on the loopback of the namespace ``scratch``."""
    if shutil.which("tc") is None or scratch not in world.namespaces():
        return False
    probe = ["tc", "-n", scratch, "qdisc"]
    try:
        run_tc([*probe, "replace", "dev", "lo", "root", "netem", "delay", "1us"])
        run_tc([*probe, "del", "dev", "lo", "root"])
    except KernelLacks:
        return False
    return True


def uses_emulator(world: World, lab: str) -> bool:
    """Whether delay and loss are our emulator's here, for want of netem. Asked once per world."""
    if world.netem is None:
        world.netem = has_netem(world, names.emulator_namespace(lab))
    return not world.netem


class Switch:
    """The middle of one link."""

    def __init__(self, lab: str, link: LinkSpec) -> None:
        self._lab = lab
        self._namespace = names.emulator_namespace(lab)
        self._alias = Owner(lab, names.LINKS_HOST).alias()
        self._mtu = link.mtu
        self._table = f"netdev link{link.number}"
        self._ports = names.emulator_ports(link.number)
        self._middle = names.middle_ports(link.number)
        self._aside = names.aside_ports(link.number)

    def install(self, world: World) -> None:
        """The empty program on both ports, which must be there: frames end here until ``set``."""
        for port in self._ports:
            world.netlink(self._namespace).set_alias(port, self._alias)
        chains = [_chain(hook, port) for port in self._ports for hook in ("ingress", "egress")]
        # Added before it is deleted: then it is no error that there was none.
        begin = [f"table {self._table}", f"delete table {self._table}", f"table {self._table} {{"]
        self._run(world, [*begin, *chains, "}"])

    def ready(self, world: World) -> None:
        """Have the sockets open, so that what follows takes no longer than it must."""
        world.netlink(self._namespace)
        world.nftables(self._namespace)

    def is_carrying(self, world: World) -> bool:
        """Whether both ports are up, which is what both ends see as their carrier."""
        there = world.links(self._namespace)
        return all(port in there and there[port].up for port in self._ports)

    def present(self, world: World) -> bool:
        there = world.links(self._namespace)
        return all(port in there for port in self._ports)

    def prepare(self, world: World, standing: Standing) -> None:
        """Have what ``standing`` needs in place, and its rate in force; leads no frame there yet.

        A token bucket is there from the start, as wide as it goes where there is no limit: putting
        one on a device in use, or taking it off, would lose what is under way.
        """
        there = self._has(world, self._middle)
        if not (there or standing.bandwidth_bps or standing.impaired):
            return
        if not there:
            self._make(world, self._middle)
            chains = [_chain("ingress", port) for port in self._middle]
            self._run(world, [f"table {self._table} {{", *chains, "}"])
        netlink, emulator = world.netlink(self._namespace), uses_emulator(world, self._lab)
        if emulator and standing.impaired and not self._has(world, self._aside):
            self._make(world, self._aside)
        for port in self._middle:
            if emulator:
                netlink.set_rate(port, standing.bandwidth_bps or WIDEST_BPS)
            else:
                run_tc(netem_arguments(self._namespace, port, standing))

    def set(self, world: World, standing: Standing) -> None:
        """Have frames meet what ``standing`` says from now on. An emulator must know the link."""
        self.prepare(world, standing)
        if standing.state != DOWN:
            self._carry(world, True)
        self._run(world, [*self._middle_rules(world, standing), *self._port_rules(standing)])
        if standing.state == DOWN:
            self._carry(world, False)

    def cut(self, world: World, standing: Standing) -> None:
        """As :meth:`set` where only the state is another one, which is not ``up``: nothing comes
        before the one transaction that ends both directions."""
        self._run(world, self._port_rules(standing))
        if standing.state == DOWN:
            self._carry(world, False)

    def remove(self, world: World) -> None:
        """The pairs in between; the rest goes with the ends."""
        for pair in (self._middle, self._aside):
            if self._has(world, pair):
                world.netlink(self._namespace).delete_link(pair[0])
        world.changed(self._namespace)

    def _has(self, world: World, pair: tuple[str, str]) -> bool:
        return pair[0] in world.links(self._namespace)

    def _make(self, world: World, pair: tuple[str, str]) -> None:
        netlink = world.netlink(self._namespace)
        netlink.create_veth(*pair, alias=self._alias, mtu=self._mtu)
        for port in pair:
            netlink.set_alias(port, self._alias)
            netlink.set_up(port)
        world.changed(self._namespace)

    def _carry(self, world: World, up: bool) -> None:
        netlink = world.netlink(self._namespace)
        for port in self._ports:
            netlink.set_up(port, up)
        world.changed(self._namespace)

    def _port_rules(self, standing: Standing) -> list[str]:
        """Where frames go that come from an end; what holds for frames that go to one."""
        ways = self._middle
        if not (standing.bandwidth_bps or standing.impaired):
            ways = (self._ports[1], self._ports[0])
        rules = []
        for port, way in zip(self._ports, ways, strict=True):
            cut = standing.state != UP
            rules += self._rules("ingress", port, "drop" if cut else f'fwd to "{way}"')
            rules += self._rules("egress", port, "drop" if cut else "")
        return rules

    def _middle_rules(self, world: World, standing: Standing) -> list[str]:
        """Where frames go that went through the middle pair. The emulator has a pair of its own to
        take them off: a frame that the kernel forwards must not be one that it also sees."""
        if not self._has(world, self._middle):
            return []
        taken = standing.impaired and uses_emulator(world, self._lab)
        # What came out of ma left end B: it goes to end A, or into nb to come out of na.
        ways = self._aside[::-1] if taken else self._ports
        rules = []
        for came_out, way in zip(self._middle, ways, strict=True):
            rules += self._rules("ingress", came_out, f'fwd to "{way}"')
        return rules

    def _rules(self, hook: str, port: str, rule: str) -> list[str]:
        chain = f"{self._table} {hook}_{port}"
        return [f"flush chain {chain}", *([f"add rule {chain} {rule}"] if rule else [])]

    def _run(self, world: World, lines: list[str]) -> None:
        world.nftables(self._namespace).run("\n".join(lines) + "\n")


def drain(before: Standing) -> None:
    """Wait until what an emulator holds from ``before``, now that it was told of no delay, is out:
    frames that take another way then do not overtake it."""
    time.sleep(before.slowest_us / 1e6 + DRAIN_MARGIN)


def _chain(hook: str, port: str) -> str:
    return f'chain {hook}_{port} {{ type filter hook {hook} device "{port}" priority 0\n}}'
