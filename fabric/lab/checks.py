"""The checks behind ``fabric doctor``.

Owns: the registry of preconditions of this machine. May import: errors, host, lab. A check never
raises: a FabricError becomes its verdict and cure, and checks change nothing that lasts.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fabric.errors import (
    EnvironmentFault,
    FabricError,
    HypervisorDown,
    KernelLacks,
    ToolMissing,
)
from fabric.lab import preflight
from fabric.lab.builder import Machine

if TYPE_CHECKING:
    from fabric.host.network.netlink import Netlink

OK, WARN, FAIL = "ok", "warn", "fail"

MEBIBYTE = 1 << 20
NEEDED_DISK = 1024 * MEBIBYTE
"""Room to build a guest image: its root, the packages, and the result beside the previous one."""
GUEST_MEMORY = 192 * MEBIBYTE
"""Resident memory of one guest: 128 MiB of its own and what QEMU needs to emulate it."""
WANTED_GUESTS = 8
"""Guests the smallest demonstration has at once."""
BRIDGE_PORTS = 1022
TOOLS = {
    "ip": ("iproute2", True),
    "qemu-system-x86_64": ("qemu-system-x86", True),
    "virsh": ("libvirt-clients", False),
    "tcpdump": ("tcpdump", False),
}
"""Program → (Debian package, whether nothing works without it)."""
SBIN = "/usr/local/sbin:/usr/sbin:/sbin"

LOOSE_FILTER = Path("/proc/sys/net/ipv4/conf/all/rp_filter")

STEERING = """
table netdev probe {
 map flows { type ipv4_addr . inet_service : ipv4_addr
 }
 chain egress { type filter hook egress device "probe0" priority 0
 fwd ip to ip daddr . th dport map @flows device "probe1"
 }
}
table ip probe {
 map connections { typeof @th,128,64 : ip daddr
 }
 chain raw { type filter hook prerouting priority raw
 udp dport 7704 notrack ip daddr set @th,128,64 map @connections
 }
}
"""
"""The two kernel features steering stands on, in small (see fabric.host.network.steering)."""


@dataclass(frozen=True)
class Surroundings:
    """What the checks look at."""

    run_dir: Path
    state_dir: Path
    libvirt_uri: str
    machine: Callable[[], Machine]


@dataclass(frozen=True)
class Result:
    """One check's verdict."""

    name: str
    verdict: str
    detail: str
    cure: str = ""

    def to_json(self) -> dict[str, str]:
        return asdict(self)


Check = Callable[[Surroundings], tuple[str, str] | tuple[str, str, str]]
"""(verdict, detail[, cure]); a FabricError raised means FAIL."""


def run_checks(surroundings: Surroundings) -> Iterator[Result]:
    """All checks, in an order in which the first failure is usually the cause of the others."""
    for name, check in CHECKS.items():
        try:
            yield Result(name, *check(surroundings))
        except FabricError as exc:
            yield Result(name, FAIL, exc.message, exc.cure)


def _root(_: Surroundings) -> tuple[str, str]:
    preflight.require_root()
    return OK, "running as root"


def _tools(_: Surroundings) -> tuple[str, str] | tuple[str, str, str]:
    path = f"{os.defpath}:{SBIN}"
    missing = {t: entry for t, entry in TOOLS.items() if shutil.which(t, path=path) is None}
    if not missing:
        return OK, ", ".join(TOOLS)
    packages = " ".join(package for package, _ in missing.values())
    verdict = FAIL if any(required for _, required in missing.values()) else WARN
    return verdict, f"not installed: {', '.join(missing)}", f"apt-get install {packages}"


def _tun(_: Surroundings) -> tuple[str, str]:
    if not preflight.TUN_DEVICE.exists():
        raise KernelLacks(f"{preflight.TUN_DEVICE} does not exist", cure="modprobe tun")
    try:
        os.close(os.open(preflight.TUN_DEVICE, os.O_RDWR | os.O_CLOEXEC))
    except OSError as exc:
        raise KernelLacks(
            f"{preflight.TUN_DEVICE}: {exc.strerror}", cure="run as root, with the module tun"
        ) from exc
    return OK, str(preflight.TUN_DEVICE)


def _libnftables(_: Surroundings) -> tuple[str, str]:
    try:
        ctypes.CDLL("libnftables.so.1")
    except OSError as exc:
        raise ToolMissing(f"libnftables: {exc}", cure="apt-get install libnftables1") from exc
    return OK, "libnftables.so.1 loads"


@contextlib.contextmanager
def _scratch() -> Iterator[Netlink]:
    """A namespace to try things in; it is removed again. Raises NotRoot."""
    preflight.require_root()
    from fabric.host.network.netlink import Netlink
    from fabric.host.network.netns import create_netns, delete_netns

    name = f"fabric-doctor-{os.getpid()}"
    create_netns(name)
    try:
        with Netlink(name) as netlink:
            yield netlink
    finally:
        delete_netns(name)


def _nftables(_: Surroundings) -> tuple[str, str]:
    """Load small steering rules."""
    from fabric.host.network.netns import enter_netns
    from fabric.host.network.nftables import Nftables

    failure: list[FabricError] = []

    def load(scratch: str) -> None:
        try:
            enter_netns(scratch)
            with Nftables() as nft:
                nft.run(STEERING)
        except FabricError as exc:
            failure.append(exc)

    with _scratch() as netlink:
        netlink.create_veth("probe0", "probe1", alias="fabric doctor")
        # A thread can stand in another namespace than its process, and is thrown away.
        thread = threading.Thread(target=load, args=(netlink.netns,))
        thread.start()
        thread.join()
    if failure:
        raise KernelLacks(
            f"nftables cannot steer: {failure[0].message}", cure="a kernel of 5.16 or newer"
        ) from failure[0]
    return OK, "egress forwarding and payload maps load"


