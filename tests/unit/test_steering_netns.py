"""Steering, intercept and delivery on real namespaces: packets take the way the rules say."""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fabric.host.network.steering import MISS_DEVICE
from fabric.wire.inner import ICMP, ICMPV6, FiveTuple, embedded_flow, parse_flow, refusal
from tests.unit.netns_world import GUEST, OVERLAY_MTU, Host, two_hosts, wrap

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
]

CONNECTION = 0x0000000100C0FFEE
FILE_BYTES = 3_000_000


@pytest.fixture
def world() -> Iterator[tuple[Host, Host]]:
    with two_hosts(f"fbt{os.getpid() % 10000}", CONNECTION) as hosts:
        yield hosts


def open_way(hosts: tuple[Host, Host], first: list[bytes]) -> FiveTuple:
    """What the two orchestrators do for a new connection, from its first held packet on."""
    near, far = hosts
    flow = parse_flow(first[0])
    assert flow is not None
    near.steering.admit(GUEST, flow)
    near.steering.steer(GUEST, flows=[flow], connections=[CONNECTION])
    near.delivery.inner(first, near.guest_mac)
    held, upstream = far.wait_for_datagram()
    assert upstream == "172.31.0.1"
    far.steering.admit(GUEST, flow.reversed())
    far.steering.steer(GUEST, flows=[flow.reversed()], connections=[CONNECTION])
    far.delivery.underlay([(held, upstream)], far.guest_address)
    return flow


@pytest.mark.parametrize(
    ("bind", "url_host"), [("10.77.0.2", "10.77.0.2"), ("fd77::2", "[fd77::2]")]
)
def test_curl_crosses_two_guests_byte_identical(
    world: tuple[Host, Host], tmp_path: Path, bind: str, url_host: str
) -> None:
    near, far = world
    body = os.urandom(FILE_BYTES)
    (tmp_path / "file").write_bytes(body)
    far.start(sys.executable, "-m", "http.server", "8000", "--bind", bind, "-d", str(tmp_path))
    wait_until_listening(far, bind, 8000)
    fetched = tmp_path / "fetched"
    curl = near.start("curl", "-sS", "-o", str(fetched), f"http://{url_host}:8000/file")
    first = near.wait_for_miss()
    assert not near.agent.datagrams
    assert open_way(world, first).destination_port == 8000
    assert curl.wait(timeout=30) == 0
    assert hashlib.sha256(fetched.read_bytes()).digest() == hashlib.sha256(body).digest()
    # Nothing but the first packet (and its retransmissions) came to the orchestrators.
    assert [p for p in near.miss.read_burst() if len(p) > 100] == []
    assert far.miss.read_burst() == []
    assert near.agent.datagrams > FILE_BYTES / OVERLAY_MTU
    assert far.agent.datagrams > 100  # acknowledgements
    assert far.agent.sources == {"172.31.0.1"}
    assert near.agent.sources == {"172.31.0.2"}


@pytest.mark.parametrize(("target", "protocol"), [("10.77.0.2", ICMP), ("fd77::2", ICMPV6)])
def test_ping_crosses_by_its_identifier(
    world: tuple[Host, Host], target: str, protocol: int
) -> None:
    near, far = world
    ping = near.start("ping", "-c", "4", "-i", "0.2", "-W", "2", target)
    flow = open_way(world, near.wait_for_miss())
    assert flow.protocol == protocol
    assert ping.wait(timeout=20) == 0
    assert near.miss.read_burst() == far.miss.read_burst() == []
    assert set(near.steering.entries().flows) == {flow}


def test_entries_read_back_what_was_steered_and_unsteer_is_idempotent(
    world: tuple[Host, Host],
) -> None:
    steering = world[0].steering
    flows = [
        FiveTuple(4, 6, "10.77.0.1", 40000, "10.77.0.2", 80),
        FiveTuple(6, 17, "fd77::1", 53, "fd77::2", 53),
        FiveTuple(4, ICMP, "10.77.0.1", 513, "10.77.0.2", 513),
        FiveTuple(6, ICMPV6, "fd77::1", 7, "fd77::2", 7),
    ]
    numbers = [1, CONNECTION, 2**64 - 1]
    steering.steer(GUEST, flows=flows, connections=numbers)
    steering.add_guest(3, "02:fa:00:00:00:03")
    steering.steer(3, flows=flows[:2], connections=numbers[:1])  # another guest takes them over
    expected_flows = {flows[0]: 3, flows[1]: 3, flows[2]: GUEST, flows[3]: GUEST}
    entries = steering.entries()
    assert entries.flows == expected_flows
    assert entries.connections == {1: 3, CONNECTION: GUEST, 2**64 - 1: GUEST}
    steering.install()  # an orchestrator that starts again finds its entries
    assert steering.entries() == entries
    steering.unsteer(flows=flows[:1], connections=numbers[:1])
    steering.unsteer(flows=flows[:1], connections=numbers[:1])
    assert flows[0] not in steering.entries().flows
    steering.remove_guest(GUEST)
    assert steering.entries().flows == {flows[1]: 3}
    assert steering.entries().connections == {}


