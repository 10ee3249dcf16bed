"""The forwarding table and its compact form."""

from __future__ import annotations

import json

import pytest

from fabric.errors import ConfigError
from fabric.routing.table import ForwardingTable, NextHop


def hop(node: int, metric: int) -> NextHop:
    return NextHop(node=node, address=f"172.31.0.{node}", interface=node, mtu=9000, metric=metric)


ENTRIES = {
    (4, 0): (hop(2, 20), hop(3, 20)),
    (4, 2): (hop(3, 500),),
    (3, 0): (hop(3, 10),),
}


def test_survives_a_round_trip_through_json() -> None:
    table = ForwardingTable(1, 7, ENTRIES)
    again = ForwardingTable.from_json(json.loads(json.dumps(table.to_json())))
    assert (again.node, again.version, again.entries) == (1, 7, ENTRIES)
    assert again == table


def test_every_distinct_next_hop_is_written_once() -> None:
    assert len(ForwardingTable(1, 7, ENTRIES).to_json()["hops"]) == 2


def test_looks_up_by_destination_and_protocol() -> None:
    table = ForwardingTable(1, 7, ENTRIES)
    assert table.lookup(4, 0) == (hop(2, 20), hop(3, 20))
    assert table.lookup(4, 2) == (hop(3, 500),)
    assert table.lookup(4, 1) == ()
    assert table.lookup(9, 0) == ()


def test_missing_parts_are_a_config_error() -> None:
    with pytest.raises(ConfigError, match="forwarding table"):
        ForwardingTable.from_json({"node": 1, "hops": []})


def test_tables_differ_by_version_and_routes() -> None:
    assert ForwardingTable(1, 7, ENTRIES) != ForwardingTable(1, 8, ENTRIES)
    assert ForwardingTable(1, 7, ENTRIES) != ForwardingTable(1, 7, {})
