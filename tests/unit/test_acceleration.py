"""The acceleration probe's decisions, with a booter that only pretends."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fabric.errors import EnvironmentFault
from fabric.host.vmm import acceleration
from fabric.host.vmm.acceleration import DEADLINES, QemuBooter, Trial, probe, tsc_khz
from fabric.host.vmm.image import GuestImage


class FakeBooter:
    """Boots what it is told to; remembers what was tried."""

    def __init__(self, bootable: set[tuple[str, str]], *, kvm_hangs: bool = False) -> None:
        self.bootable = bootable
        self.kvm_hangs = kvm_hangs
        self.tried: list[tuple[str, str]] = []
        self.qemu = "QEMU 7.2"

    def version(self) -> str:
        return self.qemu

    def boot(self, argv: list[str], deadline: float) -> Trial:
        kind = argv[argv.index("-accel") + 1]
        machine = argv[argv.index("-M") + 1].split(",")[0]
        self.tried.append((kind, machine))
        booted = (kind, machine) in self.bootable
        slow = kind == "kvm" and self.kvm_hangs
        return Trial(booted, deadline if slow else 1.0, "some words")


@pytest.fixture
def image(tmp_path: Path) -> GuestImage:
    return GuestImage(tmp_path, "d1", "6.1", "3.11.2", 128, "ssh-ed25519 A", tmp_path / "key")


@pytest.fixture
def kvm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    device = tmp_path / "kvm"
    device.touch()
    monkeypatch.setattr(acceleration, "KVM_DEVICE", device)
    return device


def test_kvm_is_preferred_where_it_boots(image: GuestImage, tmp_path: Path, kvm: Path) -> None:
    verdict = probe(image, tmp_path, booter=FakeBooter({("kvm", "microvm"), ("tcg", "microvm")}))
    assert (verdict.kind, verdict.machine) == ("kvm", "microvm")


def test_a_kvm_that_hangs_costs_one_deadline_and_falls_back(
    image: GuestImage, tmp_path: Path, kvm: Path
) -> None:
    booter = FakeBooter({("tcg", "microvm")}, kvm_hangs=True)
    verdict = probe(image, tmp_path, booter=booter)
    assert (verdict.kind, verdict.machine) == ("tcg", "microvm")
    assert booter.tried == [("kvm", "microvm"), ("tcg", "microvm")]
    assert "hung" in verdict.reason and f"{DEADLINES['kvm']:.1f}" in verdict.reason


def test_q35_where_microvm_does_not_boot(image: GuestImage, tmp_path: Path, kvm: Path) -> None:
    verdict = probe(image, tmp_path, booter=FakeBooter({("tcg", "q35")}))
    assert verdict.machine == "q35"


def test_no_kvm_device_is_said_and_not_tried(image: GuestImage, tmp_path: Path, kvm: Path) -> None:
    kvm.unlink()
    booter = FakeBooter({("tcg", "microvm")})
    assert "no " in probe(image, tmp_path, booter=booter).reason
    assert booter.tried == [("tcg", "microvm")]


def test_verdict_is_cached_until_qemu_or_image_change(
    image: GuestImage, tmp_path: Path, kvm: Path
) -> None:
    booter = FakeBooter({("tcg", "microvm")})
    first = probe(image, tmp_path, booter=booter)
    tries = len(booter.tried)
    again = probe(image, tmp_path, booter=booter)
    assert again.cached and not first.cached and len(booter.tried) == tries
    booter.qemu = "QEMU 9.0"
    assert not probe(image, tmp_path, booter=booter).cached
    (tmp_path / "acceleration.json").write_text("{broken")
    assert not probe(image, tmp_path, booter=booter).cached


def test_nothing_boots_is_an_error_that_tells_the_story(
    image: GuestImage, tmp_path: Path, kvm: Path
) -> None:
    with pytest.raises(EnvironmentFault, match="tcg/q35"):
        probe(image, tmp_path, booter=FakeBooter(set()))


def test_orchestrators_that_start_together_probe_once(
    image: GuestImage, tmp_path: Path, kvm: Path
) -> None:
    kvm.unlink()
    booter = FakeBooter({("tcg", "microvm")})
    with ThreadPoolExecutor(4) as pool:
        found = [pool.submit(probe, image, tmp_path, booter=booter) for _ in range(4)]
        verdicts = [future.result() for future in found]
    assert booter.tried == [("tcg", "microvm")]
    assert sorted(verdict.cached for verdict in verdicts) == [False, True, True, True]


def _pid_written_to(path: Path) -> int:
    """The process that wrote its id there is not ours any more, so its id must be free."""
    return int(path.read_text())


def test_a_guest_that_speaks_is_ended_at_once(tmp_path: Path) -> None:
    script = f"echo $$ > {tmp_path}/pid; echo fabric-guest: alive; exec sleep 60"
    trial = QemuBooter().boot(["sh", "-c", script], 20.0)
    assert trial.booted and trial.seconds < 20
    with pytest.raises(ProcessLookupError):
        os.kill(_pid_written_to(tmp_path / "pid"), 0)


def test_a_guest_that_hangs_is_ended_at_the_deadline(tmp_path: Path) -> None:
    script = f"echo $$ > {tmp_path}/pid; echo starting; exec sleep 60"
    trial = QemuBooter().boot(["sh", "-c", script], 1.5)
    assert not trial.booted and 1.5 <= trial.seconds < 30 and trial.said == "starting"
    with pytest.raises(ProcessLookupError):
        os.kill(_pid_written_to(tmp_path / "pid"), 0)


def test_a_qemu_that_fails_is_quoted() -> None:
    trial = QemuBooter().boot(["sh", "-c", "echo Assertion failed >&2; exit 1"], 20.0)
    assert not trial.booted and trial.said == "Assertion failed"


def test_the_measured_rate_agrees_with_itself() -> None:
    first, second = tsc_khz(), tsc_khz()
    assert first == pytest.approx(second, rel=0.001)
    assert first > 500_000


def test_the_rate_is_ticks_over_clock() -> None:
    # A counter made of the clock itself: 3 ticks a nanosecond are 3 GHz.
    khz = acceleration._measure(lambda: 3 * time.monotonic_ns())
    assert khz == pytest.approx(3_000_000, rel=0.001)


def test_without_executable_memory_the_kernel_is_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused() -> None:
        raise PermissionError("no executable memory")

    monkeypatch.setattr(acceleration, "_tsc_reader", refused)
    monkeypatch.setattr(acceleration, "CPUINFO", tmp_path / "cpuinfo")
    (tmp_path / "cpuinfo").write_text("processor\t: 0\ncpu MHz\t\t: 2596.144\n")
    assert tsc_khz() == 2_596_144
    (tmp_path / "cpuinfo").write_text("processor\t: 0\n")
    assert tsc_khz() == acceleration.FALLBACK_TSC_KHZ
