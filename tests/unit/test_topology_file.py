"""Topology files: what they mean, and that every mistake is told with file, line and key."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fabric.errors import ConfigError
from fabric.host.config import Limits
from fabric.lab.fields import parse_bandwidth, parse_latency, parse_loss, parse_seconds
from fabric.lab.policy_file import load_policy
from fabric.lab.schema import json_schema
from fabric.lab.topology_file import load_topology, parse_topology
from fabric.routing.policy import ApplicationFacts, Policy, select
from fabric.wire.inner import FiveTuple
from fabric.wire.packet import HEADER_SIZE, RECORD_SIZE, UNDERLAY_OVERHEAD

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = sorted(p for p in (ROOT / "examples").glob("*.yaml") if p.name != "policy.yaml")

WHOLE = """\
name: whole
overlay: {ipv4: 10.9.0.0/24, ipv6: "fd09::/64"}
defaults:
  hosts: {idle_timeout: 1m, limits: {guests: 8}, tier: cold}
  links: {latency: 1ms, mtu: 1500}
policy:
  rules:
    - {name: all, match: {}, need: reliable}
hosts:
  left:
  mid-1: {idle_timeout: 2s, limits: {held_packets: 9}, guest_memory_mib: 256, announce: false}
  right:
    prefixes: [192.168.1.0/24]
    tier: cold
    spawning: false
    guest_subnet: 100.64.0.0/24
    policy: {rules: [{match: {}, need: bandwidth}]}
links:
  - {endpoints: ["left:eth1", "mid-1:eth1"], cost: 7, bandwidth: 1.5 Mbit/s, loss: 0.25%}
  - mid-1-right
  - {endpoints: [right, left], latency: 250us, mtu: 9000, state: down}
validate:
  - {name: there, warning: true, reach: {from: left, to: right, with: udp, count: 2, within: 1m}}
  - path: {from: left, to: right, protocol: wide, exactly: [left, mid-1, right]}
  - blackout: {from: left, to: right, cut: left-mid-1, below: 300ms, silent: true}
