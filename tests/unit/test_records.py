"""Records of connections come back whole or not at all."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from fabric.errors import EnvironmentFault
from fabric.host.control.connections import Connection, Role, State
from fabric.host.control.records import Records, SavedConnection, SavedGuest
from fabric.routing.policy import ApplicationFacts
from fabric.wire.inner import FiveTuple

FLOW = FiveTuple(4, 6, "10.77.0.1", 40000, "10.77.0.3", 80)
GUEST = SavedGuest(3, "uuid", "cold", {"total_ms": 12.5}, "ab" * 32)


def connection(number: int = 0x1_0000_0001) -> Connection:
    return Connection(
        id=number,
        role=Role.INGRESS,
        source_node=1,
        destination_node=3,
        requested_at_us=77,
        flow=FLOW,
        facts=ApplicationFacts(flow=FLOW, executable="/usr/bin/curl", arguments=("-sS", "x")),
        protocol=2,
        protocol_name="wide",
        need="bandwidth",
        rule="declared-need",
        reason="why",
        spawn_ms=105.0,
        spawns=1,
    )


def saved(directory: Path, number: int = 0x1_0000_0001) -> Path:
    Records(directory, "boot").save(SavedConnection.of(connection(number), GUEST))
    return directory / f"{number:016x}.json"


def test_a_connection_comes_back_as_it_was(tmp_path: Path) -> None:
    records = Records(tmp_path / "connections", "boot")
    records.save(SavedConnection.of(connection(), GUEST))
    (found,) = records.load()
    assert found.guest == GUEST
    assert found.restore() == connection()
    assert found.restore().state is State.HELD
    key = found.guest.key()
    assert key is not None and key.public == b"\xab" * 32


def test_a_transit_hosts_record_needs_neither_facts_nor_flow(tmp_path: Path) -> None:
    bare = replace(connection(), role=Role.TRANSIT, flow=None, facts=None, protocol=None)
    records = Records(tmp_path, "boot")
    records.save(SavedConnection.of(bare, GUEST))
    assert records.load()[0].restore() == bare


def test_saving_again_replaces_and_forgetting_is_idempotent(tmp_path: Path) -> None:
    records = Records(tmp_path, "boot")
    records.save(SavedConnection.of(connection(), GUEST))
    records.save(SavedConnection.of(connection(), replace(GUEST, index=4)))
    assert [record.guest.index for record in records.load()] == [4]
    for _ in range(2):
        records.forget(connection().id)
    assert records.load() == [] and list(tmp_path.iterdir()) == []


def test_a_record_of_another_boot_is_not_believed_and_goes(tmp_path: Path) -> None:
    path = saved(tmp_path)
    assert Records(tmp_path, "another boot").load() == []
    assert not path.exists()


@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: text[: len(text) // 2],
        lambda _text: "[]",
        lambda text: text.replace('"ingress"', '"emperor"'),
        lambda text: text.replace('"uuid": "uuid", ', ""),
        lambda text: text.replace('"format": 1', '"format": 0'),
        lambda text: text.replace("ab" * 32, "no hex"),
        lambda text: json.dumps({**json.loads(text), "connection": None}),
    ],
)  # fmt: skip
def test_what_is_not_whole_is_no_record_and_spares_its_neighbours(
    tmp_path: Path, spoil: object
) -> None:
    path, other = saved(tmp_path, 1), saved(tmp_path, 2)
    path.write_text(spoil(path.read_text()))  # type: ignore[operator]
    assert [record.id for record in Records(tmp_path, "boot").load()] == [2]
    assert not path.exists() and other.exists()


def test_a_record_under_another_connections_name_is_none(tmp_path: Path) -> None:
    saved(tmp_path, 1).rename(tmp_path / f"{9:016x}.json")
    assert Records(tmp_path, "boot").load() == []


def test_files_that_are_no_records_are_left_alone_but_for_drafts(tmp_path: Path) -> None:
    (tmp_path / "notes.json").write_text("{}")
    (tmp_path / f"{1:016x}.new").write_text("torn")
    records = Records(tmp_path, "boot")
    assert records.load() == [] and records.ids() == frozenset()
    assert [path.name for path in tmp_path.iterdir()] == ["notes.json"]


def test_a_record_that_cannot_be_written_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "connections").write_text("a file in the way")
    records = Records(tmp_path / "connections", "boot")
    with pytest.raises(EnvironmentFault, match="0000000100000001"):
        records.save(SavedConnection.of(connection(), GUEST))
