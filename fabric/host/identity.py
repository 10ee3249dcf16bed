"""Every name and address of a guest, derived from (lab, host, node, index).

Owns: the naming rules of guests and of the interfaces of one host. May import: errors, host.config.
Nothing here is random: the same slot of the same host of the same lab always has the same identity,
so a leftover can be recognised, and a test can say what it expects. Sources: IEEE 802 (locally
administered MAC addresses), IFNAMSIZ in Linux (interface names of at most 15 characters).
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from hashlib import blake2s
from pathlib import Path

from fabric.errors import CapacityExceeded
from fabric.host.config import HostConfig

MAX_INTERFACE_NAME = 15
"""IFNAMSIZ is 16 bytes with its terminating zero."""

MAX_GUEST_INDEX = 1022
"""A Linux bridge has 1024 ports (BR_PORT_BITS = 10): one is the veth into the host, and index 0
is not used."""

MAX_SOCKET_PATH = 107
"""sun_path is 108 bytes with its terminating zero (unix(7))."""

SSH_PORT = 22
CHANNEL_NAME = "org.fabric.agent.0"
"""Name of the virtio-serial port the agent speaks through."""


def lab_tag(lab: str) -> str:
    """Four hex digits that stand for a lab in interface names."""
    return blake2s(lab.encode()).hexdigest()[:4]


def domain_name(lab: str, host: str, index: int) -> str:
    """libvirt domain name of a slot."""
    return f"fabric-{lab}-{host}-g{index}"


def slot_of(lab: str, host: str, name: str) -> int | None:
    """The slot of a domain name; None for anything :func:`domain_name` does not make."""
    digits = name.removeprefix(domain_name(lab, host, 0)[:-1])
    slot = int(digits) if digits.isdecimal() and len(digits) <= 4 else 0
    return slot if 1 <= slot <= MAX_GUEST_INDEX and domain_name(lab, host, slot) == name else None


def tap_name(lab: str, node: int, index: int) -> str:
    """Name of the guest's tap; hashed where the plain form would not fit an interface name."""
    tag = lab_tag(lab)
    plain = f"ft{tag}h{node}g{index}"
    if len(plain) <= MAX_INTERFACE_NAME:
        return plain
    return f"ft{tag}" + blake2s(f"{node}/{index}".encode()).hexdigest()[:9]


def mac_address(lab: str, node: int, index: int) -> str:
    """``02:fa:`` + one byte of the lab + 14 bits of the node + 10 bits of the index.

    02 sets the locally administered bit and leaves the group bit clear (IEEE 802). The index comes
    whole, so two guests of one bridge can never share an address; nodes beyond 2^14 fold.
    """
    lab_byte = bytes.fromhex(lab_tag(lab))[0]
    tail = ((node & 0x3FFF) << 10) | (index & 0x3FF)
    octets = (0x02, 0xFA, lab_byte, tail >> 16, (tail >> 8) & 0xFF, tail & 0xFF)
    return ":".join(f"{octet:02x}" for octet in octets)


@dataclass(frozen=True)
class GuestIdentity:
    """Who a guest is, before it exists."""

    lab: str
    host: str
    node: int
    index: int
    """Slot on this host, 1 … MAX_GUEST_INDEX."""
    domain: str
    tap: str
    bridge: str
    mac: str
    address: str
    prefix_length: int
    gateway: str
    channel: Path
    """Unix socket of the agent's virtio-serial port."""

    @classmethod
    def derive(cls, config: HostConfig, index: int) -> GuestIdentity:
        """Identity of slot ``index`` of the configured host.

        Raises CapacityExceeded when the guest subnet or the bridge has no such slot, or when the
        run directory is too deep for a unix socket path.
        """
        subnet = ipaddress.IPv4Network(config.guest_subnet)
        # The first address is the gateway's, the last is the broadcast address.
        highest = min(MAX_GUEST_INDEX, subnet.num_addresses - 3)
        if not 1 <= index <= highest:
            raise CapacityExceeded(
                f"guest slot {index} on host {config.host}: {subnet} has slots 1 to {highest}",
                limit="guest_subnet",
                cure="give the host a larger guest_subnet, at most a /22 is ever used",
            )
        channel = config.host_dir / f"g{index}.channel"
        if len(str(channel).encode()) > MAX_SOCKET_PATH:
            raise CapacityExceeded(
                f"{channel}: longer than the {MAX_SOCKET_PATH} bytes of a unix socket path",
                limit="run_dir",
                cure="use a shorter run_dir, lab or host name",
            )
        return cls(
            lab=config.lab,
            host=config.host,
            node=config.node,
            index=index,
            domain=domain_name(config.lab, config.host, index),
            tap=tap_name(config.lab, config.node, index),
            bridge=config.bridge,
            mac=mac_address(config.lab, config.node, index),
            address=str(subnet[1 + index]),
            prefix_length=subnet.prefixlen,
            gateway=str(config.gateway),
            channel=channel,
        )

    def kernel_arguments(self, mtu: int) -> list[str]:
        """What the guest's init reads from the kernel command line; ``mtu`` in bytes."""
        return [
            f"fabric.ip={self.address}/{self.prefix_length}",
            f"fabric.gw={self.gateway}",
            f"fabric.mtu={mtu}",
        ]
