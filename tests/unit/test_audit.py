"""Tables are kept by version; traces are replayed against them; entries are explained."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any, cast

import httpx
import pytest

from fabric.host.api import build_api
from fabric.host.control.connections import ConnectionTable
from fabric.host.control.history import KEPT, TableHistory
from fabric.host.control.messages import GuestMessages
from fabric.host.events import EventLog
from fabric.lab.state import UP, LabState
from fabric.lab.topology_file import load_topology
from fabric.routing.needs import DISJOINT, WIDE
from fabric.routing.protocols import compute_table
from fabric.routing.topology import Topology
from fabric.wire.packet import Packet
from tests.sim.network import Connection, VirtualNetwork
from tests.unit import lab_samples
from tests.unit.fake_orchestrator import serve
from tests.unit.host_world import Life, machine
from tests.unit.inner_packets import udp_packet
from tests.unit.test_cli import fabric
from tests.unit.test_orchestrator import FakeClock

DIAMOND = Path(__file__).parents[2] / "examples" / "diamond.yaml"
VERSION = 7
LABEL = f"{5:016x}"


def documents(graph: Topology, protocol: int) -> dict[str, dict[str, Any]]:
    """What each host's API says of a packet that went from h1 to h4, and of its table."""
    tables = {node.id: compute_table(graph, node.id, VERSION) for node in graph.nodes}
    network = VirtualNetwork.of(graph, tables, Random(1))
    network.send(Connection(5, 1, 4, protocol), [udp_packet(b"x")])
    network.run()
    events = EventLog("h4", lambda: 0)
    messages = GuestMessages(ConnectionTable(), graph, events, FakeClock())
    view = SimpleNamespace(label=LABEL)
    traces = [
        messages.trace_view(cast(Any, view), Packet.parse_trace(raw))
        for raw in network.engines[4, 5].traces()
    ]
    found: dict[str, dict[str, Any]] = {}
    for node in graph.nodes:
        book = {"version": VERSION, "host": node.name, "node": node.id}
        book |= {"topology": graph.to_json(), "table": tables[node.id].to_json()}
        found[node.name] = {
            "/v1/traces": traces if node.name == "h4" else [],
            "/v1/connections": [{"id": LABEL, "created_at": "2026", "role": "transit"}],
            "/v1/tables": [{"version": VERSION}],
            f"/v1/tables/{VERSION}": json.loads(json.dumps(book)),
        }
    return found


