"""When libvirt would distrust its own knowledge of KVM."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from fabric.host.libvirtd import kvm_device_problem


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
