"""Two hosts, each with a guest, made of namespaces: what steering and delivery are tried on.

Namespaces stand in the guests' place; in each runs a naive agent that wraps inner packets in 16
bytes (8 of padding, the connection id) instead of the real header.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
import subprocess
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

from fabric.host.network.delivery import Delivery
from fabric.host.network.intercept import MissDevice, _open_tun
from fabric.host.network.netlink import Netlink
from fabric.host.network.netns import create_netns, delete_netns, enter_netns
from fabric.host.network.nftables import Nftables
from fabric.host.network.steering import NftSteering, SteeringConfig
from fabric.wire.inner import FiveTuple, parse_flow

PORT = 7704
PREFIXES = ("10.77.0.0/16", "fd77::/64")
SUBNET = "100.115.0.0/22"
GATEWAY = "100.115.0.1"
GUEST_MTU = 1500
OVERLAY_MTU = 1400
GUEST = 1
"""Index of the one guest per host."""

T = TypeVar("T")


class Inside:
    """A thread that stands in a namespace; ``call`` runs there."""

    def __init__(self, netns: str) -> None:
        self.netns = netns
        self._pool = ThreadPoolExecutor(1, initializer=enter_netns, initargs=(netns,))

    def call(self, function: Callable[..., T], *arguments: object) -> T:
        return self._pool.submit(function, *arguments).result()

    def close(self) -> None:
        self._pool.shutdown()


class NftablesThere(Nftables):
    """Runs its commands where ``inside`` stands: nft looks up interface names on the caller's
    thread."""

    def __init__(self, inside: Inside) -> None:
        super().__init__()
        self._inside = inside

    def _execute(self, commands: str, flags: int) -> str:
        return self._inside.call(super()._execute, commands, flags)


class NaiveAgent:
    """Wraps what its TUN gets, unwraps what its UDP socket gets. One packet at a time."""

    def __init__(self, inside: Inside, neighbour: str, connection: int) -> None:
        self._inside = inside
        self._header = bytes(8) + connection.to_bytes(8, "big")
        self._neighbour = (neighbour, PORT)
        self.sources: set[str] = set()
        """Where datagrams came from, as this guest saw it."""
        self.datagrams = 0
        """Received from the neighbour."""
        self.wrapped: Counter[FiveTuple | None] = Counter()
        """Packets sent to the neighbour, by flow; None is the kernel's noise, which stays."""

    def start(self) -> None:
        self._end_read, self._end_write = os.pipe()
        self._tun = self._inside.call(_open_tun, "inner")
        self._udp = self._inside.call(socket.socket, socket.AF_INET, socket.SOCK_DGRAM)
        self._udp.bind(("0.0.0.0", PORT))
        self._udp.setblocking(False)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def stop(self) -> None:
        os.write(self._end_write, b"x")
        self._thread.join()
        self._udp.close()
        for descriptor in (self._tun, self._end_read, self._end_write):
            os.close(descriptor)

    def _run(self) -> None:
        while True:
            ready, _, _ = select.select(
                list[int | socket.socket]([self._tun, self._udp, self._end_read]), [], []
            )
            if self._end_read in ready:
                return
            with contextlib.suppress(BlockingIOError):
                if self._tun in ready:
                    packet = os.read(self._tun, 65536)
                    flow = parse_flow(packet)
                    self.wrapped[flow] += 1
                    if flow is not None:
                        self._udp.sendto(self._header + packet, self._neighbour)
                if self._udp in ready:
                    data, (source, _) = self._udp.recvfrom(65536)
                    self.sources.add(source)
                    self.datagrams += 1
                    with contextlib.suppress(OSError):  # tests also send what is no IP packet
                        os.write(self._tun, data[16:])


@dataclass
class Host:
    """One host's namespace with everything the orchestrator would hold open there."""

    netns: str
    node: int
    inside: Inside
    guest_inside: Inside
    guest_mac: str
    netlink: Netlink
    miss: MissDevice
    steering: NftSteering
    nftables: Nftables
    delivery: Delivery
    agent: NaiveAgent
    underlay_socket: socket.socket
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def guest_address(self) -> str:
        return f"100.115.0.{1 + GUEST}"

    def command(self, *argv: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["ip", "netns", "exec", self.netns, *argv],
            check=check, capture_output=True, text=True, timeout=30,
        )  # fmt: skip

    def start(self, *argv: str) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            ["ip", "netns", "exec", self.netns, *argv],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        self.processes.append(process)
        return process

    def wait_for_miss(self, seconds: float = 5.0) -> list[bytes]:
        """The next burst of packets nobody steers; empty when none came in time."""
        return wait_for_packets(self.miss, seconds)

    def wait_for_datagram(self, seconds: float = 5.0) -> tuple[bytes, str]:
        """The next fabric packet nobody steers, with its sender."""
        self.underlay_socket.settimeout(seconds)
        data, (source, _) = self.underlay_socket.recvfrom(65536)
        return data, source


