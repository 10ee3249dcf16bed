"""What `fabric doctor` says: a verdict for every precondition, and a cure for every failure."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fabric.errors import NotRoot
from fabric.host.vmm.hypervisor_fake import FakeHypervisor
from fabric.lab.builder import Machine
from fabric.lab.checks import CHECKS, FAIL, OK, WARN, Result, Surroundings, run_checks

NOWHERE = "qemu+unix:///system?socket=/nonexistent"


@pytest.fixture
def poor(tmp_path: Path) -> Surroundings:
    """A machine without image, and without a libvirt that answers."""
    machine = Machine(FakeHypervisor)
    return Surroundings(tmp_path / "run", tmp_path / "state", NOWHERE, lambda: machine)


def checked(
    around: Surroundings, monkeypatch: pytest.MonkeyPatch, *names: str
) -> dict[str, Result]:
    """The results of these checks, in the registry's order."""
    for name in CHECKS.keys() - set(names):
        monkeypatch.delitem(CHECKS, name)
    return {result.name: result for result in run_checks(around)}


def test_what_is_missing_fails_with_a_cure(
    poor: Surroundings, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = checked(poor, monkeypatch, "libvirt", "image", "acceleration")
    assert {result.verdict for result in results.values()} == {FAIL}
    assert "unset" in results["libvirt"].cure and NOWHERE in results["libvirt"].detail
    assert results["image"].cure == results["acceleration"].cure == "run `make image`"
    assert not poor.state_dir.exists() and not poor.run_dir.exists()


def test_a_machine_without_libvirt_is_told_which_packages(
    poor: Surroundings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fabric.host.vmm.libvirtd.answers", lambda _: False)
    monkeypatch.setattr("shutil.which", lambda *_, **__: None)
    around = Surroundings(poor.run_dir, poor.state_dir, "qemu:///system", poor.machine)
    results = checked(around, monkeypatch, "libvirt", "tools")
    assert {result.verdict for result in results.values()} == {FAIL}
    assert all("apt-get install" in result.cure for result in results.values())


def test_somebody_else_than_root_is_told_so(
    poor: Surroundings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    results = checked(poor, monkeypatch, "root", "nftables", "leftovers")
    assert {result.verdict for result in results.values()} == {FAIL}
    assert {result.cure for result in results.values()} == {"use sudo"}


def test_too_little_of_something_is_a_warning(
    poor: Surroundings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fabric.lab.checks.NEEDED_DISK", 1 << 60)
    monkeypatch.setattr("fabric.lab.checks.WANTED_GUESTS", 1 << 30)
    results = checked(poor, monkeypatch, "disk", "memory")
    assert {result.verdict for result in results.values()} == {WARN}
    assert all(result.cure for result in results.values())


def test_a_check_that_fails_does_not_keep_the_others_from_running(
    poor: Surroundings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: Surroundings) -> tuple[str, str]:
        raise NotRoot("no", cure="yes")

    monkeypatch.setitem(CHECKS, "root", broken)
    results = checked(poor, monkeypatch, "root", "tun")
    assert results["root"] == Result("root", FAIL, "no", "yes")
    assert results["tun"].verdict in (OK, FAIL)
