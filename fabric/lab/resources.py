"""The parts a lab is made of: each knows whether it is there, how to make it, how to remove it.

Owns: namespaces, guest bridges and files of a lab. May import: errors, host, lab. The builder
creates parts in order and removes them in the opposite one; :func:`Resource.remove` is idempotent
and works on what is half gone.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
from abc import ABC, abstractmethod
from pathlib import Path

from fabric.errors import Conflict, NameUnknown
from fabric.host.config import HostConfig
from fabric.host.network.bridge_ports import deafen
from fabric.lab import names, processes, state
from fabric.lab.names import Owner
from fabric.lab.spec import LabSpec
from fabric.lab.world import ROOT, World

FILE_MARK = "# fabric: made by `fabric up`, removed by `fabric down`; lab "
GUEST_GATEWAY_V6 = "fe80::1/64"
"""The guests' IPv6 default gateway: a link-local address needs no subnet per host."""


class Resource(ABC):
    """One part of a lab."""

    label: str
    """What people see: kind and name."""

    @abstractmethod
    def present(self, world: World) -> bool:
        """Whether it is there and whole. Raises Conflict when something of another owner is."""

    def left(self, world: World) -> bool:
        """Whether anything of it is there, whole or not. Raises as :meth:`present`, and what asking
        may raise."""
        return self.present(world)

    @abstractmethod
    def create(self, world: World) -> None:
        """Make it; on failure part of it may be there, which ``remove`` removes."""

    def settle(self, world: World) -> None:
        """Wait until it works. Called after all parts were created, so that daemons start at once
        and not one after the other."""
        return

    def retire(self, world: World) -> None:
        """Ask it to end, without waiting: called on all parts before any is removed."""
        return

    @abstractmethod
    def remove(self, world: World) -> None:
        """Have it gone when this returns. Idempotent."""


class Namespace(Resource):
    """A network namespace: a host of the lab, or the emulator's."""

    def __init__(self, name: str, owner: Owner) -> None:
        self.name = name
        self.owner = owner
        self.label = f"namespace {name}"

    def present(self, world: World) -> bool:
        if self.name not in world.namespaces():
            return False
        if world.owner_of_namespace(self.name) != self.owner:
            raise Conflict(
                f"network namespace {self.name} exists and is not of lab {self.owner.lab}",
                cure=f"remove it (ip netns del {self.name}), or give the lab another name",
            )
        return True

    def create(self, world: World) -> None:
        world.create_namespace(self.name, self.owner)
        if self.owner.host == names.LINKS_HOST:
            # Nobody speaks IP there: no router solicitations into the emulated links.
            world.netlink(self.name).sysctl("ipv6/conf/default/disable_ipv6", 1)

    def remove(self, world: World) -> None:
        # The mark is set right after creation: a namespace without one is never ours, except when
        # `up` was killed between the two. That one is empty, and harmless to leave to its finder.
        if world.owner_of_namespace(self.name) == self.owner:
            processes.end_inside(self.name)
            world.delete_namespace(self.name)


