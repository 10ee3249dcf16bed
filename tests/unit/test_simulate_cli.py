"""``fabric simulate`` and ``fabric import`` from the outside."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from fabric.cli.context import complete_protocol
from fabric.lab.topology_file import parse_topology
from tests.unit.test_cli import fabric
from tests.unit.test_graphml import OSLO, PARIS, edge, node, read

DIAMOND = str(Path(__file__).parents[2] / "examples" / "diamond.yaml")
Capture = pytest.CaptureFixture[str]


def result(*argv: str, capsys: Capture) -> dict[str, Any]:
    code, out, err = fabric("simulate", *argv, "-o", "json", capsys=capsys)
    assert code == 0, err
    found: dict[str, Any] = json.loads(out)
    return found


def test_the_same_question_has_the_same_answer_but_for_its_cost(capsys: Capture) -> None:
    argv = (DIAMOND, "--fail", "h1-h3@1s", "--fail", "random:1@1500ms..2s", "--settle", "300ms")
    first, again = (result(*argv, capsys=capsys) for _ in range(2))
    for each in (first, again):
        assert set(each.pop("machine")) == {"seconds", "cpu_seconds", "peak_memory_mib"}
    assert first == again
    assert first["hosts"] == 4
    assert first["events"][0]["what"] == "h1-h3 down"


def test_all_protocols_are_shown_to_people(capsys: Capture, tmp_path: Path) -> None:
    plot = tmp_path / "arrivals.svg"
    code, out, err = fabric(
        *("simulate", DIAMOND, "--protocol", "all", "--fail", "h2@1s", "--pairs", "3"),
        *("--settle", "200ms", "--plot", str(plot)),
        capsys=capsys,
    )
    assert code == 0, err
    for word in ("shortest", "disperse", "avoid", "h2 down", "blackout", "copies heard", "MiB"):
        assert word in out
    drawn = ElementTree.parse(plot).getroot()
    assert drawn.tag == "{http://www.w3.org/2000/svg}svg"
    text = plot.read_text()
    assert "h2 down at 1000 ms" in text
    assert "src=" not in text and "xlink:href" not in text, "a picture that stands by itself"


def test_a_graphml_file_is_simulated_and_its_repairs_told(tmp_path: Path, capsys: Capture) -> None:
    read(tmp_path, node("a", PARIS), node("b", OSLO), node("c"), edge("a", "b"), edge("b", "c"))
    code, out, err = fabric("simulate", str(tmp_path / "net.graphml"), capsys=capsys)
    assert code == 0
    assert "3 hosts, 2 links" in out
    assert "no coordinates, put amid their neighbours: c" in err


def test_an_imported_file_is_a_topology_file(tmp_path: Path, capsys: Capture) -> None:
    read(tmp_path, node("a", PARIS), node("b", OSLO), edge("a", "b"), edge("a", "b"))
    code, out, err = fabric("import", str(tmp_path / "net.graphml"), capsys=capsys)
    assert code == 0
    assert parse_topology(out).topology().by_name("oslo").id == 2
    assert "2 parallel links between Paris and Oslo" in err
    _, document, _ = fabric("import", str(tmp_path / "net.graphml"), "-o", "json", capsys=capsys)
    assert json.loads(document)["topology"] == out


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["absent.graphml"], "No such file"),
        (["absent.yaml"], "absent.yaml"),
        (["synthetic:2"], "has 3 … 100000 hosts"),
        (["synthetic:many"], "how many hosts?"),
        ([DIAMOND, "--fail", "h1"], "does not say when"),
        ([DIAMOND, "--bfd", "50ms"], "not an interval and a multiplier"),
        ([DIAMOND, "--interval", "0ms"], "longer than nothing"),
        ([DIAMOND, "--protocol", "fast"], "no protocol 'fast'"),
        ([DIAMOND, "--plot", "x.svg"], "give some by --fail"),
    ],
)
def test_what_cannot_be_simulated_is_told(argv: list[str], said: str, capsys: Capture) -> None:
    code, _, err = fabric("simulate", *argv, capsys=capsys)
    assert code == 2
    assert said in err


def test_protocol_names_are_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FABRIC_RUN", str(tmp_path))
    monkeypatch.delenv("FABRIC_LAB", raising=False)
    assert complete_protocol("dis") == ["disjoint", "disperse"]