def test_remove_leaves_nothing(world: tuple[Host, Host]) -> None:
    near, _ = world
    assert near.netlink.list_neighbours("guests")
    near.steering.remove()
    near.steering.remove()
    near.miss.remove()
    assert near.nftables.run("list ruleset") == ""
    assert near.netlink.list_neighbours("guests") == {}
    assert not near.netlink.exists(MISS_DEVICE)
    assert "10.77.0.1" not in near.command("ip", "address").stdout


def test_steering_survives_the_orchestrator_and_a_new_miss_device(
    world: tuple[Host, Host],
) -> None:
    near, _ = world
    flow = FiveTuple(4, 17, "10.77.0.1", 5000, "10.77.0.2", 9)
    near.steering.steer(GUEST, flows=[flow])
    near.miss.close()
    send_udp(near, flow)
    assert eventually(
        lambda: near.agent.wrapped[flow] == 1
    )  # nobody reads the TUN, yet it is carried
    near.miss.remove()
    near.inside.call(near.miss.__enter__)
    near.steering.install()
    assert near.steering.entries().flows == {flow: GUEST}
    send_udp(near, flow)
    assert eventually(lambda: near.agent.wrapped[flow] == 2)
    assert near.miss.read_burst() == []
    send_udp(near, FiveTuple(4, 17, "10.77.0.1", 5001, "10.77.0.2", 9))
    assert len(near.wait_for_miss()) == 1


def test_fragments_stay_together_on_the_slow_way(world: tuple[Host, Host]) -> None:
    near, _ = world
    flow = FiveTuple(4, 17, "10.77.0.1", 5000, "10.77.0.2", 9)
    near.steering.steer(GUEST, flows=[flow])
    send_udp(near, flow, size=3000)
    time.sleep(0.2)
    fragments = near.wait_for_miss()
    assert len(fragments) == 3
    assert parse_flow(fragments[0]) == flow


def test_refusals_reach_the_application_at_once(world: tuple[Host, Host]) -> None:
    near, _ = world
    curl = near.start("curl", "-sS", "http://10.77.0.2:8000/")
    answer = refusal(near.wait_for_miss()[0])
    assert answer is not None
    assert near.miss.write(answer)
    assert curl.wait(timeout=2) == 7  # could not connect
    curl = near.start("curl", "-sS", "http://[fd77::2]:8000/")
    answer = refusal(near.wait_for_miss()[0])
    assert answer is not None
    assert near.miss.write(answer)
    assert curl.wait(timeout=2) == 7
    for family, target in ((socket.AF_INET, "10.77.0.2"), (socket.AF_INET6, "fd77::2")):
        client = near.inside.call(socket.socket, family, socket.SOCK_DGRAM)
        with client:
            client.connect((target, 9))
            client.settimeout(2)
            client.send(b"?")
            packet = near.wait_for_miss()[0]
            answer = refusal(packet)
            assert answer is not None
            assert embedded_flow(answer) == parse_flow(packet)
            near.miss.write(answer)
            with pytest.raises((PermissionError, OSError)) as caught:
                client.recv(10)
            assert not isinstance(caught.value, TimeoutError)


def test_an_unknown_connection_id_comes_to_the_orchestrator_with_its_source(
    world: tuple[Host, Host],
) -> None:
    near, far = world
    far.steering.steer(GUEST, flows=[], connections=[CONNECTION])
    sender = near.inside.call(socket.socket, socket.AF_INET, socket.SOCK_DGRAM)
    with sender:
        sender.sendto(wrap(b"x", CONNECTION + 1), ("172.31.0.2", 7704))
        assert far.wait_for_datagram()[1] == "172.31.0.1"
        sender.sendto(wrap(b"\x45", CONNECTION), ("172.31.0.2", 7704))
        assert eventually(lambda: far.agent.datagrams == 1)
        # With steering gone the same id comes to the orchestrator again.
        far.steering.unsteer(connections=[CONNECTION])
        sender.sendto(wrap(b"x", CONNECTION), ("172.31.0.2", 7704))
        assert far.wait_for_datagram()[0] == wrap(b"x", CONNECTION)


