"""The commands about links and checks: options, exit codes, completion. No root, no namespaces."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from fabric.cli import check as check_command
from fabric.cli import context
from fabric.cli.main import app
from fabric.lab import processes
from fabric.lab.checking.ground import Ground
from fabric.lab.checking.ground_fake import FakeGround
from fabric.lab.spec import LabSpec, Options
from fabric.lab.standing import SILENT, Standing
from fabric.lab.state import UP, LabState
from fabric.lab.topology_file import load_topology
from tests.unit.fake_orchestrator import serve
from tests.unit.test_cli import answer, fabric

FILE = """\
name: small
protocols: {mine: {id: 130}}
hosts: {h1: , h2: , h4: }
links:
  - {endpoints: [h1, h2], latency: 2ms}
  - {endpoints: [h2, h4], state: down}
validate:
  - {name: good, reach: {from: h1, to: h4}}
  - {name: soso, warning: true, path: {from: h1, to: h4, avoids: h2}}
  - {name: bad, reach: {from: h1, to: h4, protocol: wide}}
"""


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of a recorded lab; its checks are tried on a fake ground."""
    monkeypatch.setenv("FABRIC_RUN", str(tmp_path / "run"))
    monkeypatch.delenv("FABRIC_LAB", raising=False)
    file = tmp_path / "small.yaml"
    file.write_text(FILE)
    spec = LabSpec.from_model(load_topology(file), Options(run_dir=tmp_path / "run"))
    lab = LabState(spec, UP)
    lab.standings[1] = Standing(latency_us=9000, state=SILENT)
    lab.save()

    @contextmanager
    def ground(_spec: LabSpec) -> Iterator[Ground]:
        yield FakeGround()

    monkeypatch.setattr(check_command, "_ground", ground)
    return file


@pytest.mark.parametrize(
    ("only", "code"),
    [
        (["good"], 0),
        (["good", "soso"], 3),
        (["soso"], 3),
        (["bad", "soso"], 1),
        ([], 1),
    ],
)
def test_check_ends_with_the_code_of_its_worst_result(
    small: Path, only: list[str], code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [word for name in only for word in ("--only", name)]
    ended, out, err = fabric("check", *words, "-o", "json", capsys=capsys)
    found = json.loads(out)
    assert ended == code
    assert {each["name"] for each in found} == set(only or ["good", "soso", "bad"])
    assert all(name in err for name in only), "progress"
    ended, out, _ = fabric("check", *words, capsys=capsys)
    assert ended == code and "h1 > h2 > h4" in out


def test_check_without_checks_or_lab_says_so(
    small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = small.with_name("bare.yaml")
    bare.write_text(FILE.partition("validate:")[0])
    code, out, err = fabric("check", str(bare), "-o", "json", capsys=capsys)
    assert (code, json.loads(out)) == (2, []) and "no `validate`" in err
    code, _, err = fabric("check", "--only", "nosuch", capsys=capsys)
    assert code == 2 and "good, soso, bad" in err
    other = small.with_name("other.yaml")
    other.write_text(FILE.replace("2ms", "3ms"))
    code, _, err = fabric("check", str(other), capsys=capsys)
    assert code == 2 and "up with other hosts, links or protocols" in err
    other.write_text(FILE.replace("name: small", "name: absent"))
    code, _, err = fabric("check", str(other), capsys=capsys)
    assert code == 2 and "no lab absent is up" in err


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ((), "nothing to change"),
        (("--silent",), "add --down"),
        (("--silent", "--up"), "add --down"),
        (("--delay", "5"), "--delay: "),
        (("--rate", "-5mbit"), "--rate: -5mbit is negative"),
        (("--loss", "100%"), "--loss: 100% leaves nothing"),
        (("--jitter", "much"), "--jitter: "),
    ],
)
def test_wrong_options_of_link_set_are_told(
    small: Path, options: tuple[str, ...], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = fabric("link", "set", "h1-h2", *options, capsys=capsys)
    assert code == 2 and told in err


def test_an_unknown_link_is_answered_with_those_there_are(
    small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = fabric("link", "set", "h1-h4", "--up", capsys=capsys)
    assert code == 2 and "h1-h2, h2-h4" in err


def test_inspect_tells_changed_links_and_guests_kept_ready(
    small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = context.pick_lab(None).spec
    lab = context.pick_lab(None)
    me = processes.identify(os.getpid())
    assert me is not None
    lab.processes["h1"] = me
    lab.save()
    status = {"kept_ready": {"prepared": 3, "warm": 0}}
    with serve(spec.hosts[0].api_socket, {"/v1/status": status, "/v1/guests": []}):
        code, out, _ = fabric("inspect", capsys=capsys)
        found = answer("inspect", capsys=capsys)["links"]
    assert code == 0 and "3 prepared" in out and "0 warm" not in out
    assert "(changed)" in out
    assert [each["changed"] for each in found] == [True, False]
    assert found[0]["latency_us"] == 9000


def complete(command: list[str], parameter: str, incomplete: str = "") -> list[str]:
    """What the shell would offer."""
    found: Any = get_command(app)
    for word in command:
        found = found.commands[word]
    (option,) = (p for p in found.params if p.name == parameter)
    with found.make_context("x", [], resilient_parsing=True) as made:
        return [item.value for item in option.shell_complete(made, incomplete)]


@pytest.mark.parametrize(
    ("command", "parameter", "incomplete", "expected"),
    [
        (["up"], "tier", "w", ["warm"]),
        (["run"], "need", "low", ["low-latency"]),
        (["run"], "protocol", "m", ["mine"]),
        (["routes"], "protocol", "dis", ["disjoint", "disperse"]),
        (["routes"], "host", "h", ["h1", "h2", "h4"]),
        (["events"], "host", "h4", ["h4"]),
        (["link", "set"], "name", "", ["h1-h2", "h2-h4"]),
        (["link", "show"], "name", "h2", ["h2-h4"]),
    ],
)
def test_values_complete_in_the_shell(
    small: Path, command: list[str], parameter: str, incomplete: str, expected: list[str]
) -> None:
    assert complete(command, parameter, incomplete) == expected


def test_protocols_complete_without_a_lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FABRIC_RUN", str(tmp_path))
    assert context.complete_protocol("sh") == ["shortest"]
    assert context.complete_link("") == []
