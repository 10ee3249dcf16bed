"""What a topology file says of protocols, and of what protocols look at."""

from __future__ import annotations

import json
from dataclasses import replace

from fabric.lab.topology_file import load_topology, parse_topology
from fabric.routing.definitions import PROTOCOLS, Definition
from fabric.routing.needs import DISPERSE, LOW_LATENCY
from fabric.routing.policy import Policy
from fabric.routing.topology import Topology
from tests.unit.test_topology_file import ROOT, hosts, problems


def test_attributes_that_protocols_look_at_reach_the_graph() -> None:
    text = """
name: x
defaults: {links: {affinities: fibre}}
hosts:
  a: {tags: [rented, old], region: eu-west, load: 30%}
  b:
links:
  - {endpoints: [a, b], jitter: 500us, affinities: [radio, leased]}
"""
    topology = parse_topology(text).topology()
    a, b = topology.nodes
    assert (a.tags, a.region, a.load) == (("rented", "old"), "eu-west", 0.3)
    assert (b.tags, b.region, b.load) == ((), "", 0.0)
    assert topology.links[0].jitter_us == 500
    assert topology.links[0].affinities == ("radio", "leased")
    assert parse_topology(text.replace(", affinities: [radio, leased]", "")).topology().links[
        0
    ].affinities == ("fibre",)


def test_a_network_defines_protocols_and_parameters_of_built_in_ones() -> None:
    lab = load_topology(ROOT / "examples/three-ways.yaml")
    topology = lab.topology()
    own = {definition.name: definition for definition in topology.protocols}
    assert own["disperse"] == replace(PROTOCOLS[DISPERSE], share=0.34)
    assert own["avoid"].exclude_hosts == (4,)
    assert own["stay-in-eu"] == Definition(
        128, "stay-in-eu", metric="latency", include_all=("fibre",), exclude_regions=("us",)
    )
    voice = own["voice"]
    assert (voice.id, voice.calculation, voice.bound_latency_us) == (129, "bounded", 12_000)
    assert (voice.bound_jitter_us, voice.bound_loss) == (1_000, 0.01)
    rule = Policy.from_json(lab.policy, topology.protocol_names).rules[0]
    assert (rule.protocol, rule.reply) == (129, LOW_LATENCY)
    again = Topology.from_json(json.loads(json.dumps(topology.to_json())))
    assert again == topology


def test_mistakes_in_protocols_are_told_with_their_place() -> None:
    more = """protocols:
  mine: {}
  theirs: {id: 128, exclude_hosts: [c], metrik: cost}
  fast: {id: 128, share: 150%}
  wide: {id: 200}
  thin: {id: 129, calculation: widdest}
  slim: {id: 130, calculation: disperse, share: 30%, paths: 2}
  flood: {calculation: spf}
policy: {rules: [{match: {}, protocol: nobody}, {match: {}, need: default, reply: nothing}]}
"""
    found = "\n".join(problems(hosts("a", "b", links="[a-b]", more=more)))
    for part in (
        "protocols.mine: needs an id from 128 to 255",
        'protocols.theirs.exclude_hosts: host "c" is not defined',
        'protocols.theirs.metrik: unknown key "metrik" (did you mean "metric"?)',
        "protocols.fast.share: 150% is no share",
        "protocols.fast: id 128 is already that of theirs",
        "protocols.wide.id: wide is built in and keeps its id 2",
        'protocols.thin.calculation: "widdest" is not a calculation (did you mean "widest"?)',
        "protocols.slim: a share of 0.3 needs 4 paths, not 2",
        "protocols.flood: flood is built in and keeps its calculation",
        "policy.rules[0].protocol: unknown protocol 'nobody'",
        "policy.rules[1].reply: unknown protocol 'nothing'",
    ):
        assert part in found
