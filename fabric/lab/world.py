"""This machine, as the lab builder sees and changes it.

Owns: open netlink sockets and snapshots of interfaces while a lab is reconciled. May import:
errors, host, lab.names. One socket per namespace, opened when first needed: wiring costs no process
and no more than one dump per namespace.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from fabric.errors import Conflict
from fabric.host.network import netns
from fabric.host.network.link_info import LinkInfo
from fabric.host.network.netlink import Netlink
from fabric.host.network.nftables import NftablesIn
from fabric.lab.names import Owner

if TYPE_CHECKING:
    from fabric.host.vmm.domains import Hypervisor

ROOT = ""
"""Stands for the caller's own namespace, where bridges and taps live."""
NETNS_FILES = Path("/etc/netns")
"""``ip netns exec NAME`` mounts the files of /etc/netns/NAME over those of /etc."""


class World:
    """A context manager; closes what it opened. Not thread-safe."""

    def __init__(
        self,
        open_hypervisor: Callable[[], Hypervisor],
        *,
        netns_files: Path = NETNS_FILES,
    ) -> None:
        self.netns_files = netns_files
        self.netem: bool | None = None
        """Whether the kernel has it; None before anybody asked (see fabric.lab.switch)."""
        self._open_hypervisor = open_hypervisor
        self._stack = ExitStack()
        self._sockets: dict[str, Netlink] = {}
        self._nftables: dict[str, NftablesIn] = {}
        self._links: dict[str, dict[str, LinkInfo]] = {}
        self._namespaces: set[str] | None = None
        self._hypervisor: Hypervisor | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    @property
    def hypervisor(self) -> Hypervisor:
        if self._hypervisor is None:
            self._hypervisor = self._open_hypervisor()
            self._stack.callback(self._hypervisor.close)
        return self._hypervisor

    # -- namespaces --------------------------------------------------------------------------------

    def namespaces(self) -> set[str]:
        if self._namespaces is None:
            self._namespaces = set(netns.list_netns())
        return self._namespaces

    def create_namespace(self, name: str, owner: Owner) -> None:
        """A namespace with our mark: the alias of its loopback interface. Raises Conflict."""
        netns.create_netns(name)
        self._namespaces = None
        self.netlink(name).set_alias("lo", owner.alias())
        self.netlink(name).set_up("lo")

    def delete_namespace(self, name: str) -> None:
        """Forget the name. Whatever still runs inside must have been ended before. Idempotent."""
        if (socket := self._sockets.pop(name, None)) is not None:
            socket.__exit__(None, None, None)
        self._close_nftables(name)
        self._links.pop(name, None)
        netns.delete_netns(name)
        self._namespaces = None

    def owner_of_namespace(self, name: str) -> Owner | None:
        """Whose namespace it is; None when it is absent or bears no mark of ours."""
        if name not in self.namespaces():
            return None
        loopback = self.links(name).get("lo")
        return Owner.from_alias(loopback.alias) if loopback else None

    # -- links -------------------------------------------------------------------------------------

    def netlink(self, namespace: str = ROOT) -> Netlink:
        """The socket of a namespace; whoever changes links through it calls :meth:`changed`."""
        if namespace not in self._sockets:
            socket = Netlink(namespace or None)
            socket.__enter__()
            self._stack.callback(self._close, namespace, socket)
            self._sockets[namespace] = socket
        return self._sockets[namespace]

    def _close(self, namespace: str, socket: Netlink) -> None:
        if self._sockets.get(namespace) is socket:  # else delete_namespace closed it
            del self._sockets[namespace]
            socket.__exit__(None, None, None)

    def nftables(self, namespace: str) -> NftablesIn:
        """nft inside a namespace."""
        if namespace not in self._nftables:
            self._nftables[namespace] = NftablesIn(namespace).__enter__()
            self._stack.callback(self._close_nftables, namespace)
        return self._nftables[namespace]

    def _close_nftables(self, namespace: str) -> None:
        if (nftables := self._nftables.pop(namespace, None)) is not None:
            nftables.__exit__(None, None, None)

    def links(self, namespace: str = ROOT) -> dict[str, LinkInfo]:
        """Interfaces by name; none when the namespace does not exist."""
        if namespace != ROOT and namespace not in self.namespaces():
            return {}
        if namespace not in self._links:
            found = self.netlink(namespace).list_links()
            self._links[namespace] = {link.name: link for link in found}
        return self._links[namespace]

    def changed(self, *namespaces: str) -> None:
        """Forget the snapshots of these namespaces (all, when none is named)."""
        for namespace in namespaces or tuple(self._links):
            self._links.pop(namespace, None)

    def is_ours(self, name: str, owner: Owner, namespace: str = ROOT) -> bool:
        """Whether the interface exists and is that owner's.

        Raises Conflict when it exists and is somebody else's: it must not be touched.
        """
        link = self.links(namespace).get(name)
        if link is None:
            return False
        if link.alias != owner.alias():
            where = f"namespace {namespace}" if namespace else "this machine"
            raise Conflict(
                f"interface {name} exists on {where} and is not of lab {owner.lab}",
                cure=f"remove it (ip link del {name}), or give the lab another name",
            )
        return True
