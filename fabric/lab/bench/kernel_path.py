"""Reference 1: the kernels of the very same guests forward, the agents stand by.

Owns: the routes of the reference networks. May import: host, lab. Packets take the same way as the
fabric's: host → its guest → host → next host → its guest … → last host, each through the guest's
one interface, but as plain IP packets routed by the guests' kernels (ip_forward).

The networks are RFC 2544's own, 198.18.0.0/15; network ``n`` is 198.18.n.0/24 and host ``i`` has
address i in it.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence

from fabric.host.network.nftables import Nftables
from fabric.lab.bench.bed import Bed, Seat

EVERYTHING = "198.18.0.0/15"
# Rules of the hosts, before the local table, which moves behind them: a packet of the last host
# must pass its guest although it is for the host itself.
_ARRIVED, _FROM_GUEST, _TO_GUEST, _LOCAL = 5, 10, 20, 40
_GUEST_RULE = 50
"""Before the agent's rule (100), which would lead everything into its TUN."""
_TABLES = 1000


def address(network: int, node: int) -> str:
    """Of a host in a reference network."""
    return f"198.18.{network}.{node}"


def open_path(bed: Bed, seats: Sequence[Seat], network: int, mtu: int) -> None:
    """Make ``network`` run through these guests. ``mtu``: as the overlay has, so that a stream has
    equal segments on both. Undone by taking the lab down."""
    for place, seat in enumerate(seats):
        host, namespace = seat.host, bed.namespace(seat.host)
        guests = host.guest_interface
        to_guest, onward = _TABLES + 2 * network, _TABLES + 2 * network + 1
        prefix, own = f"198.18.{network}.0/24", address(network, host.node)
        commands = [
            f"address add {own}/32 dev lo",
            f"rule add priority {_ARRIVED} iif {guests} to {own} lookup local",
            f"rule add priority {_FROM_GUEST} iif {guests} to {prefix} lookup {onward}",
            f"rule add priority {_TO_GUEST} to {prefix} lookup {to_guest}",
            f"route add default via {seat.address} dev {guests} mtu {mtu} table {to_guest}",
        ]
        if network == 0:
            commands += [f"rule add priority {_LOCAL} lookup local", "rule del priority 0"]
        for _own, far, _link in bed.spec.links_of(host.host):
            behind = seats[:place] if far.node < host.node else seats[place + 1 :]
            commands += [
                f"route add {address(network, other.host.node)} via {far.address} table {onward}"
                for other in behind
            ]
        bed.ip(host, commands)
        settings = [
            # What comes back from a guest has a source address of the host itself.
            f"net.ipv4.conf.{guests}.accept_local=1",
            # A packet on its way to the last guest would be matched with the socket it will end at,
            # and a packet that has a socket is not forwarded any more.
            "net.ipv4.ip_early_demux=0",
        ]
        argv = ["ip", "netns", "exec", namespace, "sysctl", "-qw", *settings]
        subprocess.run(argv, check=True)
        bed.on_host(host, _let_pass)
        rule = ["to", EVERYTHING, "priority", str(_GUEST_RULE), "lookup", "main"]
        bed.in_guest(seat, ["busybox", "ip", "rule", "add", *rule])


def let_answers_in(bed: Bed, seat: Seat, port: int) -> None:
    """The seat's guest may send UDP to ``port`` of its host: the bare loop's way back."""

    def run() -> None:
        with Nftables() as nftables:
            guests = seat.host.guest_interface
            nftables.run(
                f'insert rule inet fabric input iifname "{guests}" udp dport {port} accept'
            )

    bed.on_host(seat.host, run)


def _let_pass() -> None:
    # The fabric's own rules let only fabric packets through, and from guests only their own.
    with Nftables() as nftables:
        nftables.run(f"insert rule netdev fabric guest4 ip saddr {EVERYTHING} accept")
        for chain in ("forward", "input"):
            nftables.run(f"insert rule inet fabric {chain} ip daddr {EVERYTHING} accept")
