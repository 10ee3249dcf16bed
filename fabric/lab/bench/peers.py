"""Routing daemons of others on a lab's namespaces, to be measured beside the fabric.

Owns: their configuration and processes: BIRD (OSPF with BFD, Babel) and FRR (OSPF with BFD). May
import: errors, host.network.netlink, lab. They route addresses of their own (:data:`NETWORK`) in
the kernel; the fabric's overlay is not theirs. Timers of liveness are each daemon's defaults;
OSPF's hellos come once a second, so that a mended link is back soon.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from fabric.errors import EnvironmentFault, ToolMissing
from fabric.host.network.netlink import Netlink
from fabric.lab.bench.bed import Bed, ip_batch

NETWORK = "10.88.0"
ROUTES_DEADLINE = 60.0
"""Seconds until a daemon has routes to everybody."""
TREES = (Path("/"), Path(__file__).parents[3] / ".peers")
"""Where they may be installed: the system, or what scripts/fetch.sh bench unpacked."""


def address(node: int) -> str:
    """What a host is called by these daemons."""
    return f"{NETWORK}.{node}"


@dataclass(frozen=True)
class Neighbouring:
    """One interface of a host, for a configuration."""

    interface: str
    cost: int


@dataclass(frozen=True)
class Member:
    """One host as a daemon sees it."""

    node: int
    namespace: str
    links: tuple[Neighbouring, ...]
    directory: Path


Start = Callable[[Member], list[list[str]]]
"""Writes a host's configuration; the commands that stay in the foreground."""


def _bird(protocol: str, member: Member) -> list[list[str]]:
    config = member.directory / "bird.conf"
    lines = [
        f"router id {address(member.node)};",
        "protocol device { scan time 1; }",
        "protocol kernel { ipv4 { export all; }; merge paths yes; }",
        "protocol bfd { }",
    ]
    if protocol == "ospf":
        links = "".join(
            f'interface "{link.interface}" '
            f"{{ type ptp; cost {link.cost}; hello 1; dead 10; bfd yes; }}; "
            for link in member.links
        )
        area = f'area 0 {{ {links} interface "lo" {{ stub; }}; }};'
        lines.append(f"protocol ospf v2 {{ ipv4 {{ import all; export none; }}; {area} }}")
    else:
        links = "".join(
            f'interface "{link.interface}" {{ type wired; rxcost {96 * link.cost}; }}; '
            for link in member.links
        )
        lines.append('protocol direct { ipv4; interface "lo"; }')
        lines.append(f"protocol babel {{ ipv4 {{ import all; export all; }}; {links} }}")
    config.write_text("\n".join(lines) + "\n")
    control = str(member.directory / "bird.ctl")
    return [[str(_program("usr/sbin/bird")), "-f", "-c", str(config), "-s", control]]


def bird_ospf(member: Member) -> list[list[str]]:
    """BFD as it comes: 100 ms, multiplier 5."""
    return _bird("ospf", member)


def bird_babel(member: Member) -> list[list[str]]:
    """Without BFD, which BIRD 2.0 has not for Babel: hellos of 4 s."""
    return _bird("babel", member)


def frr_ospf(member: Member) -> list[list[str]]:
    """BFD as it comes: 300 ms, multiplier 3."""
    home, ospf = member.directory, []
    for link in member.links:
        ospf += [
            f"interface {link.interface}",
            " ip ospf network point-to-point",
            f" ip ospf cost {link.cost}",
            " ip ospf hello-interval 1",
            " ip ospf dead-interval 10",
            " ip ospf bfd",
            " ip ospf area 0",
        ]
    ospf += ["interface lo", " ip ospf area 0"]
    ospf += ["router ospf", f" ospf router-id {address(member.node)}"]
    commands = []
    for name, text in (("zebra", ""), ("bfdd", ""), ("ospfd", "\n".join(ospf) + "\n")):
        config = home / f"{name}.conf"
        config.write_text(text)
        words = [
            str(_program(f"usr/lib/frr/{name}")),
            *("-f", str(config), "-i", str(home / f"{name}.pid"), "-z", str(home / "zserv.api")),
            *("--vty_socket", str(home), "-u", "root", "-g", "root", "-P", "0"),
        ]
        if name == "bfdd":
            words += ["--bfdctl", str(home / "bfdd.sock")]
        commands.append(words)
    return commands


PEERS: dict[str, Start] = {
    "bird-ospf": bird_ospf,
    "frr-ospf": frr_ospf,
    "bird-babel": bird_babel,
}


