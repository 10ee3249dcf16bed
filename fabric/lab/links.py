"""The underlay links of a lab: wires between namespaces, with the delay, rate and loss wanted.

Owns: making links, and going back to the file. May import: errors, host.network.netlink, lab. A
link is two veth pairs which meet in a namespace of the lab's own; what happens there is
fabric.lab.switch. Both ends belong to their hosts for good: whatever is done to a link while it
carries frames, its interfaces, addresses and neighbours stay.
"""

from __future__ import annotations

from fabric.host.network.netlink import Netlink
from fabric.lab import control, names
from fabric.lab.names import Owner
from fabric.lab.resources import Resource, delete_if_there
from fabric.lab.spec import End, LinkSpec
from fabric.lab.standing import DOWN
from fabric.lab.state import LabState
from fabric.lab.switch import Switch
from fabric.lab.world import World


class Link(Resource):
    """One link, as the file has it when it is made."""

    def __init__(self, lab: LabState, link: LinkSpec) -> None:
        self._lab = lab
        self._link = link
        self._ends = (link.a, link.b)
        name = lab.spec.name
        self._namespaces = tuple(names.namespace_name(name, end.host) for end in self._ends)
        self._meeting = names.emulator_namespace(name)
        self._switch = Switch(name, link)
        self.label = f"link {link.a.host} -- {link.b.host}"

    def present(self, world: World) -> bool:
        present = True
        for namespace, end in zip(self._namespaces, self._ends, strict=True):
            present = world.is_ours(end.interface, self._owner(end), namespace) and present
        return present and self._switch.present(world)

    def create(self, world: World) -> None:
        self.remove(world)  # one end may have survived
        self._lab.standings.pop(self._link.number, None)
        ports = names.emulator_ports(self._link.number)
        for namespace, end, port in zip(self._namespaces, self._ends, ports, strict=True):
            netlink = world.netlink(namespace)
            netlink.create_veth(
                end.interface,
                port,
                alias=self._owner(end).alias(),
                peer_netns=self._meeting,
                mtu=self._link.mtu,
            )
            self._configure(netlink, end)
        world.changed(*self._namespaces, self._meeting)
        self._switch.install(world)
        self._switch.set(world, self._link.standing)

    def _owner(self, end: End) -> Owner:
        return Owner(self._lab.spec.name, end.host)

    def _configure(self, netlink: Netlink, end: End) -> None:
        # The underlay is IPv4: no neighbour discovery noise in captures of it.
        netlink.sysctl(f"ipv6/conf/{end.interface}/disable_ipv6", 1)
        netlink.add_address(end.interface, f"{end.address}/31")
        netlink.set_up(end.interface)

    def remove(self, world: World) -> None:
        for namespace, end in zip(self._namespaces, self._ends, strict=True):
            link = world.links(namespace).get(end.interface)
            if link is not None and link.alias == self._owner(end).alias():
                delete_if_there(world, namespace, end.interface)
        self._switch.remove(world)
        world.changed(*self._namespaces, self._meeting)


class BackToFile(Resource):
    """What ``fabric link set``, or a check that was killed, changed of a link: undone by ``up``."""

    def __init__(self, lab: LabState, link: LinkSpec) -> None:
        self._lab = lab
        self._link = link
        self._switch = Switch(lab.spec.name, link)
        undone = link.standing.changes_from(lab.standing(link))
        undone = undone or ["was cut" if link.number in lab.cuts else "carrier"]
        self.label = f"link {link.a.host} -- {link.b.host}: {', '.join(undone)}"

    def present(self, world: World) -> bool:
        if not self._switch.present(world):
            return True  # it is made anew, as the file has it
        same = self._link.number not in self._lab.standings.keys() | self._lab.cuts.keys()
        return same and self._switch.is_carrying(world) == (self._link.state != DOWN)

    def create(self, world: World) -> None:
        control.apply(world, self._lab, self._link, self._link.standing)

    def remove(self, world: World) -> None:
        """It is no thing of its own: goes with the link."""