@contextlib.contextmanager
def two_hosts(tag: str, connection: int) -> Iterator[tuple[Host, Host]]:
    """Hosts 1 and 2 joined by one underlay link; nothing is steered yet."""
    with contextlib.ExitStack() as stack:
        names = [f"{tag}h1", f"{tag}h2"]
        for name in (*names, *(f"{name}g" for name in names)):
            create_netns(name)
            stack.callback(delete_netns, name)
        nets = [stack.enter_context(Netlink(name)) for name in names]
        nets[0].create_veth("to-2", "to-1", alias="underlay", peer_netns=names[1], mtu=9000)
        hosts = []
        for node, (name, net) in enumerate(zip(names, nets, strict=True), start=1):
            other = 3 - node
            net.add_address(f"to-{other}", f"172.31.0.{node}/24")
            net.set_up(f"to-{other}")
            hosts.append(_host(stack, name, net, node, connection))
        yield hosts[0], hosts[1]


def _host(stack: contextlib.ExitStack, name: str, net: Netlink, node: int, connection: int) -> Host:
    other = 3 - node
    guest_net = stack.enter_context(Netlink(f"{name}g"))
    # The bridge lives in the host's namespace here: on a real machine it is the interface itself.
    net.create_bridge("guests", alias="guests", mtu=9000)
    net.add_address("guests", f"{GATEWAY}/22")
    net.add_address("guests", "fe80::1/64")
    net.set_up("guests")
    net.create_veth("tap1", "eth0", alias="tap", peer_netns=f"{name}g", mtu=9000, master="guests")
    net.set_up("tap1")
    mac = _configure_guest(guest_net, node)

    inside, guest_inside = Inside(name), Inside(f"{name}g")
    stack.callback(inside.close)
    stack.callback(guest_inside.close)
    config = SteeringConfig(
        guest_interface="guests",
        guest_subnet=SUBNET,
        own_addresses=(f"10.77.0.{node}", f"fd77::{node}"),
        overlay_prefixes=PREFIXES,
        underlay={f"to-{other}": f"172.31.0.{node}"},
    )
    miss = MissDevice(
        net,
        addresses=(f"10.77.0.{node}/32", f"fd77::{node}/128"),
        prefixes=PREFIXES,
        guest_interface="guests",
        mtu=OVERLAY_MTU,
        alias=f"fabric:{name}",
    )
    inside.call(miss.__enter__)
    stack.callback(miss.remove)
    nftables = inside.call(NftablesThere(inside).__enter__)
    stack.callback(nftables.__exit__, None, None, None)
    steering = NftSteering(config, nftables, net)
    steering.install()
    steering.add_guest(GUEST, mac)  # before the guest speaks: what it says is dropped otherwise
    delivery = inside.call(Delivery("guests", PORT).__enter__)
    stack.callback(delivery.__exit__, None, None, None)
    agent = NaiveAgent(guest_inside, f"172.31.0.{other}", connection)
    agent.start()
    stack.callback(agent.stop)
    _configure_inner(guest_net, node)
    underlay = inside.call(socket.socket, socket.AF_INET, socket.SOCK_DGRAM)
    underlay.bind(("0.0.0.0", PORT))
    stack.callback(underlay.close)
    host = Host(
        name, node, inside, guest_inside, mac, net, miss, steering, nftables, delivery, agent,
        underlay,
    )  # fmt: skip
    stack.callback(_end_processes, host)
    return host


def _configure_guest(net: Netlink, node: int) -> str:
    for path, value in (
        ("ipv4/ip_forward", 1),
        ("ipv6/conf/all/forwarding", 1),
        ("ipv4/conf/all/rp_filter", 0),
        ("ipv4/conf/eth0/rp_filter", 0),
    ):
        net.sysctl(path, value)
    net.add_address("eth0", f"100.115.0.{1 + GUEST}/22")
    net.set_up("eth0")
    net.set_up("lo")
    net.add_route("default", via=GATEWAY)
    net.add_route(f"10.77.0.{node}/32", via=GATEWAY)
    net.add_route(f"fd77::{node}/128", via="fe80::1", dev="eth0")
    return next(link.mac for link in net.list_links() if link.name == "eth0")


def _configure_inner(net: Netlink, node: int) -> None:
    net.sysctl("ipv4/conf/inner/rp_filter", 0)
    net.set_mtu("inner", OVERLAY_MTU)
    net.set_up("inner")
    for prefix in PREFIXES:
        net.add_route(prefix, dev="inner")


def _end_processes(host: Host) -> None:
    for process in host.processes:
        process.terminate()
        process.wait(timeout=10)


def wait_for_packets(miss: MissDevice, seconds: float = 5.0) -> list[bytes]:
    """The next burst of packets nobody steers; empty when none came in time."""
    ready, _, _ = select.select([miss.fileno()], [], [], seconds)
    return miss.read_burst() if ready else []


def wrap(packet: bytes, connection: int) -> bytes:
    """What the naive agent would send."""
    return struct.pack("!QQ", 0, connection) + packet
