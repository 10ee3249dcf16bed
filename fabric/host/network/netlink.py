"""Links, addresses, routes and neighbours, through one netlink socket per namespace.

Owns: everything this project asks of rtnetlink and of /proc/sys/net. The only importer of pyroute2
(lazily: it costs 200 ms). May import: errors, host.network.{link_info,netns,shaping}.

Each :class:`Netlink` has a thread of its own. A thread can stand in another network namespace than
its process, so the socket and /proc/sys are simply opened there; and pyroute2 runs an event loop
inside, which would refuse to start on the orchestrator's own thread.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from fabric.errors import FabricError, NameUnknown, ToolMissing
from fabric.host.network import shaping
from fabric.host.network.link_info import LinkInfo, Traffic, link_info, link_traffic
from fabric.host.network.netns import enter_netns, translate

_NUD_PERMANENT, _NUD_NOARP = 0x80, 0x40
_NTF_MASTER, _NTF_STICKY = 0x04, 0x40
_IFA_F_NODAD = 0x02

T = TypeVar("T")


class Netlink:
    """One namespace's network configuration; ``netns`` is its name or path, None the caller's own.

    A context manager. Calls block for about 0.5 ms each. All raise NotRoot, Conflict (it exists),
    NameUnknown (no such interface, route …), KernelLacks or EnvironmentFault.
    """

    def __init__(self, netns: str | None = None) -> None:
        self.netns = netns
        self._worker: ThreadPoolExecutor | None = None
        self._route: Any = None

    def __enter__(self) -> Self:
        self._worker = ThreadPoolExecutor(1, thread_name_prefix=f"netlink-{self.netns or 'own'}")
        try:
            self._in_namespace("open", self._open)
        except BaseException:
            self._worker.shutdown()
            self._worker = None
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._worker is not None:
            self._worker.submit(self._route.close).result()
            self._worker.shutdown()
            self._worker = None

    def _open(self) -> None:
        if self.netns is not None:
            enter_netns(self.netns)
        try:
            from pyroute2 import IPRoute
            from pyroute2.netlink.rtnl.tcmsg import plugins, sched_pfifo
        except ImportError as exc:
            raise ToolMissing("the Python package pyroute2", cure="run make setup") from exc
        plugins.setdefault("bfifo", sched_pfifo)  # the same parameter, in bytes
        self._route = IPRoute()

    def _in_namespace(self, what: str, action: Callable[[], T]) -> T:
        """Run ``action`` on the thread that stands in the namespace; translate its errors."""
        if self._worker is None:
            raise RuntimeError("Netlink used outside its with-block")
        try:
            return self._worker.submit(action).result()
        except FabricError:
            raise
        except Exception as exc:
            code = getattr(exc, "code", None) or getattr(exc, "errno", None)
            if not isinstance(code, int):
                raise
            raise translate(code, f"{self._where()}{what}") from exc

    def _where(self) -> str:
        return f"{self.netns}: " if self.netns else ""

    # -- links ----------------------------------------------------------------------------------

    def exists(self, name: str) -> bool:
        """Whether an interface of this name is in the namespace."""
        return self._in_namespace(
            f"look for {name}", lambda: any(name == known for _, known in socket.if_nameindex())
        )

    def create_bridge(self, name: str, *, alias: str, mtu: int = 1500) -> None:
        """A bridge without spanning tree, so ports forward at once, and without multicast snooping,
        so no port can ask for packets; down until set_up."""

        def create() -> None:
            options = {"br_stp_state": 0, "br_mcast_snooping": 0}
            self._route.link("add", ifname=name, kind="bridge", mtu=mtu, **options)
            self._set(name, ifalias=alias)

        self._in_namespace(f"create bridge {name}", create)

    def create_veth(
        self,
        name: str,
        peer: str,
        *,
        alias: str,
        peer_netns: str | None = None,
        mtu: int = 1500,
        master: str | None = None,
    ) -> None:
        """A veth pair; the peer is born inside ``peer_netns``, so its name never clashes here.

        The alias goes on this end; the peer's end is for that namespace's Netlink to mark.
        """

        def create() -> None:
            other: dict[str, Any] = {"ifname": peer, "mtu": mtu}
            if peer_netns is not None:
                other["net_ns_fd"] = peer_netns
            self._route.link("add", ifname=name, kind="veth", mtu=mtu, peer=other)
            self._set(name, ifalias=alias)
            if master is not None:
                self._set(name, master=_index(master))

        self._in_namespace(f"create veth {name}", create)

    def set_up(self, name: str, up: bool = True) -> None:
        self._change(name, state="up" if up else "down")

    def set_mtu(self, name: str, mtu: int) -> None:
        """``mtu`` in bytes."""
        self._change(name, mtu=mtu)

    def set_mac(self, name: str, mac: str) -> None:
        """``mac`` in colon form. An interface that has it is left alone: at every change the kernel
        forgets the interface's neighbours."""

        def change() -> None:
            (link,) = self._route.get_links(_index(name))
            if link.get_attr("IFLA_ADDRESS") != mac:
                self._set(name, address=mac)

        self._in_namespace(f"change {name}", change)

    def set_alias(self, name: str, alias: str) -> None:
        self._change(name, ifalias=alias)

    def set_master(self, name: str, master: str | None) -> None:
        """Make ``name`` a port of the bridge ``master``; None releases it."""
        self._in_namespace(
            f"put {name} into {master}",
            lambda: self._set(name, master=_index(master) if master else 0),
        )

    def secure_port(self, name: str, mac: str, options: Mapping[str, int]) -> None:
        """Set options of a bridge port (the kernel ignores those new to it), and have the bridge
        look for ``mac`` behind it, whoever else sends with it. Idempotent."""

        def change() -> None:
            index = _index(name)
            static = {"state": _NUD_NOARP, "flags": _NTF_MASTER | _NTF_STICKY}
            self._route.fdb("replace", ifindex=index, lladdr=mac, **static)
            self._route.brport("set", index=index, **options)

        self._in_namespace(f"secure bridge port {name}", change)

    def port_option(self, name: str, option: str) -> int:
        """One option of a bridge port; 0 also where the kernel does not know it."""

        def look() -> int:
            (link,) = self._route.get_links(_index(name))
            return link.get_nested("IFLA_LINKINFO", "IFLA_INFO_SLAVE_DATA", option) or 0

        return self._in_namespace(f"look at bridge port {name}", look)

    def delete_link(self, name: str) -> bool:
        """Remove the interface; False when there was none."""

        def delete() -> None:
            self._route.link("del", index=_index(name))

        try:
            self._in_namespace(f"delete {name}", delete)
        except NameUnknown:
            return False
        return True

    def list_links(self) -> list[LinkInfo]:
        """All interfaces of the namespace."""

        def dump() -> list[LinkInfo]:
            links = list(self._route.get_links())
            names = {link["index"]: link.get_attr("IFLA_IFNAME") for link in links}
            return [link_info(link, names) for link in links]

        return self._in_namespace("list links", dump)

    def traffic(self) -> dict[str, Traffic]:
        """Carrier and counters of every interface of the namespace."""

        def dump() -> dict[str, Traffic]:
            links = self._route.get_links()
            return {link.get_attr("IFLA_IFNAME"): link_traffic(link) for link in links}

        return self._in_namespace("count", dump)

    def set_rate(self, name: str, bits_per_second: int) -> None:
        """Limit what leaves through ``name``, see :mod:`host.network.shaping`; 0: no limit."""

        def change() -> None:
            shaping.shape(self._route, _index(name), bits_per_second)

        self._in_namespace(f"set rate of {name}", change)

    # -- addresses, routes, neighbours ------------------------------------------------------------

    def add_address(self, name: str, address: str) -> None:
        """``address`` with prefix length, e.g. ``10.77.0.1/32``. Idempotent."""
        ip, _, length = address.partition("/")
        # Duplicate address detection would leave an IPv6 address unusable for a second or two.
        flags = {"flags": _IFA_F_NODAD} if ":" in ip else {}

        def add() -> None:
            self._route.addr(
                "replace",
                index=_index(name),
                address=ip,
                prefixlen=int(length),
                **flags,
            )

        self._in_namespace(f"add {address} to {name}", add)

    def addresses(self) -> dict[str, str]:
        """Every address of the namespace, without prefix length → the interface that has it."""

        def dump() -> dict[str, str]:
            names = dict(socket.if_nameindex())
            return {
                str(entry.get_attr("IFA_LOCAL") or entry.get_attr("IFA_ADDRESS")): names.get(
                    entry["index"], ""
                )
                for entry in self._route.get_addr()
            }

        return self._in_namespace("list addresses", dump)

    def delete_address(self, name: str, address: str) -> None:
        """Idempotent."""
        ip, _, length = address.partition("/")

        def delete() -> None:
            index = _index(name)
            self._route.addr("del", index=index, address=ip, prefixlen=int(length))

        with suppress(NameUnknown):
            self._in_namespace(f"delete {address} from {name}", delete)

    def add_route(
        self,
        prefix: str,
        *,
        dev: str | None = None,
        via: str | None = None,
        src: str | None = None,
        mtu: int | None = None,
    ) -> None:
        """Route ``prefix`` (or ``default``); ``src`` is the preferred source. Idempotent."""
        arguments: dict[str, Any] = {"dst": prefix}
        arguments["family"] = socket.AF_INET6 if ":" in f"{prefix}{via}" else socket.AF_INET
        if via is not None:
            arguments["gateway"] = via
        if src is not None:
            arguments["prefsrc"] = src
        if mtu is not None:
            arguments["metrics"] = {"mtu": mtu}

        def add() -> None:
            if dev is not None:
                arguments["oif"] = _index(dev)
            self._route.route("replace", **arguments)

        self._in_namespace(f"route {prefix}", add)

    def add_neighbour(self, name: str, mac: str, *addresses: str) -> None:
        """Permanent entries: no ARP or ND will ever be needed. Idempotent."""
        self._neighbour("replace", name, addresses, lladdr=mac, state=_NUD_PERMANENT)

    def delete_neighbour(self, name: str, address: str) -> None:
        """Idempotent."""
        with suppress(NameUnknown):
            self._neighbour("del", name, (address,))

    def list_neighbours(self, name: str) -> dict[str, str]:
        """Permanent entries of an interface: address → MAC."""

        def dump() -> dict[str, str]:
            found = {}
            for family in (socket.AF_INET, socket.AF_INET6):
                for entry in self._route.get_neighbours(
                    family, ifindex=_index(name), state=_NUD_PERMANENT
                ):
                    found[entry.get_attr("NDA_DST")] = entry.get_attr("NDA_LLADDR")
            return found

        return self._in_namespace(f"list neighbours of {name}", dump)

    def _neighbour(self, command: str, name: str, them: tuple[str, ...], **fields: Any) -> None:
        def change() -> None:
            fields["ifindex"] = _index(name)
            for address in them:
                family = socket.AF_INET6 if ":" in address else socket.AF_INET
                self._route.neigh(command, dst=address, family=family, **fields)

        self._in_namespace(f"neighbour {', '.join(them)} on {name}", change)

    # -- sysctls ----------------------------------------------------------------------------------

    def sysctl(self, path: str, value: str | int) -> None:
        """Write ``/proc/sys/net/<path>`` of this namespace, e.g. ``ipv4/ip_forward``."""
        self.sysctls({path: value})

    def sysctls(self, values: Mapping[str, str | int]) -> None:
        """Like :meth:`sysctl`, for several."""
        self._in_namespace(f"sysctl {', '.join(values)}", lambda: _write_sysctls(values))

    def read_sysctl(self, path: str) -> str:
        return self._in_namespace(
            f"sysctl {path}", lambda: (Path("/proc/sys/net") / path).read_text().strip()
        )

    def _change(self, name: str, **fields: Any) -> None:
        self._in_namespace(f"change {name}", lambda: self._set(name, **fields))

    def _set(self, name: str, **fields: Any) -> None:
        self._route.link("set", index=_index(name), **fields)


def _index(name: str) -> int:
    try:
        return socket.if_nametoindex(name)
    except OSError as exc:  # which carries no errno of its own
        raise OSError(errno.ENODEV, f"no interface {name}") from exc


def _write_sysctls(values: Mapping[str, str | int]) -> None:
    for path, value in values.items():
        target = Path("/proc/sys/net") / path
        # Reading first spares hosts with a read-only /proc/sys that are already set up right.
        if target.read_text().strip() != str(value):
            target.write_text(str(value))
