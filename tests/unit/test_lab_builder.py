"""Up, down and gc on real namespaces and links, with stand-ins for orchestrators and libvirt."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from fabric.errors import Conflict, EnvironmentFault
from fabric.host.network import netns
from fabric.host.network.netlink import Netlink
from fabric.host.process import boot_id
from fabric.host.vmm.domain_xml import OwnerMark
from fabric.host.vmm.hypervisor_fake import FakeHypervisor
from fabric.lab import builder, gc, names, processes, state
from tests.unit import lab_samples

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="makes network namespaces"),
]

LAB = f"ut{os.getpid() % 100000}"


@pytest.fixture
def run_dir(tmp_path: Path) -> Iterator[Path]:
    directory = tmp_path / "run"
    yield directory
    machine = lab_samples.machine(tmp_path)
    for lab in state.recorded_labs(directory):
        builder.down(lab, directory, machine)


def ours(lab: str = LAB) -> list[str]:
    """Everything on this machine that bears the lab's name or tag."""
    with Netlink() as root:
        links = [x.name for x in root.list_links() if x.alias.startswith(f"fabric:{lab}:")]
    return links + [name for name in netns.list_netns() if name.startswith(f"fabric-{lab}-")]


def in_host(host: str, *argv: str) -> subprocess.CompletedProcess[str]:
    command = ["ip", "netns", "exec", names.namespace_name(LAB, host), *argv]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)


def rtt_ms(host: str, address: str) -> float:
    """Smallest round trip of a few pings."""
    result = in_host(host, "ping", "-c", "4", "-i", "0.05", "-W", "5", address)
    match = re.search(r"= ([\d.]+)/", result.stdout)
    assert match, result.stdout + result.stderr
    return float(match[1])


def test_up_wires_hosts_and_down_leaves_nothing(tmp_path: Path, run_dir: Path) -> None:
    spec, machine = lab_samples.spec(run_dir, LAB), lab_samples.machine(tmp_path)
    steps: list[str] = []
    report = builder.up(spec, machine, steps.append)
    assert len(report.changed) == len(builder.parts(state.LabState(spec), machine))
    assert rtt_ms("h1", "172.31.0.1") >= 10.0  # twice the 5 ms of the impaired link
    assert rtt_ms("h2", "172.31.0.3") < 5.0  # a plain one
    assert in_host("h1", "ping", "-c", "1", "-s", "8972", "-M", "do", "172.31.0.1").returncode == 0
    assert "guests" in in_host("h1", "ip", "-br", "link").stdout
    hosts = tmp_path / "netns" / names.namespace_name(LAB, "h1") / "hosts"
    assert "10.77.0.3 h3" in hosts.read_text()

    builder.down(LAB, run_dir, machine)
    assert ours() == []
    assert not run_dir.exists()
    assert not hosts.parent.exists()


def test_second_up_changes_nothing(tmp_path: Path, run_dir: Path) -> None:
    spec, machine = lab_samples.spec(run_dir, LAB), lab_samples.machine(tmp_path)
    builder.up(spec, machine)
    before = state.require(run_dir, LAB).processes
    assert builder.plan(spec, machine).changed == ()
    assert builder.up(spec, machine).changed == ()
    assert state.require(run_dir, LAB).processes == before


def test_up_repairs_what_is_missing(tmp_path: Path, run_dir: Path) -> None:
    spec, machine = lab_samples.spec(run_dir, LAB), lab_samples.machine(tmp_path)
    builder.up(spec, machine)
    kill_orchestrator(run_dir, "h2")
    assert builder.up(spec, machine).changed == ("orchestrator of h2",)
    with Netlink(names.namespace_name(LAB, "h1")) as h1:
        h1.delete_link("to-h2")
    changed = builder.up(spec, machine).changed
    assert "link h1 -- h2" in changed
    assert "link emulator" in changed
    assert rtt_ms("h1", "172.31.0.1") >= 10.0
    assert builder.up(spec, machine).changed == ()


def kill_orchestrator(run_dir: Path, host: str) -> None:
    process = state.require(run_dir, LAB).processes[host]
    os.kill(process.pid, signal.SIGKILL)
    while process.is_alive():
        pass


