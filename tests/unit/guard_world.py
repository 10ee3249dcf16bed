"""A lab host and what surrounds it, with namespaces in the guests' place: what guests may do is
tried here.

    guest 1 ─ tap1 ┐ machine             host                  neighbour
                   ├ bridge ─ port ───── guests   to-2 ─────── to-1
    guest 2 ─ tap2 ┘ (libvirt's)

Guests speak raw frames, so they can claim what they like.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass

from fabric.host.network.bridge_ports import KernelBridgePorts, deafen
from fabric.host.network.guard import link_local
from fabric.host.network.intercept import MissDevice
from fabric.host.network.netlink import Netlink
from fabric.host.network.netns import create_netns, delete_netns
from fabric.host.network.steering import NftSteering, SteeringConfig
from fabric.wire.inner import UDP, checksum
from tests.unit.netns_world import GATEWAY, PREFIXES, SUBNET, Inside, NftablesThere

OWN4, OWN6, FAR4, FAR6 = "10.77.0.1", "fd77::1", "10.77.0.2", "fd77::2"
"""Overlay addresses of the host and of its neighbour."""
UNDERLAY, NEIGHBOUR = "172.31.0.1", "172.31.0.2"
MACHINE = "198.51.100.1"
"""An address of the machine's own, which no guest has any business with."""
ETH_IPV4, ETH_IPV6, ETH_ARP = 0x0800, 0x86DD, 0x0806
ETH_EVERYTHING = 0x0003
ETH_TEST = 0x88B5
"""For experiments (IEEE 802, clause 9.2.3): no kernel sends it by itself."""
BROADCAST = "ff:ff:ff:ff:ff:ff"
SILENCE = 0.3
"""Seconds of silence after which nothing will come: what comes takes microseconds."""
PATIENCE = 5.0
"""Seconds to wait for what is expected."""
GROUP = "ff02::fab"
"""A multicast address nobody listens to: dropped at the guard, without being counted."""


@dataclass
class Guest:
    index: int
    mac: str
    inside: Inside
    wire: socket.socket

    @property
    def address(self) -> str:
        return f"100.115.0.{1 + self.index}"

    @property
    def address6(self) -> str:
        return link_local(self.mac)

    def send(self, frame: bytes) -> None:
        """What was heard until now is forgotten."""
        self.wire.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while self.wire.recv(2048):
                continue
        self.wire.send(frame)

    def silent(self, kind: int) -> bool:
        """Whether no frame of this Ethernet type comes in."""
        return not self.hears(kind, SILENCE)

    def hears(self, kind: int, seconds: float = PATIENCE) -> bool:
        """Whether a frame of this Ethernet type comes in."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            self.wire.settimeout(left)
            with contextlib.suppress(TimeoutError):
                frame, (_, _, direction, _, _) = self.wire.recvfrom(2048)
                if direction != socket.PACKET_OUTGOING and frame[12:14] == kind.to_bytes(2, "big"):
                    return True
        return False


@dataclass
class World:
    machine: Netlink
    ports: KernelBridgePorts
    steering: NftSteering
    config: SteeringConfig
    nftables: NftablesThere
    host_net: Netlink
    host_mac: str
    host_wire: socket.socket
    bridge_mac: str
    guests: tuple[Guest, Guest]
    places: dict[str, Inside]
    """machine, host, neighbour, guest1, guest2."""
    _marks: int = 0

    def refusals(self) -> dict[str, int]:
        """Causes that were counted, once all that was sent is through."""
        for guest in self.guests:
            self._marks += 1
            mark = udp_packet((guest.address6, self._marks), (GROUP, 9))
            guest.wire.send(frame(self.host_mac, guest.mac, *mark))
            self.host_wire.settimeout(PATIENCE)
            while not self.host_wire.recv(2048).endswith(mark[1]):
                continue
        return {cause: count for cause, count in self.steering.refused().items() if count}

    def command(self, place: str, *argv: str) -> subprocess.CompletedProcess[str]:
        words = ["ip", "netns", "exec", self.places[place].netns, *argv]
        return subprocess.run(words, capture_output=True, text=True, timeout=30)

    def ear(self, place: str, address: str, port: int) -> Ear:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        return Ear(self.places[place].call(socket.socket, family, socket.SOCK_DGRAM), address, port)

    def udp(self, guest: Guest, source: tuple[str, int], target: tuple[str, int], **f: str) -> None:
        """A UDP packet from the guest to the host's MAC; ``mac`` and ``to`` say otherwise."""
        kind, packet = udp_packet(source, target)
        guest.send(frame(f.get("to", self.host_mac), f.get("mac", guest.mac), kind, packet))


