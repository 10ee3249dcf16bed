"""The kernel side of one host, assembled: miss device, steering, delivery, underlay socket.

Owns: order of setting up and taking down, the UDP socket unknown connections arrive at. May import:
errors, routing.topology, host. Everything happens in the network namespace the process stands in.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from contextlib import ExitStack
from types import TracebackType
from typing import Self

from fabric.errors import ConfigError, Conflict, FabricError, NameUnknown
from fabric.host.config import HostConfig
from fabric.host.control.connections import Connection, HeldPacket
from fabric.host.identity import GuestIdentity
from fabric.host.network.delivery import Delivery
from fabric.host.network.intercept import MAX_BURST, FragmentMemory, MissDevice
from fabric.host.network.netlink import Netlink
from fabric.host.network.nftables import Nftables
from fabric.host.network.steering import Entries, NftSteering, SteeringConfig
from fabric.routing.topology import Topology
from fabric.wire.contract import GATEWAY_MAC
from fabric.wire.inner import FiveTuple

# Room for the datagrams of a burst of new connections while the event loop is busy, bytes.
RECEIVE_BUFFER = 8 << 20
MAX_DATAGRAM = 65536


class KernelDatapath:
    """What :class:`fabric.host.control.ports.Datapath` promises, on this kernel. A context
    manager."""

    def __init__(self, config: HostConfig, topology: Topology) -> None:
        self._config = config
        self._topology = topology
        self._fragments = FragmentMemory()
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        """Established connections of a former life stay as they are. Raises ConfigError when an
        underlay address of this host is on no interface, Conflict when the port is taken, and what
        the parts raise."""
        config = self._config
        with ExitStack() as stack:
            netlink = stack.enter_context(Netlink())
            self._socket = stack.enter_context(self._bind())
            # The MAC by which every guest knows its host, without having to ask.
            netlink.set_mac(config.guest_interface, GATEWAY_MAC)
            nftables = stack.enter_context(Nftables())
            rules = SteeringConfig.of(config, self._underlay(netlink))
            self._miss = MissDevice(
                netlink,
                addresses=config.overlay_addresses,
                prefixes=config.overlay_prefixes,
                guest_interface=config.guest_interface,
                mtu=config.overlay_mtu,
                alias=f"fabric:{config.lab}:{config.host}",
            )
            self._steering = NftSteering(rules, nftables, netlink)
            stack.push(self._clear)
            stack.enter_context(self._miss)
            self._steering.install()
            self._delivery = stack.enter_context(Delivery(config.guest_interface, config.port))
            self._rules = rules
            self._macs: dict[int, str] = {}
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.__exit__(kind, exc, trace)

    def _clear(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Leave nothing behind, unless we failed and connections still run: then they go on without
        us, and whoever comes next takes them over."""
        if exc is not None and self._in_use():
            self._miss.close()
            return
        self._steering.remove()
        self._miss.remove()

    def _in_use(self) -> bool:
        try:
            entries = self._steering.entries()
        except FabricError:
            return (
                False  # no rules, or they cannot be read: then they cannot be kept in order either
            )
        return bool(entries.flows or entries.connections)

    def _bind(self) -> socket.socket:
        udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        udp.setblocking(False)
        udp.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
        try:
            udp.bind(("0.0.0.0", self._config.port))
        except OSError as exc:
            udp.close()
            raise Conflict(
                f"{self._config.host}: UDP port {self._config.port} is in use",
                cure="stop the program that holds it (ss -ulpn), or configure another port",
            ) from exc
        return udp

    def _underlay(self, netlink: Netlink) -> dict[str, str]:
        """Underlay interface → own address, found by the addresses the topology gives us."""
        carriers = netlink.addresses()
        found = {}
        for neighbour in self._topology.neighbours(self._config.node):
            interface = carriers.get(neighbour.local_address)
            if interface is None:
                raise ConfigError(
                    f"{self._config.host}: no interface has {neighbour.local_address}, its address "
                    f"on the link to {self._topology.name_of(neighbour.node)}",
                    cure="configure the interface, or correct the topology",
                )
            found[interface] = neighbour.local_address
        return found

    # -- for the event loop ------------------------------------------------------------------------

    @property
    def miss_fd(self) -> int:
        return self._miss.fileno()

    @property
    def underlay_fd(self) -> int:
        return self._socket.fileno()

    def read_miss(self) -> list[tuple[bytes, FiveTuple | None]]:
        """Packets no rule knows, oldest first, each with its flow (fragments have one too)."""
        packets = self._miss.read_burst()
        return [(packet, self._fragments.flow_of(packet)) for packet in packets]

    def read_underlay(self) -> list[tuple[bytes, str]]:
        """Datagrams no rule knows, oldest first, each with the sender's address."""
        found = []
        for _ in range(MAX_BURST):
            try:
                data, (address, _port) = self._socket.recvfrom(MAX_DATAGRAM)
            except (BlockingIOError, InterruptedError):
                break
            found.append((data, address))
        return found

    # -- for the guest life cycle ------------------------------------------------------------------

    def attach(self, identity: GuestIdentity) -> None:
        """Make a guest reachable before it exists: nobody will have to ask for its MAC."""
        self._macs[identity.index] = identity.mac
        self._steering.add_guest(identity.index, identity.mac)

    def detach(self, identity: GuestIdentity) -> None:
        """Forget a guest that is gone, and whatever still leads to it."""
        self._steering.remove_guest(identity.index)
        self._macs.pop(identity.index, None)

    def refused(self) -> dict[str, int]:
        """Packets of guests that were refused so far, by cause."""
        return self._steering.refused()

    # -- for the reaper ----------------------------------------------------------------------------

    def entries(self) -> Entries | None:
        """What is steered now; None when the rules are gone."""
        try:
            return self._steering.entries()
        except NameUnknown:
            return None

    def neighbours(self) -> Mapping[int, str]:
        """Slot → MAC, as the kernel has it."""
        return self._steering.neighbours()

    def attached(self) -> Mapping[int, str]:
        """Slot → MAC, as it should be."""
        return dict(self._macs)

    def reinstall(self) -> None:
        """Put the rules back; entries that are there stay."""
        self._steering.install()

    def attach_again(self, slot: int) -> None:
        """Put the neighbour entries of an attached guest back."""
        self._steering.add_guest(slot, self._macs[slot])

    def detach_slot(self, slot: int) -> None:
        """Take away what leads to a slot nobody attached."""
        self._steering.remove_guest(slot)

    def remove_entry(self, entry: FiveTuple | int) -> None:
        """This flow or connection id comes to the orchestrator again. Idempotent."""
        if isinstance(entry, FiveTuple):
            self._steering.unsteer(flows=[entry])
        else:
            self._steering.unsteer(connections=[entry])

    # -- for the orchestrator ----------------------------------------------------------------------

    def admit(self, connection: Connection, guest_index: int) -> None:
        if (flow := connection.local_flow) is not None:
            self._steering.admit(guest_index, flow)

    def steer(self, connection: Connection, guest_index: int) -> None:
        flow = connection.local_flow
        self._steering.steer(guest_index, flows=[flow] if flow else [], connections=[connection.id])

    def unsteer(self, connection: Connection) -> None:
        flow = connection.local_flow
        self._steering.unsteer(flows=[flow] if flow else [], connections=[connection.id])

    def deliver(self, packets: list[HeldPacket], guest_index: int) -> None:
        mac, address = self._macs[guest_index], self._rules.guest_address(guest_index)
        for held in packets:
            if held.upstream is None:
                self._delivery.inner([held.data], mac)
            else:
                self._delivery.underlay([(held.data, held.upstream)], address)

    def answer(self, packet: bytes) -> None:
        self._miss.write(packet)

    def send(self, datagram: bytes, neighbour: str) -> None:
        try:
            self._socket.sendto(datagram, (neighbour, self._config.port))
        except OSError:
            # Like any datagram it may be lost; what it said comes again or was optional.
            return
