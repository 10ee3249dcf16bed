"""When libvirt would distrust its own knowledge of KVM; where a dead one is started again from."""

from __future__ import annotations

import os
import stat
import subprocess
from pathlib import Path

import pytest

from fabric.errors import HypervisorDown
from fabric.host.process import Process, boot_id
from fabric.host.vmm import hypervisor as hypervisor_module
from fabric.host.vmm.hypervisor import LibvirtHypervisor
from fabric.host.vmm.libvirtd import Former, kvm_device_problem, namespaces


def test_a_machine_without_the_device_has_no_problem(tmp_path: Path) -> None:
    assert kvm_device_problem(tmp_path / "none") == ""


def test_what_is_no_device_is_no_problem(tmp_path: Path) -> None:
    (tmp_path / "kvm").touch(mode=0o000)
    assert kvm_device_problem(tmp_path / "kvm") == ""


@pytest.mark.root
@pytest.mark.parametrize(("mode", "problem"), [(0o600, True), (0o666, False)])
def test_the_mode_decides(tmp_path: Path, mode: int, problem: bool) -> None:
    if os.geteuid() != 0:
        pytest.skip("makes a device node")
    device = tmp_path / "kvm"
    os.mknod(device, stat.S_IFCHR | 0o600, os.makedev(1, 3))
    device.chmod(mode)
    assert bool(kvm_device_problem(device)) is problem


def former(network: int, mounts: int) -> Former:
    return Former(Process(1, 1), boot_id(), network, mounts)


def test_who_stands_in_its_namespaces_needs_no_door() -> None:
    assert former(*namespaces("self")).door() == []


def test_namespaces_nobody_stands_in_cannot_be_entered() -> None:
    assert former(1, 2).door() is None


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="makes namespaces")
def test_other_namespaces_are_entered_through_whoever_stands_there() -> None:
    words = ["unshare", "--net", "--mount", "sh", "-c", "echo; read never"]
    pipe = subprocess.PIPE
    with subprocess.Popen(words, stdin=pipe, stdout=pipe) as process:
        assert process.stdout is not None
        process.stdout.read(1)
        there = namespaces(str(process.pid))
        door = former(*there).door()
        assert door is not None
        words = [*door, "stat", "-Lc", "%i", "/proc/self/ns/net", "/proc/self/ns/mnt"]
        said = subprocess.run(words, capture_output=True, text=True, check=True).stdout
        process.kill()
    assert tuple(map(int, said.split())) == there != namespaces("self")


NOWHERE = "qemu+unix:///system?socket=/nonexistent"


def test_who_never_had_a_libvirtd_does_not_wait_for_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hypervisor_module, "WAIT_PAUSE", "no number: sleeping fails")
    assert not LibvirtHypervisor(NOWHERE).is_alive()


def test_one_that_went_away_is_revived_and_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hypervisor_module, "RESTART_PATIENCE", 0.2)
    monkeypatch.setattr(hypervisor_module, "WAIT_PAUSE", 0.02)
    asked = []

    def revive() -> bool:
        asked.append(True)
        return False

    hypervisor = LibvirtHypervisor(NOWHERE, revive=revive)
    with pytest.raises(HypervisorDown):
        hypervisor.list_owned()
    assert len(asked) > 1, "somebody else may have to be waited for"
    asked.clear()
    with pytest.raises(HypervisorDown):
        hypervisor.list_owned()
    assert len(asked) == 1, "patience is counted from when it went"