class Ear:
    """A UDP socket somewhere; in a with-block."""

    def __init__(self, udp: socket.socket, address: str, port: int) -> None:
        self._udp = udp
        udp.bind((address, port))

    def __enter__(self) -> Ear:
        return self

    def __exit__(self, *_: object) -> None:
        self._udp.close()

    def silent(self) -> bool:
        return not self.hears(SILENCE)

    def hears(self, seconds: float = PATIENCE) -> bool:
        self._udp.settimeout(seconds)
        try:
            self._udp.recv(2048)
        except TimeoutError:
            return False
        return True


def frame(to: str, mac: str, kind: int, payload: bytes) -> bytes:
    return _octets(to) + _octets(mac) + struct.pack("!H", kind) + payload


def udp_packet(source: tuple[str, int], target: tuple[str, int]) -> tuple[int, bytes]:
    """(Ethernet type, IP packet)."""
    ends = [ipaddress.ip_address(address) for address, _ in (source, target)]
    addresses = ends[0].packed + ends[1].packed
    body = b"x" * 32
    length = 8 + len(body)
    udp = struct.pack("!HHHH", source[1], target[1], length, 0) + body
    pseudo = addresses + struct.pack("!HH", UDP, length)
    udp = udp[:6] + struct.pack("!H", checksum(pseudo + udp) or 0xFFFF) + udp[8:]
    if ends[0].version == 6:
        return ETH_IPV6, struct.pack("!IHBB", 6 << 28, length, UDP, 64) + addresses + udp
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + length, 0, 0, 64, UDP, 0)
    head = head[:10] + struct.pack("!H", checksum(head + addresses)) + addresses
    return ETH_IPV4, head + udp


def arp(operation: int, mac: str, claimed: tuple[str, str], asked: str) -> bytes:
    """A broadcast ARP packet from ``mac``: "I am ``claimed`` (MAC, address)"."""
    sender = _octets(claimed[0]) + socket.inet_aton(claimed[1])
    packet = struct.pack("!HHBBH", 1, ETH_IPV4, 6, 4, operation)
    packet += sender + bytes(6) + socket.inet_aton(asked)
    return frame(BROADCAST, mac, ETH_ARP, packet)


def neighbour_message(to: str, mac: str, kind: int, source: str, target: str) -> bytes:
    """A solicitation (135) for ``target``, or an advertisement (136) of it, to the gateway."""
    ends = ipaddress.ip_address(source).packed + ipaddress.ip_address("fe80::1").packed
    flags, option = (0, 1) if kind == 135 else (0x20000000, 2)
    body = struct.pack("!BBHI", kind, 0, 0, flags) + ipaddress.ip_address(target).packed
    body += struct.pack("!BB", option, 1) + _octets(mac)
    pseudo = ends + struct.pack("!HH", 58, len(body))
    body = body[:2] + struct.pack("!H", checksum(pseudo + body)) + body[4:]
    head = struct.pack("!IHBB", 6 << 28, len(body), 58, 255) + ends
    return frame(to, mac, ETH_IPV6, head + body)


def _octets(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))