def test_held_datagrams_arrive_in_order_with_their_source(world: tuple[Host, Host]) -> None:
    _, far = world
    far.agent.stop()
    receiver = far.guest_inside.call(socket.socket, socket.AF_INET, socket.SOCK_DGRAM)
    with receiver:
        receiver.bind(("0.0.0.0", 7704))
        receiver.settimeout(2)
        held = [(f"{n}".encode() * (n + 1), f"172.31.0.{n % 3 + 5}") for n in range(50)]
        far.delivery.underlay(held, far.guest_address)
        got = [receiver.recvfrom(2000) for _ in held]
        assert [(data, address) for data, (address, _) in got] == held
        assert {port for _, (_, port) in got} == {7704}
    far.agent.start()


def test_guests_cannot_reach_the_hosts_services(world: tuple[Host, Host]) -> None:
    near, _ = world
    local = near.inside.call(socket.socket, socket.AF_INET, socket.SOCK_STREAM)
    with local:
        local.bind(("100.115.0.1", 8080))
        local.listen()
        assert not reaches(near.guest_inside, "100.115.0.1")
        near.nftables.run("flush chain inet fabric input")
        assert reaches(near.guest_inside, "100.115.0.1")


@pytest.mark.parametrize(("source", "target"), [(7704, 8080), (8080, 7704)])
def test_guests_send_nothing_but_fabric_packets(
    world: tuple[Host, Host], source: int, target: int
) -> None:
    near, far = world
    receiver = far.inside.call(socket.socket, socket.AF_INET, socket.SOCK_DGRAM)
    near.agent.stop()
    sender = near.guest_inside.call(socket.socket, socket.AF_INET, socket.SOCK_DGRAM)
    with receiver, sender:
        if target == 7704:
            receiver.close()
            receiver = far.underlay_socket
        else:
            receiver.bind(("172.31.0.2", target))
        sender.bind(("0.0.0.0", source))
        sender.sendto(b"out", ("172.31.0.2", target))
        assert not hears(receiver, b"out")
        near.nftables.run("flush chain inet fabric forward")
        sender.sendto(b"out", ("172.31.0.2", target))
        assert hears(receiver, b"out")
    near.agent.start()


def test_outsiders_cannot_address_a_guest(world: tuple[Host, Host]) -> None:
    near, far = world
    near.command("ip", "route", "replace", "100.115.0.2/32", "via", "172.31.0.2", "dev", "to-2")
    sender = near.inside.call(socket.socket, socket.AF_INET, socket.SOCK_DGRAM)
    with sender:
        sender.sendto(wrap(b"x", 99), ("100.115.0.2", 7704))
        time.sleep(0.3)
        assert far.agent.datagrams == 0
        far.nftables.run("flush chain ip fabric arrive")
        sender.sendto(wrap(b"x", 99), ("100.115.0.2", 7704))
        assert eventually(lambda: far.agent.datagrams == 1)


def reaches(inside: object, address: str) -> bool:
    def attempt() -> bool:
        try:
            socket.create_connection((address, 8080), timeout=0.7).close()
        except OSError:
            return False
        return True

    return inside.call(attempt)  # type: ignore[attr-defined, no-any-return]


def hears(receiver: socket.socket, word: bytes) -> bool:
    """Whether it comes within half a second, among whatever the guests' kernels say by
    themselves."""
    receiver.settimeout(0.5)
    with contextlib.suppress(TimeoutError):
        while receiver.recv(2048) != word:
            continue
        return True
    return False


def send_udp(host: Host, flow: FiveTuple, size: int = 10) -> None:
    sender = host.inside.call(socket.socket, socket.AF_INET, socket.SOCK_DGRAM)
    with sender:
        sender.bind((flow.source, flow.source_port))
        sender.sendto(bytes(size), (flow.destination, flow.destination_port))


def eventually(condition: object, seconds: float = 5.0) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():  # type: ignore[operator]
            return True
        time.sleep(0.01)
    return False


def wait_until_listening(host: Host, address: str, port: int) -> None:
    def connect() -> bool:
        try:
            socket.create_connection((address, port), timeout=1).close()
        except OSError:
            return False
        return True

    assert eventually(lambda: host.inside.call(connect))
