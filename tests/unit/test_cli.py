"""The command line against fake orchestrators: no root, no namespaces."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from fabric.cli.client import along_path
from fabric.cli.main import main
from fabric.lab.state import UP, LabState
from tests.unit import lab_samples
from tests.unit.fake_orchestrator import serve

A, B = "00000001aaaaaaaa", "00000001bbbbbbbb"
FLOW = {
    "version": 4,
    "protocol": 6,
    "source": "10.77.0.1",
    "source_port": 4000,
    "destination": "10.77.0.3",
    "destination_port": 80,
}


def view(label: str, role: str, second: int, **more: Any) -> dict[str, Any]:
    base = {
        "id": label,
        "role": role,
        "state": "established",
        "flow": FLOW,
        "need": "bandwidth",
        "application": {"executable": "/usr/bin/curl"},
        "protocol": 2,
        "protocol_name": "wide",
        "guest": "fabric-g1",
        "created_at": f"2026-01-01T00:00:{second:02}.000000+00:00",
    }
    return {**base, **more}


def trace(label: str, second: int, sequence: int) -> dict[str, Any]:
    at = f"2026-01-01T00:01:{second:02}.000000+00:00"
    hop = {
        "host": "h1",
        "guest": "g1",
        "received_at": at,
        "residence_us": 5,
        "queue": 0,
        "table_version": 1,
        "spawn_ms": 90,
    }
    return {
        "connection": label,
        "protocol": 2,
        "source": "h1",
        "destination": "h3",
        "sequence": sequence,
        "hops": [hop, {**hop, "host": "h3"}],
    }


def event(host: str, seq: int, at_us: int, name: str) -> dict[str, Any]:
    return {
        "seq": seq,
        "at": "2026-01-01T00:00:00.000000+00:00",
        "at_us": at_us,
        "host": host,
        "name": name,
        "connection": A,
    }


def explained(host: str, role: str, next_host: str | None) -> dict[str, Any]:
    hop = {"host": next_host, "address": "172.31.0.1", "interface": 1, "metric": 1.0}
    return {
        "connection": A,
        "host": host,
        "role": role,
        "facts": None,
        "selection": {"rule": "r1", "need": "bandwidth", "protocol": 2, "reason": "rule r1"},
        "table": {"version": 7, "destination": "h3", "entry": [hop] if next_host else []},
        "next_hop": hop if next_host else None,
    }


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """A recorded lab of three hosts whose APIs answer; the yielded servers are by host."""
    monkeypatch.setenv("FABRIC_RUN", str(tmp_path))
    monkeypatch.delenv("FABRIC_LAB", raising=False)
    spec = lab_samples.spec(tmp_path)
    LabState(spec, UP).save()
    documents: dict[str, dict[str, Any]] = {
        "h1": {
            "/v1/connections": [view(B, "ingress", 9), view(A, "ingress", 1)],
            "/v1/traces": [trace(A, 30, 1)],
            "/v1/events": [event("h1", 1, 10, "request"), event("h1", 2, 30, "selected")],
            f"/v1/explain/{A}": explained("h1", "ingress", "h3"),
            "/v1/routes": [],
        },
        "h2": {"/v1/connections": [], "/v1/traces": [], "/v1/events": []},
        "h3": {
            "/v1/connections": [view(A, "egress", 2)],
            "/v1/traces": [trace(A, 10, 0), trace(A, 20, 2)],
            "/v1/events": [event("h3", 1, 20, "arrival")],
            f"/v1/explain/{A}": explained("h3", "egress", None),
        },
    }
    with ExitStack() as stack:
        yield {
            host.host: stack.enter_context(serve(host.api_socket, documents[host.host]))
            for host in spec.hosts
        }


def fabric(*argv: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """Run the command line in process: exit code, standard output, standard error."""
    saved, sys.argv = sys.argv, ["fabric", *argv]
    code = 0
    try:
        main()
    except SystemExit as exc:
        code = exc.code if isinstance(exc.code, int) else 0 if exc.code is None else 1
    finally:
        sys.argv = saved
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def answer(*argv: str, capsys: pytest.CaptureFixture[str]) -> Any:
    code, out, err = fabric(*argv, "-o", "json", capsys=capsys)
    assert code == 0, err
    return json.loads(out)


def test_connections_are_merged_newest_first(
    lab: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    found = answer("connections", capsys=capsys)
    assert [each["id"] for each in found] == [B, A]
    assert [each["host"] for each in found[1]["hosts"]] == ["h1", "h3"]
    assert found[1]["role"] == "ingress"
    code, out, _ = fabric("connections", capsys=capsys)
    assert code == 0
    assert "tcp 10.77.0.1:4000 > 10.77.0.3:80" in out
    assert "h1/fabric-g1 h3/fabric-g1" in out


def test_traces_of_all_hosts_come_newest_last_and_at_most_as_many_as_asked(
    lab: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert [each["sequence"] for each in answer("trace", capsys=capsys)] == [0, 2, 1]
    last = answer("trace", "00000001a", "--last", "2", capsys=capsys)
    assert [each["sequence"] for each in last] == [2, 1]
    assert {"connection", "protocol", "source", "destination", "sequence", "hops"} <= set(last[0])
    # The prefix was resolved: hosts are asked for the whole id.
    assert f"/v1/traces?connection={A}&last=2" in lab["h3"].requests


def test_explain_walks_the_path(lab: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    found = answer("explain", "00000001A", capsys=capsys)
    assert found["connection"] == A
    assert [each["host"] for each in found["path"]] == ["h1", "h3"]
    _, out, _ = fabric("explain", A, capsys=capsys)
    assert "rule r1" in out
    assert "next hop  h3 at 172.31.0.1" in out


def test_path_order_survives_loops_and_strangers() -> None:
    loop = {
        "h3": explained("h3", "transit", "h1"),
        "h1": explained("h1", "ingress", "h3"),
        "h2": explained("h2", "transit", None),
    }
    assert [each["host"] for each in along_path(loop)] == ["h1", "h3", "h2"]


def test_events_are_merged_by_time(lab: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = fabric("events", "-o", "json", capsys=capsys)
    assert code == 0
    names = [json.loads(line)["name"] for line in out.splitlines()]
    assert names == ["request", "arrival", "selected"]
    _, out, _ = fabric("events", "--host", "h3", "-o", "json", capsys=capsys)
    assert [json.loads(line)["host"] for line in out.splitlines()] == ["h3"]


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["explain", "00000001"], "2 connections start with"),
        (["explain", "ffff"], "no connection 'ffff'"),
        (["routes", "h9"], "has no host h9"),
        (["routes", "h1", "--protocol", "fastest"], "fastest"),
        (["run", "h9", "--", "true"], "has no host h9"),
        (["exec", "nonsense", "--", "ps"], "is not CONNECTION@HOST"),
        (["exec", "00000001b@h3", "--", "ps"], "has no guest on h3"),
        (["connections", "--lab", "other"], "no lab other is up"),
        (["up", "/nowhere.yaml"], "/nowhere.yaml"),
        (["up", "x.yaml", "--tier", "hot"], "no tier hot"),
    ],
)
def test_mistakes_are_told_without_a_traceback(
    lab: dict[str, Any], argv: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = fabric(*argv, capsys=capsys)
    assert code == 2
    assert said in err
    assert "Traceback" not in err + out


def test_a_silent_host_costs_a_warning(
    lab: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "utlab" / "h2" / "api.sock").unlink()
    code, out, err = fabric("connections", "-o", "json", capsys=capsys)
    assert code == 0
    assert len(json.loads(out)) == 2
    assert "warning: host h2" in err


def test_no_host_answering_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FABRIC_RUN", str(tmp_path))
    LabState(lab_samples.spec(tmp_path), UP).save()
    code, _, err = fabric("connections", capsys=capsys)
    assert code == 4
    assert "does not answer" in err
    assert "cure:" in err


def test_choosing_among_labs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FABRIC_RUN", str(tmp_path))
    monkeypatch.delenv("FABRIC_LAB", raising=False)
    assert "no lab is up" in fabric("inspect", capsys=capsys)[2]
    for name in ("one", "two"):
        LabState(lab_samples.spec(tmp_path, name), UP).save()
    assert "one, two" in fabric("inspect", capsys=capsys)[2]
    # A `down` that could mean either must end neither.
    code, _, err = fabric("down", capsys=capsys)
    assert (code, "one, two" in err) == (2, True)
    monkeypatch.setenv("FABRIC_LAB", "two")
    assert answer("inspect", capsys=capsys)["lab"] == "two"


def test_validate_and_schema(capsys: pytest.CaptureFixture[str]) -> None:
    example = Path(__file__).parents[2] / "examples" / "diamond.yaml"
    assert answer("validate", str(example), capsys=capsys)["lab"] == "diamond"
    code, out, _ = fabric("schema", capsys=capsys)
    assert code == 0
    assert "properties" in json.loads(out)


def test_every_command_has_help_with_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    from fabric.cli.main import app

    commands = [[c.name or c.callback.__name__] for c in app.registered_commands if c.callback]
    assert len(commands) == 22
    commands += [["link", "set"], ["link", "show"]]
    for name in commands:
        words = ["exec" if word == "execute" else word for word in name]
        code, out, _ = fabric(*words, "--help", capsys=capsys)
        assert code == 0
        assert "Example: fabric" in out, name


def test_help_starts_fast_because_it_imports_little() -> None:
    script = (
        "import sys; import fabric.cli.main; "
        "print(*sorted({'rich', 'pyroute2', 'libvirt', 'paramiko', 'pydantic', 'ruamel', "
        "'http.client', 'jinja2'} & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == ""
    started = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "fabric.cli.main", "--help"], capture_output=True, check=True
    )
    # The promise is 0.2 s on an idle machine; this one is shared, and slow is not broken.
    assert time.perf_counter() - started < 5.0