@contextlib.contextmanager
def guarded_host(tag: str) -> Iterator[World]:
    """Everything as the lab builder and the orchestrator would have it, two guests attached."""
    with contextlib.ExitStack() as stack:
        names = {place: f"{tag}{place}" for place in ("m", "h", "n", "g1", "g2")}
        for name in names.values():
            create_netns(name)
            stack.callback(delete_netns, name)
        nets = {place: stack.enter_context(Netlink(name)) for place, name in names.items()}
        inside = {place: Inside(name) for place, name in names.items()}
        for each in inside.values():
            stack.callback(each.close)
        _wire(nets, names)
        host = nets["h"]
        config = SteeringConfig("guests", SUBNET, (OWN4, OWN6), PREFIXES, {"to-2": UNDERLAY})
        miss = MissDevice(
            host, addresses=(f"{OWN4}/32", f"{OWN6}/128"), prefixes=PREFIXES,
            guest_interface="guests", mtu=1400,
        )  # fmt: skip
        inside["h"].call(miss.__enter__)
        stack.callback(miss.remove)
        nftables = inside["h"].call(NftablesThere(inside["h"]).__enter__)
        stack.callback(nftables.__exit__, None, None, None)
        steering = NftSteering(config, nftables, host)
        steering.install()
        ports = stack.enter_context(KernelBridgePorts(names["m"]))
        guests = [_guest(stack, n, nets, inside, ports, steering) for n in (1, 2)]
        wire = _wire_of(stack, inside["h"], "guests")
        places = dict(
            zip(("machine", "host", "neighbour", "guest1", "guest2"), inside.values(), strict=True)
        )
        yield World(
            nets["m"], ports, steering, config, nftables, host, _mac(host, "guests"), wire,
            _mac(nets["m"], "bridge"), (guests[0], guests[1]), places,
        )  # fmt: skip


def _wire(nets: dict[str, Netlink], names: dict[str, str]) -> None:
    machine, host = nets["m"], nets["h"]
    machine.create_bridge("bridge", alias="bridge")
    machine.create_veth("port", "guests", alias="port", peer_netns=names["h"], master="bridge")
    for link in ("bridge", "port"):
        deafen(machine, link)
        machine.set_up(link)
    machine.set_up("lo")
    machine.add_address("lo", f"{MACHINE}/32")
    host.add_address("guests", f"{GATEWAY}/22")
    host.add_address("guests", "fe80::1/64")
    host.create_veth("to-2", "to-1", alias="underlay", peer_netns=names["n"])
    host.add_address("to-2", f"{UNDERLAY}/24")
    nets["n"].add_address("to-1", f"{NEIGHBOUR}/24")
    for net, link in ((host, "guests"), (host, "to-2"), (nets["n"], "to-1")):
        net.set_up(link)
    host.add_route("default", via=NEIGHBOUR)


def _guest(
    stack: contextlib.ExitStack,
    index: int,
    nets: dict[str, Netlink],
    inside: dict[str, Inside],
    ports: KernelBridgePorts,
    steering: NftSteering,
) -> Guest:
    """In the order of real life: port, binding, and only then the link."""
    net, name = nets[f"g{index}"], f"tap{index}"
    nets["m"].create_veth(name, "eth0", alias="", peer_netns=net.netns, master="bridge")
    mac = _mac(net, "eth0")
    assert ports.secure(name, mac)
    steering.add_guest(index, mac)
    nets["m"].set_up(name)
    net.add_address("eth0", f"100.115.0.{1 + index}/22")
    # As the image has it: nothing but what a guest needs to say.
    net.sysctl("ipv6/conf/eth0/accept_dad", 0)
    net.sysctl("ipv6/conf/eth0/router_solicitations", 0)
    net.set_up("eth0")
    net.add_route("default", via=GATEWAY)
    net.add_route("fd77::/64", via="fe80::1", dev="eth0")
    wire = _wire_of(stack, inside[f"g{index}"], "eth0")
    return Guest(index, mac, inside[f"g{index}"], wire)


def _wire_of(stack: contextlib.ExitStack, inside: Inside, link: str) -> socket.socket:
    wire = inside.call(
        socket.socket, socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_EVERYTHING)
    )
    stack.callback(wire.close)
    wire.bind((link, ETH_EVERYTHING))
    return wire


def _mac(net: Netlink, link: str) -> str:
    return next(each.mac for each in net.list_links() if each.name == link)


@contextlib.contextmanager
def fresh(world: World) -> Iterator[World]:
    """Both guests admitted to nothing, all counters at zero."""
    for guest in world.guests:
        world.steering.add_guest(guest.index, guest.mac)
    world.nftables.run("reset counters")
    yield world
    for guest in world.guests:
        world.steering.remove_guest(guest.index)


def tag() -> str:
    """Of namespaces' names: tests of several processes may run at once."""
    return f"fbg{os.getpid() % 10000}"
