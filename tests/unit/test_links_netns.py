"""The link watch on real namespaces: two hosts, one link, both processes."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fabric.errors import Conflict
from fabric.host.config import HostConfig, LivenessConfig
from fabric.host.links.feed import Audience, socket_path
from fabric.host.network.netns import create_netns, delete_netns
from fabric.routing.topology import Link, Node, Topology
from fabric.wire import notice
from fabric.wire.probe import ADMIN_DOWN, PORT, LinkProbe, encode
from tests.unit.guard_world import tag
from tests.unit.netns_world import Inside

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]

ADDRESSES = ("172.31.0.0", "172.31.0.1")
KEY, OTHER = b"notakey!", b"another!"
LIVENESS = LivenessConfig(slow_ms=60, fast_ms=30, steady_ms=300)
BANDWIDTH = 1_000_000_000
PATIENCE = 20.0
"""Seconds until what must happen has to have happened; all of it takes well below one."""


@dataclass
class Watched:
    """One host: its namespace, its watch, and somebody who listens."""

    inside: Inside
    config: HostConfig
    process: subprocess.Popen[bytes] | None = None
    listener: socket.socket | None = None

    def start(self) -> None:
        path = self.config.host_dir / "config.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self.config.to_json()))
        argv = [sys.executable, "-m", "fabric.host.links.main", str(path)]
        self.process = subprocess.Popen(["ip", "netns", "exec", self.inside.netns, *argv])

    def listen(self) -> None:
        def connect() -> socket.socket | None:
            made = socket.socket(socket.AF_UNIX)
            try:
                made.connect(str(socket_path(self.config.host_dir)))
            except OSError:
                made.close()
                return None
            return made

        self.listener = until(connect)
        self.listener.settimeout(PATIENCE)
        self._lines = self.listener.makefile("rb")

    def line(self) -> dict[str, Any]:
        """What the watch says next of the one link there is."""
        link: dict[str, Any] = json.loads(self._lines.readline())["links"][0]
        return link

    def until(self, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            if wanted(link := self.line()):
                return link
        raise AssertionError(f"not in {PATIENCE} s; at last: {link}")

    def end(self, number: int = signal.SIGTERM) -> None:
        if self.listener is not None:
            self.listener.close()
            self._lines.close()
            self.listener = None
        if self.process is not None:
            self.process.send_signal(number)
            self.process.wait(10)
            self.process = None


def until(attempt: Callable[[], Any]) -> Any:
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if (found := attempt()) is not None:
            return found
        time.sleep(0.02)
    raise AssertionError(f"{attempt.__name__} did not come true in {PATIENCE} s")


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[Watched, Watched]]:
    mark = tag()
    names = [f"fabt-{mark}-{n}" for n in (1, 2)]
    topology = Topology(
        (Node(1, "h1"), Node(2, "h2")),
        (Link(1, 2, a_address=ADDRESSES[0], b_address=ADDRESSES[1], bandwidth_bps=BANDWIDTH),),
    )
    with contextlib.ExitStack() as stack:
        hosts = []
        for number, name in enumerate(names, 1):
            create_netns(name)
            stack.callback(delete_netns, name)
            inside = Inside(name)
            stack.callback(inside.close)
            config = HostConfig(
                lab="t", host=f"h{number}", node=number, bridge="none", guest_interface="lo",
                overlay_addresses=(), overlay_prefixes=(), topology=topology.to_json(),
                liveness=LIVENESS, run_dir=str(tmp_path),
            )  # fmt: skip
            hosts.append(Watched(inside, config))
        ip = ["ip", "-n", names[0]]
        subprocess.run(
            [*ip, "link", "add", "link0", "type", "veth", "peer", "link0", "netns", names[1]],
            check=True,
        )
        for name, address in zip(names, ADDRESSES, strict=True):
            for words in (
                ["addr", "add", f"{address}/31", "dev", "link0"],
                ["link", "set", "link0", "up"],
                ["link", "set", "lo", "up"],
            ):
                subprocess.run(["ip", "-n", name, *words], check=True)
        for host in hosts:
            stack.callback(host.end, signal.SIGKILL)
        yield hosts[0], hosts[1]


@pytest.fixture
def watched(pair: tuple[Watched, Watched]) -> tuple[Watched, Watched]:
    for host in pair:
        host.start()
    for host in pair:
        host.listen()
        host.until(lambda link: link["up"] is True)
    return pair


def cut(host: Watched) -> None:
    """Both directions at this end, with the carrier kept."""
    rules = (
        "table netdev cut { chain c { type filter hook ingress device link0 priority 0; drop; }; "
        "chain e { type filter hook egress device link0 priority 0; drop; }; }"
    )
    subprocess.run(["ip", "netns", "exec", host.inside.netns, "nft", rules], check=True)


def mend(host: Watched) -> None:
    argv = ["ip", "netns", "exec", host.inside.netns, "nft", "delete table netdev cut"]
    subprocess.run(argv, check=True)


def test_a_link_is_measured(watched: tuple[Watched, Watched]) -> None:
    link = watched[0].until(lambda link: link["loss"] is not None)
    assert link["neighbour"] == 2
    assert link["address"] == ADDRESSES[1]
    assert link["state"] == "up"
    assert 0 < link["rtt_us"] < 1_000_000
    assert 0 <= link["delay_us"] < 1_000_000
    assert link["loss"] < 0.5
    assert link["refused"] == 0


def test_what_goes_over_a_link_is_not_available(watched: tuple[Watched, Watched]) -> None:
    idle = watched[0].until(lambda link: link["used_bps"] is not None)
    assert idle["used_bps"] < 1_000_000
    assert idle["available_bps"] == BANDWIDTH - idle["used_bps"]

    def pour() -> None:
        end = time.monotonic() + 2.5
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as source:
            while time.monotonic() < end:
                source.sendto(bytes(1400), (ADDRESSES[0], 9))
                time.sleep(0.001)

    watched[1].inside.call(pour)  # at most 11.2 Mbit/s
    busy = watched[0].until(lambda link: link["used_bps"] > 2_000_000)
    assert busy["available_bps"] == BANDWIDTH - busy["used_bps"]


def test_a_silent_cut_is_noticed_at_both_ends_and_so_is_its_end(
    watched: tuple[Watched, Watched],
) -> None:
    cut(watched[0])
    for host in watched:
        link = host.until(lambda link: link["up"] is False)
        assert link["carrier"] is True
        assert link["diagnostic"] in ("detection time expired", "the neighbour says so")
    mend(watched[0])
    for host in watched:
        host.until(lambda link: link["up"] is True)


def test_a_lost_carrier_says_so(watched: tuple[Watched, Watched]) -> None:
    names = [host.inside.netns for host in watched]
    subprocess.run(["ip", "-n", names[1], "link", "set", "link0", "down"], check=True)
    # The end that was set down knows at once; the kernel may take its time to tell the other one.
    link = watched[1].until(lambda link: link["up"] is False)
    assert (link["carrier"], link["diagnostic"]) == (False, "no carrier")
    watched[0].until(lambda link: (link["up"], link["carrier"]) == (False, False))
    subprocess.run(["ip", "-n", names[1], "link", "set", "link0", "up"], check=True)
    for host in watched:
        host.until(lambda link: link["up"] is True)


def test_who_leaves_says_goodbye(watched: tuple[Watched, Watched]) -> None:
    watched[1].end()
    link = watched[0].until(lambda link: link["up"] is False)
    assert link["diagnostic"] == "the neighbour says so"
    assert not socket_path(watched[1].config.host_dir).exists()


def test_who_was_killed_is_missed_and_comes_back(watched: tuple[Watched, Watched]) -> None:
    watched[1].end(signal.SIGKILL)
    watched[0].until(lambda link: link["up"] is False)
    watched[1].start()
    watched[0].until(lambda link: link["up"] is True)


def test_a_neighbour_never_heard_is_not_known_to_be_dead(pair: tuple[Watched, Watched]) -> None:
    pair[0].start()
    pair[0].listen()
    links = [pair[0].line() for _ in range(3)]
    assert [link["up"] for link in links] == [None] * 3


def test_guests_are_told_at_once_and_newcomers_what_holds(
    watched: tuple[Watched, Watched],
) -> None:
    host = watched[0]

    def bind(address: str) -> socket.socket:
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        made.bind((address, notice.PORT))
        made.settimeout(PATIENCE)
        return made

    def hear(guest: socket.socket) -> notice.Notice:
        data, (_, port) = guest.recvfrom(2048)
        assert port < 1024
        return notice.decode(data)

    guests = [host.inside.call(bind, address) for address in ("127.0.0.2", "127.0.0.3")]
    try:
        assert host.listener is not None
        host.listener.sendall(Audience({"127.0.0.2": KEY}).to_line())
        first = hear(guests[0])
        assert (first.key, first.down) == (KEY, ())
        cut(host)
        second = hear(guests[0])
        assert second.down == (ADDRESSES[1],)
        assert second.serial > first.serial
        host.listener.sendall(Audience({"127.0.0.2": KEY, "127.0.0.3": OTHER}).to_line())
        third = hear(guests[1])
        assert (third.key, third.down) == (OTHER, (ADDRESSES[1],))
    finally:
        for guest in guests:
            guest.close()


def test_one_watch_per_host(watched: tuple[Watched, Watched]) -> None:
    path = watched[0].config.host_dir / "config.json"
    argv = ["ip", "netns", "exec", watched[0].inside.netns, sys.executable]
    done = subprocess.run(
        [*argv, "-m", "fabric.host.links.main", str(path)], capture_output=True, text=True
    )
    assert done.returncode == Conflict.exit_code
    assert "watches this host's links already" in done.stderr


def test_probes_of_strangers_are_refused(watched: tuple[Watched, Watched]) -> None:
    def shout() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
            for _ in range(5):
                stranger.sendto(bytes(60), (ADDRESSES[0], PORT))

    watched[1].inside.call(shout)
    link = watched[0].until(lambda link: link["refused"] >= 5)
    assert link["up"] is True


def test_a_probe_that_came_over_a_router_is_of_no_neighbour(
    watched: tuple[Watched, Watched],
) -> None:
    """RFC 5082: the same word with the TTL of the next link is believed."""
    goodbye = LinkProbe(ADMIN_DOWN, 0, 3, 5, 0, 30_000, 30_000, 2, 1, 1, 1, 1, 0, 0)

    def send(ttl: int) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as forger:
            forger.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, ttl)
            forger.sendto(encode(goodbye), (ADDRESSES[0], PORT))

    watched[1].inside.call(send, 254)
    assert watched[0].until(lambda link: link["refused"] >= 1)["up"] is True
    watched[1].inside.call(send, 255)
    watched[0].until(lambda link: link["up"] is False)


def test_carriers_are_named_by_index(pair: tuple[Watched, Watched]) -> None:
    from fabric.host.links.carrier import CarrierWatch

    def look() -> dict[int, bool]:
        watch = CarrierWatch()
        try:
            watch.ask()
            return dict(until(lambda: list(watch.read()) or None))
        finally:
            watch.close()

    index = pair[0].inside.call(socket.if_nametoindex, "link0")
    assert pair[0].inside.call(look)[index] is True
