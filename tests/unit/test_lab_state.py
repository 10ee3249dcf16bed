"""Names, marks, resolved specs and the record of a lab: no root needed."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from pathlib import Path

import pytest

from fabric.errors import Conflict, EnvironmentFault, NameUnknown
from fabric.host.identity import lab_tag
from fabric.host.process import Process
from fabric.lab import names, preflight, processes, resources, state
from fabric.lab.names import Owner
from fabric.lab.spec import LabSpec, Options
from fabric.lab.state import LabState
from fabric.lab.topology_file import load_topology
from tests.unit import lab_samples

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_interface_names_fit_and_derive() -> None:
    assert names.underlay_interface("h2", 1) == "to-h2"
    assert names.underlay_interface("twelve-chars", 3) == "to-twelve-chars"
    assert names.underlay_interface("thirteen-char", 3) == "l3"
    for name in (names.bridge_name("lab", 12345), names.veth_name("lab", 12345)):
        assert len(name) <= 15
        assert names.tag_of_interface(name) == lab_tag("lab")
    assert names.tag_of_interface("fb-mine") is None


def test_mark_survives_and_foreign_aliases_are_none() -> None:
    for owner in (Owner("a-b", "c"), Owner("lab", names.LINKS_HOST)):
        assert Owner.from_alias(owner.alias()) == owner
    for alias in (None, "", "fabric:", "fabric:lab", "fabric::h1", "uplink to fabric:a:b"):
        assert Owner.from_alias(alias) is None


TOPOLOGIES = sorted(p for p in EXAMPLES.glob("*.yaml") if p.name != "policy.yaml")


@pytest.mark.parametrize("example", TOPOLOGIES, ids=lambda p: p.name)
def test_examples_resolve_to_a_spec_that_survives_recording(example: Path, tmp_path: Path) -> None:
    options = Options(run_dir=tmp_path, tier="cold", idle_timeout=7.0)
    spec = LabSpec.from_model(load_topology(example), options)
    assert LabSpec.from_json(spec.to_json()) == spec
    assert {(host.tier, host.idle_timeout) for host in spec.hosts} == {("cold", 7.0)}
    interfaces = [(end.host, end.interface) for link in spec.links for end in (link.a, link.b)]
    assert len(set(interfaces)) == len(interfaces)
    assert spec.digest == LabSpec.from_model(load_topology(example), options).digest
    other = LabSpec.from_model(load_topology(example), Options(run_dir=tmp_path))
    assert spec.digest != other.digest


def test_record_survives_and_an_unreadable_one_says_so(tmp_path: Path) -> None:
    me = processes.identify(os.getpid())
    assert me is not None
    lab = LabState(lab_samples.spec(tmp_path, "one"), state.UP, {"h1": me})
    lab.save()
    assert state.load(tmp_path, "one") == lab
    assert lab.live
    assert not LabState(lab.spec, state.UP, {"h1": Process(me.pid, me.start_ticks + 1)}).live
    assert state.recorded_labs(tmp_path) == ["one"]
    with pytest.raises(NameUnknown, match="one"):
        state.require(tmp_path, "two")
    state.record_path(tmp_path, "one").write_text("{")
    with pytest.raises(EnvironmentFault, match="unreadable"):
        state.load(tmp_path, "one")


def test_recycled_process_id_is_never_hit() -> None:
    me = processes.identify(os.getpid())
    assert me is not None
    # SIGTERM to this very process would end the test run.
    assert processes.end(Process(me.pid, me.start_ticks + 1)) is False


def test_child_that_ended_at_once_is_known_and_not_alive() -> None:
    child = subprocess.Popen(["true"])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # ended, and still a zombie
    assert not Process.of_child(child.pid).is_alive()
    child.wait()
    with pytest.raises(ProcessLookupError):
        Process.of_child(child.pid)


def test_lock_is_exclusive_and_leaves_no_directory(tmp_path: Path) -> None:
    run_dir, order = tmp_path / "run", []

    def second() -> None:
        with state.locked(run_dir):
            order.append("second")

    with state.locked(run_dir):
        with pytest.raises(Conflict), state.locked(run_dir, wait=0.0):
            pass
        thread = threading.Thread(target=second)
        thread.start()
        time.sleep(0.05)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]
    assert not run_dir.exists()


def test_colliding_interface_tags_are_a_conflict(tmp_path: Path) -> None:
    tags: dict[str, str] = {}
    for number in range(5000):
        name = f"lab{number}"
        if (other := tags.setdefault(lab_tag(name), name)) != name:
            break
    else:
        pytest.fail("no two names share a tag")
    LabState(lab_samples.spec(tmp_path, other)).save()
    with pytest.raises(Conflict, match="tag"):
        preflight.require_no_conflict(lab_samples.spec(tmp_path, name), tmp_path)


def test_only_marked_files_are_removed(tmp_path: Path) -> None:
    spec = lab_samples.spec(tmp_path)
    ours, theirs = tmp_path / "a" / "hosts", tmp_path / "b" / "hosts"
    for path, text in ((ours, resources.hosts_file(spec)), (theirs, "127.0.0.1 localhost\n")):
        path.parent.mkdir()
        path.write_text(text)
    assert resources.remove_marked_file(ours, resources.FILE_MARK)
    assert not resources.remove_marked_file(theirs, resources.FILE_MARK)
    assert not ours.parent.exists()
    assert theirs.exists()


def test_a_name_stands_for_one_address_family_only(tmp_path: Path) -> None:
    lines = resources.hosts_file(lab_samples.spec(tmp_path)).splitlines()
    assert [line.split()[0] for line in lines if "h2" in line.split()] == ["10.77.0.2"]
    assert "fd77::2 h2.v6" in lines
