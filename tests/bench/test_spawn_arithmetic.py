"""From events, packets and command lines to figures of spawning and memory, without guests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fabric.errors import EnvironmentFault, UserError
from fabric.lab.bench import memory, spawn
from fabric.lab.bench.bed import ASIDE, line_topology
from fabric.lab.bench.capture import sighting
from fabric.lab.bench.memory import Footprint
from fabric.lab.bench.raw_command import Place, adapted, template_of
from fabric.lab.bench.samples import (
    Sample,
    Series,
    Spread,
    median_phases,
    percentile,
    ratio,
    spawn_sample,
)
from fabric.lab.bench.spawn_tables import COLUMNS, memory_page, page, path_rows, rows
from fabric.lab.topology_file import parse_topology
from fabric.wire.packet import FLAG_REPLY, PAYLOAD_ANNOUNCE, PAYLOAD_IPV4, Header, Packet
from tests.unit.inner_packets import udp_packet

PORT = 7704
PLACE = Place(
    "raw-1", "tap1", "02:fa:00:00:00:01", "100.115.0.2/22", Path("/run/m1"), Path("/run/c1")
)
REAL = [
    "/usr/bin/qemu-system-x86_64",
    "-name", "guest=fabric-l-h1-g1,debug-threads=on",
    "-S",
    "-object", '{"qom-type":"secret","id":"masterKey0","file":"/var/lib/libvirt/k"}',
    "-no-user-config",
    "-append", "console=ttyS0 fabric.ip=100.115.0.9/22 fabric.gw=100.115.0.1",
    "-chardev", "socket,id=charmonitor,fd=24,server=on,wait=off",
    "-netdev", '{"type":"tap","fd":"25","id":"hostnet0"}',
    "-device", '{"driver":"virtio-net-device","netdev":"hostnet0","mac":"02:fa:01:00:04:01"}',
    "-chardev", "socket,id=charchannel0,fd=22,server=on,wait=off",
    "-object", "memory-backend-file,id=r,size=128M,mem-path=/dev/shm/fabric/ab/memory,share=off",
    "-incoming", "defer",
]  # fmt: skip


def event(name: str, at_us: int, **fields: Any) -> dict[str, Any]:
    return {"name": name, "at_us": at_us, **fields}


# -- percentiles and ratios --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("share", "expected"), [(0.0, 1.0), (0.5, 5.0), (0.9, 9.0), (0.99, 10.0), (1.0, 10.0)]
)
def test_a_percentile_is_a_value_that_was_measured(share: float, expected: float) -> None:
    assert percentile([float(n) for n in range(10, 0, -1)], share) == expected


def test_the_spread_of_nothing_has_no_percentiles() -> None:
    assert Spread.of([]).to_json() == {"p50_ms": None, "p90_ms": None, "p99_ms": None}


def test_there_is_no_ratio_to_nothing() -> None:
    assert ratio(10.0, None) is None
    assert ratio(None, 10.0) is None
    assert ratio(15.0, 10.0) == 1.5


# -- one spawn ---------------------------------------------------------------------------------


def test_the_phases_of_a_copy_follow_each_other_up_to_the_first_packet() -> None:
    events = [
        event("request", 1_000), event("facts", 2_000), event("guest-spawning", 3_000),
        event("guest-started", 103_000), event("guest-resumed", 113_000),
        event("guest-ready", 170_000, tier="template", phases={"state_ms": 4.0}),
        event("steering-installed", 175_000),
    ]  # fmt: skip
    sample = spawn_sample(0, 150_000, events)
    assert sample is not None
    assert (sample.total_ms, sample.tier) == (150.0, "template")
    assert sample.phases == {
        "request_seen": 1.0, "facts": 1.0, "slot": 1.0, "domain": 100.0, "armed": 6.0,
        "resumed": 4.0, "first_packet_out": 37.0, "agent_ready": 20.0, "steering": 5.0,
    }  # fmt: skip
    before = [ms for name, ms in sample.phases.items() if name not in ("agent_ready", "steering")]
    assert sum(before) == sample.total_ms


def test_the_moments_of_a_boot_come_from_the_durations_it_is_told_with() -> None:
    told = {"ssh_ms": 20.0, "agent_ms": 30.0, "ready_ms": 10.0}
    events = [
        event("guest-spawning", 0), event("guest-started", 40_000),
        event("guest-ready", 200_000, tier="cold", phases=told),
    ]  # fmt: skip
    sample = spawn_sample(0, 200_000, events)
    assert sample is not None
    assert sample.phases["booted"] == 100.0
    assert sample.phases["pushed"] == 20.0
    assert sample.phases["hello"] == 30.0
    assert sample.phases["first_packet_out"] == 10.0


def test_an_event_told_behind_the_first_packet_is_no_phase_before_it() -> None:
    events = [
        event("guest-claimed", 1_000), event("guest-resumed", 90_000),
        event("guest-ready", 95_000, tier="prepared", phases={}),
    ]  # fmt: skip
    sample = spawn_sample(0, 80_000, events)
    assert sample is not None
    assert "resumed" not in sample.phases
    assert sample.phases["first_packet_out"] == 79.0


def test_a_connection_without_a_ready_guest_is_no_sample() -> None:
    assert spawn_sample(0, 10, [event("request", 1), event("refused", 2)]) is None


def test_a_figure_counts_guests_of_another_tier() -> None:
    series = Series("warm", 2, 0, ours=[Sample(10.0, {}, "warm"), Sample(90.0, {}, "cold")])
    series.reference = [Sample(5.0), Sample(7.0)]
    document = series.to_json()
    assert document["fallbacks"] == 1
    assert (document["n"], document["p50_ms"], document["p99_ms"]) == (2, 10.0, 90.0)
    assert (document["reference_p50_ms"], document["ratio"]) == (5.0, 2.0)


def test_the_median_of_a_phase_is_of_the_spawns_that_had_it() -> None:
    samples = [Sample(1, {"facts": 1.0}), Sample(1, {"facts": 3.0, "domain": 8.0})]
    assert median_phases(samples) == {"facts": 1.0, "domain": 8.0}


def test_connecting_over_hosts_is_told_in_units_of_one_host() -> None:
    ours = [Sample(50.0, {}, "warm", connect_ms=120.0)]
    series = Series("warm", 1, 2, ours=ours, one_host=[Sample(60.0, {}, "warm")])
    document = series.to_json()
    assert document["connect"]["ratio_to_one_host"] == 2.0
    assert path_rows([document]) == [("warm", 2, 120.0, 120.0, 60.0, 2.0)]


# -- what the kernel saw -----------------------------------------------------------------------


def application_packet() -> bytes:
    return udp_packet(b"?", ports=(20_000, 5201))


def on_the_underlay(data: bytes) -> bytes:
    return udp_packet(data, ports=(PORT, PORT))


def fabric_datagram(payload: bytes, *, flags: int = 0, kind: int = PAYLOAD_IPV4) -> bytes:
    header = Header(
        flags=flags, protocol=1, hop_limit=9, payload_length=len(payload), hop_count=0,
        payload_type=kind, connection=77, source=1, destination=2, sequence=1,
    )  # fmt: skip
    return on_the_underlay(bytes(Packet(header, payload).encode()))


def test_a_plain_packet_is_the_applications_own() -> None:
    packet = application_packet()
    seen = sighting(packet, 5.0, PORT)
    assert seen is not None
    assert (seen.flow.source_port, seen.connection, seen.packet) == (20_000, None, packet)


def test_a_fabric_packet_tells_its_connection_and_what_is_in_it() -> None:
    inner = application_packet()
    seen = sighting(fabric_datagram(inner), 5.0, PORT)
    assert seen is not None
    assert (seen.flow.source_port, seen.connection, seen.packet) == (20_000, 77, inner)


def test_replies_announcements_and_rubbish_are_not_first_packets() -> None:
    inner = application_packet()
    told = fabric_datagram(b"{}", kind=PAYLOAD_ANNOUNCE)
    assert sighting(fabric_datagram(inner, flags=FLAG_REPLY), 5.0, PORT) is None
    assert sighting(told, 5.0, PORT) is None
    assert sighting(on_the_underlay(b"rubbish"), 5.0, PORT) is None
    assert sighting(b"", 5.0, PORT) is None


# -- the command line --------------------------------------------------------------------------


def test_a_real_guests_command_line_becomes_one_to_start_by_hand() -> None:
    changed = adapted(REAL, PLACE)
    assert "-S" not in changed
    assert not any('"secret"' in word for word in changed)
    assert "socket,id=charmonitor,path=/run/m1,server=on,wait=off" in changed
    assert "socket,id=charchannel0,path=/run/c1,server=on,wait=off" in changed
    backend = json.loads(changed[changed.index("-netdev") + 1])
    assert (backend["ifname"], "fd" in backend) == ("tap1", False)
    assert json.loads(changed[changed.index("-device") + 1])["mac"] == PLACE.mac
    assert "fabric.ip=100.115.0.2/22" in changed[changed.index("-append") + 1]
    assert changed[-2:] == ["-incoming", "defer"]
    assert "-no-user-config" in changed


def test_an_unknown_command_line_is_refused() -> None:
    with pytest.raises(EnvironmentFault, match="no place for"):
        adapted(["qemu", "-netdev", "user,id=n"], PLACE)


def test_a_copy_names_its_template_and_a_booted_guest_none() -> None:
    assert template_of(REAL) == Path("/dev/shm/fabric/ab")
    assert template_of(REAL[:-4]) is None


# -- memory ------------------------------------------------------------------------------------

ROLLUP = """\
55d0c0000000-7ffd00000000 ---p 00000000 00:00 0    [rollup]
Rss:               30000 kB
Pss:               14000 kB
Pss_Anon:           9000 kB
Private_Clean:       500 kB
Private_Dirty:      9500 kB
Anonymous:          9200 kB
"""


def test_what_is_not_private_is_this_guests_part_of_what_is_shared() -> None:
    assert Footprint.parse(ROLLUP) == Footprint(10_000, 4_000, 9_200)


def test_a_rollup_without_its_lines_is_no_zero() -> None:
    with pytest.raises(ValueError, match="Private_Clean"):
        Footprint.parse("head\nRss: 1 kB\n")


def test_memory_is_told_as_sums_and_for_one_guest() -> None:
    document = memory.figure("warm", [Footprint(10_240, 1_024, 5_120)] * 2)
    assert (document["private_mib"], document["shared_mib"]) == (20.0, 2.0)
    assert (document["anonymous_mib"], document["per_guest_mib"]) == (10.0, 11.0)
    assert "| warm | 2 | 20.0 | 2.0 | 10.0 | 11.0 |" in memory_page([document])


# -- plans, beds, tables -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong", [{"tiers": ("hot",)}, {"bursts": (0,)}, {"bursts": (99,)}, {"hops": ()}, {"count": 0}]
)
def test_a_plan_that_makes_no_sense_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError):
        spawn.Plan(**wrong)


@pytest.mark.parametrize("wrong", [{"tiers": ("hot",)}, {"guests": (0,)}, {"guests": (1000,)}])
def test_a_memory_plan_that_makes_no_sense_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError):
        memory.Plan(**wrong)


def test_bursts_are_of_the_shortest_path() -> None:
    plan = spawn.Plan(bursts=(1, 4), hops=(0, 2))
    assert [plan.bursts_at(hops) for hops in plan.hops] == [(1, 4), (1,)]


def test_the_neighbour_aside_spawns_nothing_and_pools_are_as_large_as_told() -> None:
    model = parse_topology(line_topology("b", 1, aside=True, pool=4), "line")
    hosts = {host.name: host for host in model.hosts}
    assert hosts[ASIDE].spawning is False
    pool = hosts["h1"].pool
    assert pool is not None
    assert (pool.minimum, pool.maximum) == (4, 4)


def test_the_page_has_a_row_for_every_figure() -> None:
    series = Series("cold", 1, 0, ours=[Sample(10.0, {"facts": 1.0}, "cold")])
    document = series.to_json()
    (row,) = rows([document])
    assert len(row) == len(COLUMNS)
    assert "facts 1.0" in page([document])