@contextmanager
def running(name: str, bed: Bed) -> Iterator[None]:
    """Have a daemon route between all hosts of a lab.

    Raises ToolMissing, EnvironmentFault when it does not come to know all routes.
    """
    with ExitStack() as stack:
        home = Path(stack.enter_context(TemporaryDirectory(prefix="fabric-peer-")))
        group = _with_group(home)
        for host in bed.hosts:
            namespace = bed.namespace(host)
            stack.enter_context(_address(namespace, address(host.node)))
            member = Member(host.node, namespace, _links(bed, host.host), home / host.host)
            member.directory.mkdir()
            if name == "bird-babel":
                stack.enter_context(_ipv6(namespace, member.links))
            for command in PEERS[name](member):
                stack.callback(_end, _start(namespace, command, member.directory, group))
        _await_routes(bed)
        yield


@contextmanager
def _address(namespace: str, own: str) -> Iterator[None]:
    ip_batch(namespace, [f"addr add {own}/32 dev lo"])
    try:
        yield
    finally:
        ip_batch(namespace, [f"addr del {own}/32 dev lo"])


@contextmanager
def _ipv6(namespace: str, links: tuple[Neighbouring, ...]) -> Iterator[None]:
    """Babel speaks from link-local addresses (RFC 8966, section 4); a lab's links have none."""
    paths = [f"ipv6/conf/{link.interface}/disable_ipv6" for link in links]
    with Netlink(namespace) as network:
        network.sysctls(dict.fromkeys(paths, 0))
        try:
            yield
        finally:
            network.sysctls(dict.fromkeys(paths, 1))


def _links(bed: Bed, host: str) -> tuple[Neighbouring, ...]:
    topology = bed.spec.topology()
    return tuple(
        Neighbouring(own.interface, topology.links[link.number - 1].cost)
        for own, _, link in bed.spec.links_of(host)
    )


def _start(
    namespace: str, command: list[str], directory: Path, group: Path
) -> subprocess.Popen[bytes]:
    # The bind mount is in the mount namespace that `ip netns exec` makes.
    script = f'mount --bind {group} /etc/group && exec "$@"'
    libraries = [str(tree / "usr/lib/x86_64-linux-gnu") for tree in TREES[1:]]
    libraries += [str(tree / "usr/lib/x86_64-linux-gnu/frr") for tree in TREES[1:]]
    environment = ["env", f"LD_LIBRARY_PATH={':'.join(libraries)}"]
    with (directory / "log").open("ab") as log:
        return subprocess.Popen(
            ["ip", "netns", "exec", namespace, *environment, "sh", "-c", script, "sh", *command],
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
        )


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _with_group(home: Path) -> Path:
    """A /etc/group in which root may do what FRR's group may."""
    path = home / "group"
    lines = Path("/etc/group").read_text().splitlines()
    kept = [line for line in lines if not line.startswith("frrvty:")]
    path.write_text("\n".join([*kept, "frrvty:x:64999:root"]) + "\n")
    return path


def _program(name: str) -> Path:
    for tree in TREES:
        if (found := tree / name).exists():
            return found
    raise ToolMissing(f"{name} is not installed", cure="run scripts/fetch.sh bench")


def available() -> tuple[str, ...]:
    """Peers whose programs are there."""
    return tuple(
        name
        for name in PEERS
        if any((tree / _MAIN[name]).exists() for tree in TREES) and shutil.which("ip")
    )


_MAIN = {
    "bird-ospf": "usr/sbin/bird",
    "bird-babel": "usr/sbin/bird",
    "frr-ospf": "usr/lib/frr/ospfd",
}


def route(namespace: str, target: str) -> str:
    """The interface that leads to an address now; empty: none does."""
    argv = ["ip", "-n", namespace, "route", "get", target]
    words = subprocess.run(argv, capture_output=True, text=True).stdout.split()
    return words[words.index("dev") + 1] if "dev" in words and "via" in words else ""


def next_hops(namespace: str, target: str) -> set[str]:
    """The interfaces the kernel may send to an address by, all of equal cost."""
    argv = ["ip", "-n", namespace, "-j", "route", "show", target]
    shown = json.loads(subprocess.run(argv, capture_output=True, text=True).stdout or "[]")
    return {
        str(hop["dev"]) for entry in shown for hop in entry.get("nexthops", [entry]) if "dev" in hop
    }


def _await_routes(bed: Bed) -> None:
    missing = [
        (bed.namespace(one), address(other.node))
        for one in bed.hosts
        for other in bed.hosts
        if one is not other
    ]
    deadline = time.monotonic() + ROUTES_DEADLINE
    while missing := [pair for pair in missing if not route(*pair)]:
        if time.monotonic() > deadline:
            raise EnvironmentFault(f"no route from {missing[0][0]} to {missing[0][1]}")
        time.sleep(0.5)