"""


def problems(text: str, base: Path | None = None) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse_topology(text, "x.yaml", base)
    return list(caught.value.problems)


def hosts(*names: str, links: str = "[]", more: str = "") -> str:
    listed = "".join(f"  {name}:\n" for name in names)
    return f"name: x\nhosts:\n{listed}links: {links}\n{more}"


# -- meaning ---------------------------------------------------------------------------------------


def test_reads_every_option() -> None:
    lab = parse_topology(WHOLE)
    left, mid, right = lab.hosts
    assert [(h.name, h.node, h.overlay_v4, h.overlay_v6) for h in lab.hosts] == [
        ("left", 1, "10.9.0.1", "fd09::1"),
        ("mid-1", 2, "10.9.0.2", "fd09::2"),
        ("right", 3, "10.9.0.3", "fd09::3"),
    ]
    assert (left.idle_timeout, mid.idle_timeout, right.idle_timeout) == (60.0, 2.0, 60.0)
    assert left.limits == Limits(guests=8)
    assert mid.limits == Limits(guests=8, held_packets=9)
    assert (left.tier, right.tier) == ("cold", "cold")
    assert (mid.guest_memory_mib, mid.announce, right.spawning) == (256, False, False)
    assert (left.announce, left.guest_subnet, right.guest_subnet) == (None, None, "100.64.0.0/24")
    assert left.policy["rules"][0]["need"] == "reliable"
    assert right.policy["rules"][0]["need"] == "bandwidth"
    assert lab.overlay_prefixes == ("10.9.0.0/24", "fd09::/64", "192.168.1.0/24")
    assert lab.overlay_prefixes_at("right") == ("10.9.0.0/24", "fd09::/64")


def test_links_get_addresses_and_interfaces_in_the_order_of_the_file() -> None:
    first, second, third = parse_topology(WHOLE).links
    assert (first.a, first.b, first.cost, first.latency_us) == ("left", "mid-1", 7, 1000)
    assert (first.bandwidth_bps, first.loss, first.mtu) == (1_500_000, 0.0025, 1500)
    assert (second.a, second.b, second.cost, second.bandwidth_bps) == ("mid-1", "right", 1, 0)
    assert (third.latency_us, third.mtu) == (250, 9000)
    assert [(e.a_address, e.b_address) for e in (first, second, third)] == [
        ("172.31.0.0", "172.31.0.1"),
        ("172.31.0.2", "172.31.0.3"),
        ("172.31.0.4", "172.31.0.5"),
    ]
    ids = [(e.a_interface, e.b_interface) for e in (first, second, third)]
    assert ids == [(1, 1), (2, 1), (2, 2)]


def test_the_topology_knows_every_prefix() -> None:
    topology = parse_topology(WHOLE).topology()
    assert topology.node_for("10.9.0.2") == topology.node_for("fd09::2") == 2
    assert topology.node_for("192.168.1.77") == 3
    assert topology.node_for("10.9.0.4") is None


@pytest.mark.parametrize(("mtu", "overlay"), [(9000, 8192), (1700, 1376), (1500, 1280)])
def test_overlay_mtu_leaves_room_for_header_and_records(mtu: int, overlay: int) -> None:
    text = hosts("a", "b", links=f"[{{endpoints: [a, b], mtu: {mtu}}}]")
    assert parse_topology(text).overlay_mtu == overlay
    assert overlay + UNDERLAY_OVERHEAD + HEADER_SIZE + RECORD_SIZE <= mtu


def test_the_same_file_always_gives_the_same_lab() -> None:
    assert parse_topology(WHOLE) == parse_topology(WHOLE)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_examples_load(path: Path) -> None:
    lab = load_topology(path)
    assert lab.name == path.stem
    assert lab.topology().is_connected()


def test_there_are_examples() -> None:
    assert {"diamond.yaml", "line.yaml", "ring.yaml"} <= {path.name for path in EXAMPLES}


def test_the_example_policy_tells_programs_apart() -> None:
    policy = Policy.from_json(load_policy(ROOT / "examples/policy.yaml"))

    def need(executable: str, port: int, transport: int = 6) -> str:
        flow = FiveTuple(4, transport, "10.77.0.1", 40000, "10.77.0.4", port)
        return select(policy, ApplicationFacts(flow, executable=executable)).need

    assert need("/usr/bin/ssh", 22) == "low-latency"
    assert need("/usr/bin/iperf3", 5201) == "bandwidth"
    assert need("/usr/bin/dig", 53, 17) == "low-latency"
    assert need("/usr/bin/mosquitto_pub", 1883) == "reliable"
    assert need("/usr/bin/curl", 8000) == "default"


def test_a_policy_file_is_found_beside_the_topology(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text("rules: [{match: {dscp: 5}, need: bandwidth}]\n")
    lab = parse_topology(hosts("a", more="policy: p.yaml\n"), base=tmp_path)
    assert lab.policy == {"rules": [{"match": {"dscp": 5}, "need": "bandwidth"}]}
    assert lab.hosts[0].policy == lab.policy


@pytest.mark.parametrize("key", ["null", "true", "7", "on"])
def test_names_are_text_whatever_yaml_thinks(key: str) -> None:
    assert parse_topology(hosts(key)).hosts[0].name == key


# -- units -----------------------------------------------------------------------------------------


def test_units() -> None:
    assert [parse_latency(v) for v in ("5ms", "1.5 ms", "20us", "20µs", "1s", 0)] == [
        5000,
        1500,
        20,
        20,
        1_000_000,
        0,
    ]
    assert [parse_bandwidth(v) for v in ("100mbit", "1Gbit/s", "9 kbit", "1bit")] == [
        100_000_000,
        1_000_000_000,
        9000,
        1,
    ]
    assert [parse_loss(v) for v in ("0.1%", "50 %", 0)] == [0.001, 0.5, 0.0]
    assert parse_seconds("2min") == 120.0


@pytest.mark.parametrize("value", ["", "5", "5 parsecs", "ms", "-5ms", "5ms/s", 5, 5.0, True, []])
def test_bad_latencies(value: object) -> None:
    with pytest.raises(ValueError, match=r"ms|negative"):
        parse_latency(value)


@pytest.mark.parametrize("value", [0, "0mbit", "-5mbit", "5mb", 100])
def test_bad_bandwidths(value: object) -> None:
    with pytest.raises(ValueError, match=r"mbit|zero|negative"):
        parse_bandwidth(value)


@pytest.mark.parametrize("value", ["100%", "-1%", 0.5, "0.5"])
def test_bad_losses(value: object) -> None:
    with pytest.raises(ValueError, match=r"%|negative"):
        parse_loss(value)


# -- mistakes --------------------------------------------------------------------------------------


def test_an_unknown_host_is_named_with_file_line_and_key() -> None:
    text = "name: x\nhosts: {h1: , h2: }\nlinks:\n  - h1-h2\n  - endpoints: [h1, web]\n"
    assert problems(text) == [
        'x.yaml:5: links[1].endpoints: host "web" is not defined (known: h1, h2)'
    ]


def test_all_mistakes_are_listed_in_the_order_of_the_file() -> None:
    text = """\
name: Bad;Lab
overlay: {ipv4: 172.31.4.0/24}
hosts:
  h1: {idle_timeout: 30, tier: clod}
  h2: {prefixs: []}
  h1: {}
  "h$3": {}
  averyverylonghost: {prefixes: [10.77.0.1/8]}