@pytest.fixture(params=[WIDE, DISJOINT])
def lab(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[dict[str, dict[str, Any]]]:
    """The diamond's APIs; the yielded documents may be changed."""
    monkeypatch.setenv("FABRIC_RUN", str(tmp_path))
    monkeypatch.delenv("FABRIC_LAB", raising=False)
    spec = lab_samples.spec(tmp_path, hosts=("h1", "h2", "h3", "h4"))
    LabState(spec, UP).save()
    known = documents(load_topology(DIAMOND).topology(), request.param)
    with ExitStack() as stack:
        for host in spec.hosts:
            stack.enter_context(serve(host.api_socket, known[host.host]))
        yield known


Lab = dict[str, dict[str, Any]]
Capture = pytest.CaptureFixture[str]


def test_decisions_of_a_live_connection_agree(lab: Lab, capsys: Capture) -> None:
    code, out, err = fabric("replay", LABEL[:-1], "-o", "json", capsys=capsys)
    assert code == 0, err
    found = json.loads(out)
    assert found and {each["verdict"] for each in found} == {"agrees"}
    assert all(hop["table_version"] == VERSION for each in found for hop in each["hops"])


def test_a_tampered_record_is_found_out(lab: Lab, tmp_path: Path, capsys: Capture) -> None:
    _, out, _ = fabric("trace", "-o", "json", capsys=capsys)
    traces = json.loads(out)
    traces[0]["hops"][1]["egress_interface"] += 1
    file = tmp_path / "trace.json"
    file.write_text(json.dumps(traces))
    code, out, _ = fabric("replay", str(file), capsys=capsys)
    assert code == 1
    assert "egress: interface" in out
    verdicts = json.loads(fabric("replay", str(file), "-o", "json", capsys=capsys)[1])[0]["hops"]
    assert [each["verdict"] for each in verdicts].count("differs") == 1
    assert verdicts[1]["verdict"] == "differs"


def test_a_tampered_table_is_found_out(lab: Lab, capsys: Capture) -> None:
    table = lab["h1"][f"/v1/tables/{VERSION}"]["table"]
    for rows in table["routes"].values():
        rows["4"][0] += 1
    code, out, _ = fabric("replay", LABEL, capsys=capsys)
    assert code == 1
    assert "entry: the table has" in out


@pytest.mark.parametrize("place", [{}, {"hops": []}, {"hops": [[]] * 3}, {"hops": [5, 6, 7]}])
def test_a_table_whose_rows_speak_of_nothing_cannot_be_read(
    lab: Lab, capsys: Capture, place: dict[str, Any]
) -> None:
    table = lab["h1"][f"/v1/tables/{VERSION}"]["table"]
    table.update(place) if place else table.pop("hops")
    code, out, _ = fabric("replay", LABEL, capsys=capsys)
    assert code == 2
    assert "cannot be read" in out or "forwarding table" in out


def test_traces_with_tables_need_no_lab(
    lab: Lab, capsys: Capture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _, whole, _ = fabric("trace", "--with-tables", capsys=capsys)
    _, bare, _ = fabric("trace", "-o", "json", capsys=capsys)
    monkeypatch.setenv("FABRIC_RUN", str(tmp_path / "elsewhere"))
    monkeypatch.setattr("sys.stdin", io.StringIO(whole))
    assert fabric("replay", "-", capsys=capsys)[0] == 0
    monkeypatch.setattr("sys.stdin", io.StringIO(bare))
    code, out, _ = fabric("replay", "-", capsys=capsys)
    assert code == 2
    assert "no lab is up" in out


def test_what_no_host_remembers_cannot_be_said(lab: Lab, capsys: Capture) -> None:
    del lab["h1"][f"/v1/tables/{VERSION}"]
    code, out, _ = fabric("replay", LABEL, capsys=capsys)
    assert code == 2
    assert f"table {VERSION:08x}  unknown" in out


@pytest.mark.parametrize("text", ["[1]", "{", '{"traces": [], "tables": [{}]}'])
def test_what_is_no_trace_is_refused(text: str, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "t.json").write_text(text)
    code, _, err = fabric("replay", str(tmp_path / "t.json"), capsys=capsys)
    assert code == 2
    assert "error: " in err


def test_why_names_the_constraint(capsys: Capture) -> None:
    argv = ("why", "h1", "h4", "--file", str(DIAMOND), "--protocol", "wide")
    found = json.loads(fabric(*argv, "-o", "json", capsys=capsys)[1])
    assert [(each["host"], each["used"]) for each in found["candidates"]] == [
        ("h2", True),
        ("h3", False),
    ]
    assert "narrower: 100000000 bit/s" in found["candidates"][1]["excluded"]
    assert found["alternate"] == {"path": ["h3"], "protects": "node"}
    code, out, _ = fabric(*argv, capsys=capsys)
    assert code == 0
    assert "used" in out and "narrower" in out


def test_why_of_a_live_host_is_by_its_own_topology(lab: Lab, capsys: Capture) -> None:
    for link in lab["h1"][f"/v1/tables/{VERSION}"]["topology"]["links"]:
        link["cost"] = 1000 if (link["a"], link["b"]) == (1, 3) else link["cost"]
    argv = ("why", "h1", "h4", "--protocol", "shortest")
    found = json.loads(fabric(*argv, "-o", "json", capsys=capsys)[1])
    assert found["table_version"] == VERSION
    assert [each["host"] for each in found["candidates"] if each["used"]] == ["h2"]
    by_version = (*argv, "--version", f"{VERSION:08x}", "-o", "json")
    assert json.loads(fabric(*by_version, capsys=capsys)[1]) == found


def test_why_of_what_is_not_there_is_an_error(capsys: Capture) -> None:
    base = ("why", "--file", str(DIAMOND))
    for argv, said in (
        (("h1", "h9"), "no host 'h9'"),
        (("h1", "h4", "--protocol", "fast"), "no protocol 'fast'"),
    ):
        code, _, err = fabric(*base, *argv, capsys=capsys)
        assert code == 2
        assert said in err


# -- the host's side -------------------------------------------------------------------------------


def test_history_keeps_the_last_versions_and_of_old_ones_what_was_used() -> None:
    graph = load_topology(DIAMOND).topology()
    history = TableHistory(FakeClock())
    for version in range(1, KEPT + 3):
        table = compute_table(graph, 1, version)
        table.lookup(4, WIDE)
        history.record(graph, table)
    assert [each.version for each in history.all()] == list(range(3, KEPT + 3))
    assert history.find(2) is None
    old = history.find(3)
    assert old is not None
    assert old.table.lookup(4, WIDE) == compute_table(graph, 1, 3).lookup(4, WIDE)
    assert old.table.lookup(3, WIDE) == ()
    assert old.table.source is None
    newest = history.find(KEPT + 2)
    assert newest is not None and newest.table.lookup(3, WIDE)


def test_the_api_gives_versions_with_topology_and_rows(tmp_path: Path) -> None:
    async def ask() -> None:
        async with machine(tmp_path) as world:
            orchestrator = Life(world).host.orchestrator
            first = orchestrator.table
            topology = orchestrator.topology
            orchestrator.install(topology, compute_table(topology, 1, 99))
            nothing = cast(Any, lambda: None)
            app = build_api(orchestrator, nothing, nothing, nothing, nothing)
            transport = httpx.ASGITransport(app)
            async with httpx.AsyncClient(transport=transport, base_url="http://host") as client:
                versions = (await client.get("/v1/tables")).json()
                assert [each["version"] for each in versions] == [first.version, 99]
                found = (await client.get("/v1/tables/99", params={"destination": 2})).json()
                assert found["topology"] == orchestrator.topology.to_json()
                assert {key for rows in found["table"]["routes"].values() for key in rows} == {"2"}
                assert (await client.get("/v1/tables/5")).status_code == 404

    asyncio.run(ask())