def _isolation(_: Surroundings) -> tuple[str, str] | tuple[str, str, str]:
    """Whether guests can be kept from sending as somebody else, and from this machine."""
    from fabric.host.network.bridge_ports import PORT_OPTIONS, is_locked

    with _scratch() as netlink:
        netlink.create_bridge("probe", alias="fabric doctor")
        netlink.create_veth("probe0", "probe1", alias="fabric doctor", master="probe")
        netlink.secure_port("probe0", "02:fa:00:00:00:01", PORT_OPTIONS)
        locked = is_locked(netlink, "probe0")
    if not locked:
        return (
            WARN,
            "bridge ports cannot be locked: a guest could send with another guest's MAC",
            "a kernel of 5.18 or newer",
        )
    if LOOSE_FILTER.read_text().strip() == "2":
        return (
            WARN,
            f"{LOOSE_FILTER} is 2 and so weakens the filter that keeps guests from this machine",
            "sysctl net.ipv4.conf.all.rp_filter=0, or 1; each interface has a filter of its own",
        )
    return OK, "a guest sends with its own MAC only, and not to this machine"


def _bridge(_: Surroundings) -> tuple[str, str] | tuple[str, str, str]:
    filters = [
        path.name
        for path in Path("/proc/sys/net/bridge").glob("bridge-nf-call-ip*tables")
        if path.read_text().strip() == "1"
    ]
    if filters:
        return (
            WARN,
            f"{', '.join(filters)}: this machine's firewall also filters guests' bridges",
            "sysctl net.bridge.bridge-nf-call-iptables=0 net.bridge.bridge-nf-call-ip6tables=0",
        )
    return OK, f"up to {BRIDGE_PORTS} guests per host; no firewall in between"


def _libvirt(around: Surroundings) -> tuple[str, str] | tuple[str, str, str]:
    from fabric.host.vmm.libvirtd import SYSTEM_URI, answers

    if answers(around.libvirt_uri):
        return OK, f"{around.libvirt_uri} answers"
    if around.libvirt_uri != SYSTEM_URI:
        raise HypervisorDown(
            f"{around.libvirt_uri} does not answer",
            cure="start that libvirtd, or leave FABRIC_LIBVIRT_URI unset to use this machine's",
        )
    if shutil.which("libvirtd", path=f"{os.defpath}:{SBIN}") is None:
        raise ToolMissing(
            f"{around.libvirt_uri} does not answer and libvirtd is not installed",
            cure="apt-get install libvirt-daemon-system qemu-system-x86",
        )
    return WARN, f"{around.libvirt_uri} does not answer", "`fabric up` starts libvirtd by itself"


def _apparmor(_: Surroundings) -> tuple[str, str] | tuple[str, str, str]:
    from fabric.host.vmm.apparmor import CURE, AppArmor

    apparmor = AppArmor()
    if not apparmor.confines_guests:
        return OK, "does not confine guests on this machine"
    if problem := apparmor.problem():
        return WARN, f"{problem}: guests can only boot cold", CURE
    return OK, "guests are confined, and may use templates"


def _image(around: Surroundings) -> tuple[str, str]:
    from fabric.host.vmm.image import load_image

    return OK, f"valid, digest {load_image(around.state_dir, verify=True).digest[:16]}"


def _acceleration(around: Surroundings) -> tuple[str, str] | tuple[str, str, str]:
    from fabric.host.vmm.acceleration import probe
    from fabric.host.vmm.image import load_image

    verdict = probe(load_image(around.state_dir), around.state_dir)
    detail = f"{verdict.kind} on {verdict.machine}: {verdict.reason}"
    if verdict.kind == "kvm":
        return OK, detail
    return WARN, detail, "guests start faster with KVM: enable virtualisation for this machine"


def _memory(_: Surroundings) -> tuple[str, str] | tuple[str, str, str]:
    fields = (line.split() for line in Path("/proc/meminfo").read_text().splitlines())
    available = next(int(f[1]) for f in fields if f[0] == "MemAvailable:") * 1024
    room = available // GUEST_MEMORY
    detail = f"{available // MEBIBYTE} MiB available: room for about {room} guests"
    if room < 1:
        raise EnvironmentFault(detail, cure="free some memory")
    if room < WANTED_GUESTS:
        return WARN, detail, f"the demonstration has {WANTED_GUESTS} at once: free some memory"
    return OK, detail


def _disk(around: Surroundings) -> tuple[str, str] | tuple[str, str, str]:
    place = around.state_dir
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    detail = f"{free // MEBIBYTE} MiB free at {place}"
    if free < NEEDED_DISK:
        return WARN, detail, f"building an image needs {NEEDED_DISK // MEBIBYTE} MiB"
    return OK, detail


def _leftovers(around: Surroundings) -> tuple[str, str] | tuple[str, str, str]:
    from fabric.lab.gc import collect

    preflight.require_root()
    found = collect(around.run_dir, around.machine(), dry_run=True)
    if not found:
        return OK, "none"
    shown: list[Any] = [f"{leftover.kind} {leftover.name}" for leftover in found[:3]]
    more = f" and {len(found) - 3} more" if len(found) > 3 else ""
    return WARN, ", ".join(shown) + more, "fabric gc"


CHECKS: dict[str, Check] = {
    "root": _root,
    "tools": _tools,
    "tun": _tun,
    "libnftables": _libnftables,
    "nftables": _nftables,
    "bridge": _bridge,
    "isolation": _isolation,
    "memory": _memory,
    "disk": _disk,
    "libvirt": _libvirt,
    "apparmor": _apparmor,
    "image": _image,
    "acceleration": _acceleration,
    "leftovers": _leftovers,
}
