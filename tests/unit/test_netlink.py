"""Netlink: what is made is there, what exists is a conflict, what is not there has a name."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import subprocess
from collections.abc import Iterator

import pytest

from fabric.errors import Conflict, EnvironmentFault, KernelLacks, NameUnknown, NotRoot
from fabric.host.network.netlink import Netlink
from fabric.host.network.netns import create_netns, delete_netns, list_netns, translate

root = pytest.mark.root
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
ALIAS = "fabric:lab:h1"


@pytest.fixture
def names() -> Iterator[tuple[str, str]]:
    pair = (f"fbn{os.getpid() % 10000}a", f"fbn{os.getpid() % 10000}b")
    for name in pair:
        create_netns(name)
    yield pair
    for name in pair:
        delete_netns(name)


def ip_json(netns: str, *argv: str) -> list[dict[str, object]]:
    """A second opinion, from iproute2."""
    command = ["ip", "-n", netns, "-d", "-j", *argv]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: list[dict[str, object]] = json.loads(done.stdout or "[]")
    return found


@root
@needs_root
def test_links_addresses_routes_and_neighbours_are_what_iproute2_sees(
    names: tuple[str, str],
) -> None:
    with Netlink(names[0]) as net, Netlink(names[1]) as other:
        net.create_bridge("br", alias=ALIAS, mtu=9000)
        net.create_veth("v0", "v1", alias=ALIAS, peer_netns=names[1], mtu=9000, master="br")
        net.set_up("br")
        net.set_up("v0")
        other.set_up("v1")
        for _ in range(2):  # twice: idempotent
            net.add_address("br", "10.1.0.1/24")
            net.add_address("br", "fd01::1/64")
            net.add_route("10.2.0.0/16", via="10.1.0.9", mtu=1400)
            net.add_route("fd02::/64", dev="br", src="fd01::1")
            net.add_neighbour("br", "02:fa:00:00:00:01", "10.1.0.9", "fe80::9")
        links = {link.name: link for link in net.list_links()}
        assert (links["br"].kind, links["br"].mtu, links["br"].up) == ("bridge", 9000, True)
        assert (links["v0"].kind, links["v0"].master) == ("veth", "br")
        assert {name for name, link in links.items() if link.alias == ALIAS} == {"br", "v0"}
        assert [link.name for link in other.list_links() if link.kind == "veth"] == ["v1"]
        assert ip_json(names[0], "link", "show", "v0")[0]["ifalias"] == ALIAS
        route = ip_json(names[0], "route", "show", "10.2.0.0/16")[0]
        assert (route["gateway"], route["metrics"]) == ("10.1.0.9", [{"mtu": 1400}])
        route6 = ip_json(names[0], "-6", "route", "show", "fd02::/64")[0]
        assert (route6["dev"], route6["prefsrc"]) == ("br", "fd01::1")
        shown = ip_json(
            names[0], "-6", "address", "show", "dev", "br", "to", "fd01::/64", "-tentative"
        )
        assert "fd01::1" in json.dumps(shown)  # usable at once
        assert net.addresses()["10.1.0.1"] == net.addresses()["fd01::1"] == "br"
        assert net.list_neighbours("br") == {
            "10.1.0.9": "02:fa:00:00:00:01",
            "fe80::9": "02:fa:00:00:00:01",
        }
        for _ in range(2):
            net.delete_neighbour("br", "fe80::9")
            net.delete_address("br", "10.1.0.1/24")
        assert list(net.list_neighbours("br")) == []  # the IPv4 one went with its subnet
        assert net.delete_link("v0")
        assert not net.delete_link("v0")
        assert not other.exists("v1")


@root
@needs_root
def test_a_rate_is_applied_and_removed(names: tuple[str, str]) -> None:
    with Netlink(names[0]) as net:
        net.create_veth("v0", "v1", alias=ALIAS)
        for rate in (100_000_000, 8_000_000):
            net.set_rate("v0", rate)
            done = subprocess.run(
                ["tc", "-n", names[0], "-j", "qdisc", "show", "dev", "v0"],
                check=True, capture_output=True, text=True,
            )  # fmt: skip
            assert json.loads(done.stdout)[0]["kind"] == "htb"
            shown = subprocess.run(
                ["tc", "-n", names[0], "class", "show", "dev", "v0"],
                check=True, capture_output=True, text=True,
            )  # fmt: skip
            classes = {line.split()[2]: line for line in shown.stdout.splitlines()}
            assert set(classes) == {"fab:1", "fab:17", "fab:20"}
            ceiling = f"ceil {rate // 1_000_000}Mbit"
            assert all(ceiling in line for line in classes.values()), classes
            assert "prio 0" in classes["fab:17"] and "prio 1" in classes["fab:20"]
        for _ in range(2):
            net.set_rate("v0", 0)
        with pytest.raises(NameUnknown):
            net.set_rate("none", 0)


@root
@needs_root
def test_sysctls_belong_to_the_namespace(names: tuple[str, str]) -> None:
    with Netlink(names[0]) as net, Netlink(names[1]) as other, Netlink() as own:
        before = own.read_sysctl("ipv4/ip_forward")
        net.sysctl("ipv4/ip_forward", 1)
        other.sysctl("ipv4/ip_forward", 0)
        assert net.read_sysctl("ipv4/ip_forward") == "1"
        assert other.read_sysctl("ipv4/ip_forward") == "0"
        assert own.read_sysctl("ipv4/ip_forward") == before


@root
@needs_root
def test_errors_are_the_fabrics_own_and_say_where(names: tuple[str, str]) -> None:
    with Netlink(names[0]) as net:
        net.create_bridge("br", alias=ALIAS)
        with pytest.raises(Conflict, match=f"{names[0]}: create bridge br"):
            net.create_bridge("br", alias=ALIAS)
        with pytest.raises(NameUnknown, match="nowhere"):
            net.set_up("nowhere")
        with pytest.raises(NameUnknown):
            net.sysctl("ipv4/no_such_switch", 1)
    with pytest.raises(Conflict):
        create_netns(names[0])
    with pytest.raises(NameUnknown), Netlink("no-such-namespace"):
        pass


@root
@needs_root
def test_it_works_while_an_event_loop_runs(names: tuple[str, str]) -> None:
    async def inside_a_loop() -> bool:
        with Netlink(names[0]) as net:
            net.set_up("lo")
            return net.exists("lo")

    assert asyncio.run(inside_a_loop())


@root
@needs_root
def test_namespaces_come_and_go_without_a_trace() -> None:
    name = f"fbn{os.getpid() % 10000}c"
    create_netns(name)
    assert name in list_netns()
    assert name in subprocess.run(["ip", "netns"], capture_output=True, text=True).stdout
    assert delete_netns(name)
    assert not delete_netns(name)
    assert name not in list_netns()


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (errno.EPERM, NotRoot),
        (errno.EEXIST, Conflict),
        (errno.ENODEV, NameUnknown),
        (errno.EOPNOTSUPP, KernelLacks),
        (errno.ENOBUFS, EnvironmentFault),
    ],
)
def test_errno_values_have_their_error(code: int, kind: type[Exception]) -> None:
    assert type(translate(code, "here")) is kind
    assert "here" in str(translate(code, "here"))