class GuestBridge(Resource):
    """The bridge of a host's guests, and the veth pair that leads from it into the host."""

    def __init__(self, host: HostConfig, mtu: int) -> None:
        self._host = host
        self._mtu = mtu
        self._owner = Owner(host.lab, host.host)
        self._outer = names.veth_name(host.lab, host.node)
        self._namespace = names.namespace_name(host.lab, host.host)
        self.label = f"bridge {host.bridge} of {host.host}"

    def present(self, world: World) -> bool:
        bridge = world.is_ours(self._host.bridge, self._owner)
        outer = world.is_ours(self._outer, self._owner)
        return bridge and outer and names.GUEST_INTERFACE in world.links(self._namespace)

    def create(self, world: World) -> None:
        self.remove(world)  # half of it may have survived
        root, alias = world.netlink(), self._owner.alias()
        root.create_bridge(self._host.bridge, alias=alias, mtu=self._mtu)
        root.create_veth(
            self._outer,
            names.GUEST_INTERFACE,
            alias=alias,
            peer_netns=self._namespace,
            mtu=self._mtu,
            master=self._host.bridge,
        )
        for name in (self._host.bridge, self._outer):
            # This machine itself is no party on the guests' bridge.
            deafen(root, name)
            root.set_up(name)
        inner = world.netlink(self._namespace)
        inner.set_alias(names.GUEST_INTERFACE, alias)
        inner.set_up(names.GUEST_INTERFACE)
        length = ipaddress.ip_network(self._host.guest_subnet).prefixlen
        inner.add_address(names.GUEST_INTERFACE, f"{self._host.gateway}/{length}")
        inner.add_address(names.GUEST_INTERFACE, GUEST_GATEWAY_V6)
        world.changed(ROOT, self._namespace)

    def remove(self, world: World) -> None:
        for name in (self._outer, self._host.bridge):
            link = world.links().get(name)
            if link is not None and link.alias == self._owner.alias():
                world.netlink().delete_link(name)
        world.changed(ROOT, self._namespace)


class HostsFile(Resource):
    """/etc/netns/NAMESPACE/hosts: the lab's host names, for whatever runs on one of its hosts.

    The bare name is the IPv4 address only: with both, programs that race the two families would
    open two connections, and two guests, for one request. ``NAME.v6`` is the IPv6 address.
    """

    def __init__(self, spec: LabSpec, host: HostConfig, directory: Path) -> None:
        self._path = directory / names.namespace_name(spec.name, host.host) / "hosts"
        self._text = hosts_file(spec)
        self._mark = FILE_MARK + spec.name
        self.label = f"file {self._path}"

    def present(self, world: World) -> bool:
        try:
            found = self._path.read_text()
        except FileNotFoundError:
            return False
        if not found.startswith(self._mark + "\n"):
            raise Conflict(f"{self._path} exists and is not ours", cure="move it away")
        return found == self._text

    def create(self, world: World) -> None:
        state.write_file(self._path, self._text)

    def remove(self, world: World) -> None:
        remove_marked_file(self._path, self._mark)


class ConfigFile(Resource):
    """The configuration of one orchestrator."""

    def __init__(self, host: HostConfig) -> None:
        self.path = host.host_dir / "config.json"
        self._text = json.dumps(host.to_json(), indent=1) + "\n"
        self.label = f"file {self.path}"

    def present(self, world: World) -> bool:
        try:
            return self.path.read_text() == self._text
        except FileNotFoundError:
            return False

    def create(self, world: World) -> None:
        state.write_file(self.path, self._text)

    def remove(self, world: World) -> None:
        self.path.unlink(missing_ok=True)


def hosts_file(spec: LabSpec) -> str:
    """The text of a lab's hosts file."""
    lines = [FILE_MARK + spec.name, "127.0.0.1 localhost", "::1 localhost"]
    for host in spec.hosts:
        for address in host.overlay_addresses:
            plain = address.partition("/")[0]
            names_here = f"{host.host}.v6" if ":" in plain else f"{host.host} {host.host}.v4"
            lines.append(f"{plain} {names_here}")
    return "\n".join(lines) + "\n"


def remove_marked_file(path: Path, mark: str) -> bool:
    """Remove a file that starts with our mark, and its directory if that is then empty."""
    try:
        if not path.read_text().startswith(mark):
            return False
        path.unlink()
    except FileNotFoundError:
        return False
    with contextlib.suppress(OSError):
        path.parent.rmdir()
    return True


def delete_if_there(world: World, namespace: str, name: str) -> None:
    """Remove an interface; fine when it, or its namespace, is gone."""
    if namespace != ROOT and namespace not in world.namespaces():
        return
    with contextlib.suppress(NameUnknown):
        world.netlink(namespace).delete_link(name)
    world.changed(namespace)