def test_guests_of_a_dead_orchestrator_are_left_to_its_successor(
    tmp_path: Path, run_dir: Path
) -> None:
    hypervisor = FakeHypervisor()
    spec, machine = lab_samples.spec(run_dir, LAB), lab_samples.machine(tmp_path, hypervisor)
    builder.up(spec, machine)
    hypervisor.domains = {f"fabric-{LAB}-h2-g1": OwnerMark(LAB, "h2", 1, 1, 0)}
    (spec.hosts[1].host_dir / "connections").mkdir()
    kill_orchestrator(run_dir, "h2")
    assert builder.up(spec, machine).changed == ("orchestrator of h2",)
    assert list(hypervisor.domains) == [f"fabric-{LAB}-h2-g1"]
    assert (spec.hosts[1].host_dir / "connections").is_dir()
    builder.down(LAB, run_dir, machine)
    assert not hypervisor.domains and not run_dir.exists()


def test_up_after_a_reboot_starts_clean(tmp_path: Path, run_dir: Path) -> None:
    """Files outlive a reboot where run_dir is on a disk; nothing else does."""
    spec, machine = lab_samples.spec(run_dir, LAB), lab_samples.machine(tmp_path)
    builder.up(spec, machine)
    everything = len(builder.parts(state.require(run_dir, LAB), machine))
    record = state.record_path(run_dir, LAB)
    files = {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()}
    builder.down(LAB, run_dir, machine)
    for path, content in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    bystander = subprocess.Popen(["sleep", "600"])
    try:
        me = processes.identify(bystander.pid)
        assert me is not None
        text = record.read_text().replace(boot_id(), "another boot")
        numbers = r'"pid": \d+,(\s+)"start_ticks": \d+'
        same = f'"pid": {me.pid},\\1"start_ticks": {me.start_ticks}'
        record.write_text(re.sub(numbers, same, text))
        assert not state.require(run_dir, LAB).live, "the numbers are those of another boot"
        # The hosts files and the configurations are as they were; all else is made anew.
        hosts = len(spec.hosts)
        assert len(builder.up(spec, machine).changed) == everything - hosts
        assert builder.up(spec, machine).changed == ()
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


def test_gc_has_the_orchestrators_of_live_labs_compare(tmp_path: Path, run_dir: Path) -> None:
    machine = lab_samples.machine(tmp_path)
    builder.up(lab_samples.spec(run_dir, LAB, ("h1", "leaky")), machine)
    found = gc.collect(run_dir, machine, dry_run=True, only=frozenset({LAB}))
    told = "leaky: channel of g9 (no guest has this slot)"
    assert [(x.kind, x.name, x.lab) for x in found] == [("unlink", told, LAB)]
    assert gc.collect(run_dir, machine, dry_run=True, only=frozenset({"another"})) == []


def test_dry_run_makes_nothing(tmp_path: Path, run_dir: Path) -> None:
    plan = builder.plan(lab_samples.spec(run_dir, LAB), lab_samples.machine(tmp_path))
    assert f"namespace fabric-{LAB}-h1" in plan.changed
    assert ours() == []
    assert not run_dir.exists()


def test_same_name_from_another_file_is_a_conflict(tmp_path: Path, run_dir: Path) -> None:
    machine = lab_samples.machine(tmp_path)
    builder.up(lab_samples.spec(run_dir, LAB), machine)
    with pytest.raises(Conflict, match="another file"):
        builder.up(lab_samples.spec(run_dir, LAB, path="/labs/other.yaml"), machine)
    with pytest.raises(Conflict, match="earlier version"):
        builder.up(lab_samples.spec(run_dir, LAB, latency_us=1), machine)
    assert builder.up(lab_samples.spec(run_dir, LAB), machine).changed == ()


def test_foreign_interface_is_a_conflict_and_survives(tmp_path: Path, run_dir: Path) -> None:
    spec, machine = lab_samples.spec(run_dir, LAB), lab_samples.machine(tmp_path)
    with Netlink() as root:
        root.create_bridge(spec.hosts[0].bridge, alias="somebody else's")
        try:
            with pytest.raises(Conflict, match=spec.hosts[0].bridge):
                builder.up(spec, machine)
            assert ours() == []
            assert root.exists(spec.hosts[0].bridge)
        finally:
            root.delete_link(spec.hosts[0].bridge)


def test_failing_orchestrator_rolls_everything_back(tmp_path: Path, run_dir: Path) -> None:
    spec = lab_samples.spec(run_dir, LAB, ("h1", "h2-refuse"))
    with pytest.raises(EnvironmentFault, match="this host refuses to start"):
        builder.up(spec, lab_samples.machine(tmp_path))
    assert ours() == []
    assert not run_dir.exists()


def test_two_labs_side_by_side(tmp_path: Path, run_dir: Path) -> None:
    machine, other = lab_samples.machine(tmp_path), f"{LAB}b"
    builder.up(lab_samples.spec(run_dir, LAB), machine)
    builder.up(lab_samples.spec(run_dir, other), machine)
    builder.down(other, run_dir, machine)
    assert ours(other) == []
    assert rtt_ms("h1", "172.31.0.1") >= 10.0