links:
  - endpoints: [h2, h2]
  - endpoints: [h1, h2]
    bandwidth: -5mbit
    latancy: 5ms
  - {endpoints: [h2, h1], cost: 0, mtu: 500, loss: 150%}
  - 17
policy:
  rules:
    - match: {destination_port: 99999}
      need: speed
nonsense: true
"""
    found = problems(text)
    expected = [
        ("x.yaml:1: name: ", "not a lab name"),
        ("x.yaml:2: overlay.ipv4: ", "172.31.4.0/24 overlaps 172.31.0.0/16"),
        ("x.yaml:4: hosts.h1.idle_timeout: ", "no unit"),
        ("x.yaml:4: hosts.h1.tier: ", 'did you mean "cold"?'),
        ("x.yaml:5: hosts.h2.prefixs: ", 'did you mean "prefixes"?'),
        ("x.yaml:6: hosts.h1: ", "is there twice, first on line 4"),
        ("x.yaml:7: hosts.h$3: ", "not a host name"),
        ("x.yaml:8: hosts.averyverylonghost: ", "too long"),
        ("x.yaml:8: hosts.averyverylonghost.prefixes: ", "host bits"),
        ("x.yaml:10: links[0].endpoints: ", "linked to itself"),
        ("x.yaml:12: links[1].bandwidth: ", "negative"),
        ("x.yaml:13: links[1].latancy: ", 'did you mean "latency"?'),
        ("x.yaml:14: links[2]: ", "already linked by links[1] on line 11"),
        ("x.yaml:14: links[2].cost: ", "0 is not in 1"),
        ("x.yaml:14: links[2].loss: ", "below 100%"),
        ("x.yaml:14: links[2].mtu: ", "500 is not in"),
        ("x.yaml:15: links[3]: ", "must be a mapping with endpoints"),
        ("x.yaml:18: policy.rules[0].match.destination_port: ", "99999"),
        ("x.yaml:19: policy.rules[0].need: ", "unknown need 'speed'"),
        ("x.yaml:20: nonsense: ", "unknown key"),
    ]
    for where, what in expected:
        assert any(line.startswith(where) and what in line for line in found), (where, found)
    assert len(found) == len(expected)
    lines = [int(line.split(":")[1]) for line in found]
    assert lines == sorted(lines)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "there is no name"),
        ("- a", "must be a mapping"),
        ("name: x", "there are no hosts"),
        ("name: x\nhosts: [a]", "hosts: must be a mapping"),
        (hosts("a") + "name: y\n", "name: is there twice, first on line 1"),
        (hosts("a", links="{}"), "links: must be a list"),
        (hosts("a", links="[{cost: 1}]"), "links[0].endpoints: must be two hosts"),
        (hosts("a", links="[a]"), "names no two of the hosts"),
        (hosts("a", links="[a-b]"), 'host "b" is not defined'),
        (hosts("a", "a-a", links="[a-a-a]"), "can mean a and a-a or a-a and a"),
        (hosts("a", "b", links="[{endpoints: [a, b], cost: yes}]"), "whole number"),
        (hosts("a", more="overlay: {ipv4: 'fd00::/64'}"), "must be an IPv4 prefix"),
        (hosts("a", "b", "c", links="[a-b,b-c]", more="overlay: {ipv4: 10.0.0.0/30}"), "too small"),
        (hosts("a", more="overlay: {ipv4: 100.115.1.0/24}"), "the guests of a"),
        (hosts("a", more="defaults: {hosts: {prefixes: [10.0.0.0/8]}}"), "no default for them"),
        ("name: x\nhosts: {a: {limits: {guests: 0}}}", "hosts.a.limits.guests: 0 is not in"),
        ("name: x\nhosts: {a: {prefixes: [10.77.0.0/16]}}", "overlaps 10.77.0.1/32, the address"),
        ("name: x\nhosts: {a: {<<: {}}}", "merge keys"),
        ("name: x\nhosts: {a: !include b}", "tags are not understood"),
        ("name: x\nhosts: &h\n  a: *h", "nested deeper"),
        (hosts("a") + "\tb", "cannot start any token"),
        ("a: b: c", "mapping values are not allowed"),
        ("a: 1\n---\nb: 1", "another document"),
        ("name: \x00", "special characters"),
    ],
)
def test_single_mistakes(text: str, expected: str) -> None:
    found = problems(text)
    assert any(expected in line for line in found), found
    assert all(line.startswith("x.yaml:") for line in found)


def test_prefixes_of_two_hosts_must_not_overlap() -> None:
    text = (
        "name: x\nhosts: {a: {prefixes: [10.1.0.0/16]}, b: {prefixes: [10.1.2.0/24]}}\nlinks: [a-b]"
    )
    assert problems(text) == [
        "x.yaml:2: hosts.b.prefixes: 10.1.2.0/24 overlaps 10.1.0.0/16, a prefix of a"
    ]


def test_a_disconnected_topology_names_its_parts() -> None:
    assert problems(hosts("a", "b", "c", "d", "e", links="[a-b, c-d, d-e]")) == [
        "x.yaml:8: links: the topology falls into 2 parts with no link between: c, d, e | a, b"
    ]


def test_an_unreadable_policy_is_told_at_the_line_that_names_it(tmp_path: Path) -> None:
    found = problems(hosts("a", more="policy: nosuch.yaml\n"), tmp_path)
    assert len(found) == 1
    assert found[0].startswith("x.yaml:5: policy: ")
    assert "nosuch.yaml: cannot be read: No such file or directory" in found[0]


def test_mistakes_of_a_policy_file_keep_their_own_place(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text("rules:\n  - match: {}\n    need: speed\n")
    found = problems("name: x\nhosts: {a: {policy: p.yaml}, b: {bad: 1}}\nlinks: [a-b]", tmp_path)
    assert any(line.startswith(f"{tmp_path}/p.yaml:3: rules[0].need: ") for line in found)
    assert any("hosts.b.bad" in line for line in found)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        load_topology(tmp_path / "nosuch.yaml")
    with pytest.raises(ConfigError, match="directory"):
        load_topology(tmp_path)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not a text file"):
        load_topology(tmp_path / "binary.yaml")


# -- schema ----------------------------------------------------------------------------------------


def instances() -> list[tuple[str, Any, bool]]:
    from fabric.lab.yaml_reader import read_source, read_text

    good = [(path.name, read_source(path).data, True) for path in EXAMPLES]
    good.append(("whole", read_text(WHOLE, "whole").data, True))
    base = {"name": "x", "hosts": {"a": None, "b": {}}}
    bad: list[dict[str, Any]] = [
        {**base, "name": "A;b"},
        {**base, "hosts": {}},
        {**base, "hosts": {"averyverylonghost": {}}},
        {**base, "hosts": {"a": {"tier": "clod"}}},
        {**base, "links": [{"endpoints": ["a"]}]},
        {**base, "links": [{"endpoints": ["a", "b"], "latancy": "5ms"}]},
        {**base, "links": [{"endpoints": ["a", "b"], "latency": 5}]},
        {**base, "links": [{"endpoints": ["a", "b"], "bandwidth": "-5mbit"}]},
        {**base, "links": [{"endpoints": ["a", "b"], "jitter": 2}]},
        {**base, "links": [{"endpoints": ["a", "b"], "affinities": ["two words"]}]},
        {**base, "hosts": {"a": {"load": "101"}}},
        {**base, "protocols": {"mine": {"metric": "cost"}}},
        {**base, "protocols": {"mine": {"id": 127}}},
        {**base, "protocols": {"mine": {"id": 200, "metric": "beauty"}}},
        {**base, "protocols": {"wide": {"id": 200}}},
        {**base, "links": [{"endpoints": ["a", "b"], "state": "silent"}]},
        {**base, "links": ["a-b"], "validate": [{"reach": {"from": "a"}}]},
        {
            **base,
            "links": ["a-b"],
            "validate": [{"reach": {"from": "a", "to": "b", "with": "tin"}}],
        },
        {**base, "links": ["a-b"], "validate": [{"name": "x"}]},
        {
            **base,
            "links": ["a-b"],
            "validate": [{"blackout": {"from": "a", "to": "b", "below": 3}}],
        },
        {
            **base,
            "links": ["a-b"],
            "validate": [
                {
                    "path": {
                        "from": "a",
                        "to": "b",
                        "avoids": "b",
                        "need": "bandwidth",
                        "protocol": "wide",
                    }
                }
            ],
        },
        {**base, "policy": {"rules": [{"match": {}, "need": "speed"}]}},
        {**base, "policy": {"rules": [{"match": {}, "need": "default", "protocol": "wide"}]}},
    ]
    return good + [(json.dumps(document), document, False) for document in bad]


@pytest.mark.parametrize(("label", "document", "valid"), instances(), ids=lambda v: str(v)[:40])
def test_the_schema_accepts_and_rejects_as_the_reader_does(
    label: str, document: Any, valid: bool
) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    validator = jsonschema.Draft202012Validator(json_schema())
    assert validator.is_valid(document) is valid, label
    if not valid:
        with pytest.raises(ConfigError):
            parse_topology(json.dumps(document))


def test_the_schema_is_json() -> None:
    assert json.loads(json.dumps(json_schema())) == json_schema()
