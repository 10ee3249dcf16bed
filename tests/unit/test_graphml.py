"""GraphML becomes a topology; what had to be mended is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from fabric.errors import ConfigError
from fabric.lab.graphml import Imported, great_circle_km, read_graphml
from fabric.lab.graphml_words import speed_bps
from fabric.lab.topology_file import parse_topology
from fabric.lab.topology_text import topology_text
from tests.sim.graphs import ZOO, ZOO_NAMES

KEYS = """
  <key attr.name="LinkSpeedRaw" attr.type="double" for="edge" id="raw" />
  <key attr.name="LinkLabel" attr.type="string" for="edge" id="words" />
  <key attr.name="delay" attr.type="double" for="edge" id="delay" />
  <key attr.name="label" attr.type="string" for="node" id="label" />
  <key attr.name="Latitude" attr.type="double" for="node" id="lat" />
  <key attr.name="Longitude" attr.type="double" for="node" id="lon" />
  <key attr.name="Internal" attr.type="int" for="node" id="in" />
  <key attr.name="Country" attr.type="string" for="node" id="country" />
  <key attr.name="hyperedge" attr.type="int" for="node" id="hyper" />"""
PARIS = '<data key="label">Paris</data><data key="lat">48.85</data><data key="lon">2.35</data>'
OSLO = '<data key="label">Oslo</data><data key="lat">59.91</data><data key="lon">10.75</data>'


def node(name: str, data: str = "") -> str:
    return f'<node id="{name}">{data}</node>'


def edge(a: str, b: str, data: str = "") -> str:
    return f'<edge source="{a}" target="{b}">{data}</edge>'


def read(tmp_path: Path, *body: str, most: int = 0, directed: str = "undirected") -> Imported:
    file = tmp_path / "net.graphml"
    file.write_text(
        '<?xml version="1.0" encoding="utf-8"?>'
        f'<graphml xmlns="http://graphml.graphdrawing.org/xmlns">{KEYS}'
        f'<graph edgedefault="{directed}">{"".join(body)}</graph></graphml>'
    )
    return read_graphml(file, most)


def told(imported: Imported, words: str) -> bool:
    return any(words in repair for repair in imported.repairs)


@pytest.mark.skipif(not ZOO_NAMES, reason="no Topology Zoo beside the repository")
@pytest.mark.parametrize("name", ZOO_NAMES)
def test_zoo_files_become_topology_files_that_say_the_same(name: str) -> None:
    imported = read_graphml(ZOO / f"{name}.graphml")
    again = parse_topology(topology_text(imported)).topology()
    links = [
        [(n.a, n.b, n.latency_us, n.bandwidth_bps, n.a_interface, n.b_interface) for n in t.links]
        for t in (imported.topology, again)
    ]
    assert links[0] == links[1]
    names = [[node.name for node in t.nodes] for t in (imported.topology, again)]
    assert names[0] == names[1]
    assert imported.topology.is_connected()
    assert all(link.latency_us > 0 for link in imported.topology.links)


def test_latency_is_light_in_fibre_along_the_great_circle(tmp_path: Path) -> None:
    found = read(tmp_path, node("a", PARIS), node("b", OSLO), edge("a", "b"))
    kilometres = great_circle_km((48.85, 2.35), (59.91, 10.75))
    assert kilometres == pytest.approx(1340, abs=10)
    assert found.topology.links[0].latency_us == pytest.approx(kilometres * 5.0035, rel=1e-4)
    assert told(found, "1 of 1 latencies are those of light")


def test_what_the_file_says_wins_over_coordinates(tmp_path: Path) -> None:
    data = '<data key="delay">7.5</data><data key="raw">1e9</data>'
    found = read(tmp_path, node("a", PARIS), node("b", OSLO), edge("a", "b", data))
    assert found.topology.links[0].latency_us == 7500
    assert found.topology.links[0].bandwidth_bps == 10**9
    assert found.repairs == ()


@pytest.mark.parametrize(
    ("attributes", "bits"),
    [
        ({"LinkSpeedRaw": 1e10}, 10**10),
        ({"LinkSpeed": "2.5", "LinkSpeedUnits": "G"}, 2_500_000_000),
        ({"LinkLabel": "10 Gbps"}, 10**10),
        ({"LinkLabel": "155 Mbit/s"}, 155_000_000),
        ({"LinkType": "OC-192"}, 192 * 51_840_000),
        ({"LinkLabel": "STM-16 ring"}, 16 * 155_520_000),
        ({"LinkLabel": "E3"}, 34_368_000),
        ({"LinkLabel": "Completion 2007-2008"}, 0),
        ({"LinkSpeedRaw": "nan", "LinkLabel": ""}, 0),
    ],
)
def test_speeds_are_read_from_numbers_and_words(attributes: dict[str, object], bits: int) -> None:
    assert speed_bps(attributes) == bits


def test_links_no_lab_can_have_are_mended_and_told(tmp_path: Path) -> None:
    fast = '<data key="words">10 Gbps</data>'
    found = read(
        tmp_path,
        *(node("a", PARIS), node("b", OSLO), node("c"), node("d"), node("e")),
        *(edge("a", "b"), edge("b", "a", fast), edge("a", "a"), edge("b", "c"), edge("d", "e")),
    )
    assert [(n.a, n.b) for n in found.topology.links] == [(1, 2), (2, 3)]
    assert found.topology.links[0].bandwidth_bps == 10**10
    assert told(found, "2 parallel links between Paris and Oslo are one, the widest")
    assert told(found, "1 links from a host to itself")
    assert told(found, "left out, as no link leads there from the rest: d, e")
    assert told(found, "no coordinates, put amid their neighbours: c")
    assert told(found, "hosts have no label: c")


def test_names_are_made_valid_and_distinct(tmp_path: Path) -> None:
    labels = ["São Paulo", "Salt Lake City North", "Salt Lake City South", "Paris", "paris", "None"]
    nodes = [node(str(at), f'<data key="label">{label}</data>') for at, label in enumerate(labels)]
    found = read(tmp_path, *nodes, *(edge("0", str(at)) for at in range(1, 6)))
    names = [each.name for each in found.topology.nodes]
    assert names == ["sao-paulo", "salt-lake-1", "salt-lake-2", "paris-1", "paris-2", "n5"]
    assert told(found, '"Salt Lake City North" is called')
    assert told(found, "neither latency nor place, taken to be 1 ms: sao-paulo-")
    parse_topology(topology_text(found))


def test_hyperedges_and_hosts_of_others_stay_and_are_told(tmp_path: Path) -> None:
    ends = "".join(f'<endpoint node="{each}" />' for each in "ab")
    found = read(
        tmp_path,
        node("a", PARIS + '<data key="country">New Zealand</data>'),
        node("b", OSLO + '<data key="in">0</data>'),
        node("c", '<data key="hyper">1</data>'),
        *(edge("a", "c"), edge("b", "c"), f"<hyperedge>{ends}</hyperedge>"),
    )
    assert [each.tags for each in found.topology.nodes] == [(), ("external",), (), ()]
    assert found.topology.nodes[0].region == "new-zealand"
    assert told(found, "hyperedges drawn as hosts stay hosts: c")
    assert told(found, "a hyperedge of 2 ends is a host in their midst")
    assert told(found, "1 hosts of other networks have the tag external: oslo")


def test_values_that_are_none_do_not_cost_the_file(tmp_path: Path) -> None:
    broken = '<data key="lat">north</data><data key="lon">2.0</data><data key="in">1.0</data>'
    found = read(tmp_path, node("a", broken), node("b", OSLO), edge("a", "b"), directed="directed")
    assert told(found, "attribute lat 'north' is left out")
    assert told(found, "links have directions")


def test_a_part_of_a_large_network_is_its_middle(tmp_path: Path) -> None:
    nodes = [node(str(at)) for at in range(8)]
    star = [edge("0", str(at)) for at in range(1, 6)] + [edge("5", "6"), edge("6", "7")]
    found = read(tmp_path, *nodes, *star, most=3)
    assert [each.name for each in found.topology.nodes] == ["n0", "n1", "n2"]
    assert told(found, "only 3 of 8 hosts")


def test_what_is_no_graphml_is_said_to_be_none(tmp_path: Path) -> None:
    file = tmp_path / "net.graphml"
    file.write_text("<graphml")
    with pytest.raises(ConfigError, match="no GraphML that can be read"):
        read_graphml(file)
    with pytest.raises(ConfigError, match="No such file"):
        read_graphml(tmp_path / "absent.graphml")