def test_down_keeps_the_record_of_a_lab_whose_guests_will_not_go(
    tmp_path: Path, run_dir: Path
) -> None:
    hypervisor = FakeHypervisor()
    spec, machine = lab_samples.spec(run_dir, LAB), lab_samples.machine(tmp_path, hypervisor)
    builder.up(spec, machine)
    first, second, third = (f"fabric-{LAB}-h1-g{n}" for n in (1, 2, 3))
    hypervisor.domains = {
        name: OwnerMark(LAB, "h1", n, 1, 0) for n, name in enumerate((first, second, third), 1)
    }
    kill_orchestrator(run_dir, "h1")
    hypervisor.stuck = {first}
    with pytest.raises(EnvironmentFault, match="still there: orchestrator of h1"):
        builder.down(LAB, run_dir, machine)
    assert list(hypervisor.domains) == [first], "one that will not go keeps none of the others"
    hypervisor.stuck = set()
    builder.down(LAB, run_dir, machine)
    assert not hypervisor.domains and not run_dir.exists()


def test_down_claims_nothing_it_cannot_know(tmp_path: Path, run_dir: Path) -> None:
    hypervisor = FakeHypervisor()
    spec, machine = lab_samples.spec(run_dir, LAB), lab_samples.machine(tmp_path, hypervisor)
    builder.up(spec, machine)
    hypervisor.down = True
    with pytest.raises(EnvironmentFault, match=r"still there: .*the fake hypervisor is down"):
        builder.down(LAB, run_dir, machine)
    hypervisor.down = False
    builder.down(LAB, run_dir, machine)
    assert not run_dir.exists()


def test_down_ends_programs_and_guests_and_works_half_gone(tmp_path: Path, run_dir: Path) -> None:
    hypervisor = FakeHypervisor()
    spec, machine = lab_samples.spec(run_dir, LAB), lab_samples.machine(tmp_path, hypervisor)
    builder.up(spec, machine)
    hypervisor.domains = {
        f"fabric-{LAB}-h1-g1": OwnerMark(LAB, "h1", 1, 1, 0),
        "fabric-other-h1-g1": OwnerMark("other", "h1", 1, 1, 0),
    }
    namespace = names.namespace_name(LAB, "h3")
    inside = subprocess.Popen(["ip", "netns", "exec", namespace, "sleep", "600"])
    bystander = subprocess.Popen(["sleep", "600"])
    netns.delete_netns(names.namespace_name(LAB, "h2"))
    try:
        builder.down(LAB, run_dir, machine)
        assert inside.wait(timeout=10) != 0
        assert bystander.poll() is None
    finally:
        inside.kill()
        bystander.kill()
        inside.wait()
        bystander.wait()
    assert ours() == []
    assert list(hypervisor.domains) == ["fabric-other-h1-g1"]
    assert builder.down(LAB, run_dir, machine).changed == ()


def test_gc_removes_the_remains_of_a_dead_lab_only(tmp_path: Path, run_dir: Path) -> None:
    hypervisor = FakeHypervisor()
    machine = lab_samples.machine(tmp_path, hypervisor)
    alive = f"{LAB}b"
    # Other labs may run on this machine, recorded elsewhere: they are none of this test's business.
    mine = frozenset({LAB, alive})
    builder.up(lab_samples.spec(run_dir, LAB), machine)
    builder.up(lab_samples.spec(run_dir, alive), machine)
    hypervisor.domains = {
        f"fabric-{LAB}-h1-g1": OwnerMark(LAB, "h1", 1, 1, 0),
        f"fabric-{alive}-h1-g1": OwnerMark(alive, "h1", 1, 1, 0),
    }
    # Orchestrators and emulator die without a word, and the record is lost.
    for process in state.require(run_dir, LAB).processes.values():
        os.kill(process.pid, signal.SIGKILL)
    state.record_path(run_dir, LAB).unlink()
    kept = ours(alive)
    found = gc.collect(run_dir, machine, dry_run=True, only=mine)
    assert {leftover.lab for leftover in found} == {LAB}
    assert {leftover.kind for leftover in found} == {
        "domain",
        "namespace",
        "link",
        "file",
        "directory",
    }
    assert ours() != []
    gc.collect(run_dir, machine, only=mine)
    assert ours() == []
    assert ours(alive) == kept
    assert list(hypervisor.domains) == [f"fabric-{alive}-h1-g1"]
    assert gc.collect(run_dir, machine, only=mine) == []
    assert builder.up(lab_samples.spec(run_dir, alive), machine).changed == ()
