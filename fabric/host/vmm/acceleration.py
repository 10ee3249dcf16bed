"""Which acceleration and machine type really run a guest here: found out by booting one.

Owns: the probe, its verdict and the cache of it. May import: errors, host.vmm.image, host.process.
That /dev/kvm opens, or even creates a VM, proves nothing: on a nested host without full
virtualisation QEMU hangs or aborts later. So a kernel is booted with a deadline, under KVM first,
then under TCG.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import mmap
import os
import platform
import re
import select
import subprocess
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Protocol

from fabric.errors import EnvironmentFault, ToolMissing
from fabric.host.process import boot_id
from fabric.host.vmm.image import GuestImage, kernel_arguments

QEMU = "qemu-system-x86_64"
MARKER = b"fabric-guest: alive"
# A KVM guest gets there in well under a second, an emulated one in two to three on a free core.
DEADLINES = {"kvm": 8.0, "tcg": 40.0}
ATTEMPTS = (("kvm", "microvm"), ("kvm", "q35"), ("tcg", "microvm"), ("tcg", "q35"))
KVM_DEVICE = Path("/dev/kvm")
CPUINFO = Path("/proc/cpuinfo")
# rdtsc; shl rdx, 32; or rax, rdx; ret: a function that returns the time stamp counter.
READ_TSC = bytes.fromhex("0f31 48c1e220 4809d0 c3")
# Seconds. Long enough for a few parts in a million, done once per boot of the machine.
TSC_SPAN = 0.4
TSC_SAMPLES = 20
FALLBACK_TSC_KHZ = 2_000_000
# Where the kernel ends QEMU should this process be killed during a probe (util-linux).
ENDED_WITH_US = ("setpriv", "--pdeathsig", "KILL")


@dataclass(frozen=True)
class Acceleration:
    """The verdict. ``reason`` tells a person how it was reached."""

    kind: str
    """``kvm`` or ``tcg``."""
    machine: str
    """``microvm`` or ``q35``."""
    tsc_khz: int
    reason: str
    boot_seconds: float
    cached: bool = False


@dataclass(frozen=True)
class Trial:
    """One attempt to boot: whether the guest spoke in time, after how long, QEMU's last words."""

    booted: bool
    seconds: float
    said: str


class Booter(Protocol):
    """Runs one QEMU until the marker, its end, or the deadline."""

    def version(self) -> str: ...

    def boot(self, argv: list[str], deadline: float) -> Trial: ...


class QemuBooter:
    """The real one. The process is always ended and reaped before it returns."""

    def version(self) -> str:
        """QEMU's version line. Raises ToolMissing."""
        try:
            done = subprocess.run([QEMU, "--version"], capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError) as exc:
            raise ToolMissing(f"{QEMU} does not run: {exc}", cure="run make setup") from exc
        return done.stdout.splitlines()[0]

    def boot(self, argv: list[str], deadline: float) -> Trial:
        started = time.monotonic()
        said = b""
        with subprocess.Popen(
            [*ENDED_WITH_US, *argv],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        ) as process:
            assert process.stdout is not None
            try:
                while MARKER not in said:
                    left = started + deadline - time.monotonic()
                    if left <= 0 or not select.select([process.stdout], [], [], left)[0]:
                        break
                    if not (chunk := process.stdout.read1(4096)):  # type: ignore[attr-defined]
                        break
                    said += chunk
            finally:
                process.kill()
        seconds = time.monotonic() - started
        words = said.decode(errors="replace").strip().splitlines()
        last = words[-1][:200] if words else f"no word within {deadline:g} s"
        return Trial(MARKER in said, seconds, last)


def probe(
    image: GuestImage, state_dir: Path, *, force: bool = False, booter: Booter | None = None
) -> Acceleration:
    """The verdict for this boot of this machine with this QEMU and image; cached.

    Raises EnvironmentFault when no guest boots at all, ToolMissing without QEMU.
    """
    booter = booter or QemuBooter()
    cache, key = _place(image, state_dir, booter)
    if not force and (known := _cached(cache, key)) is not None:
        return known
    # A lab's orchestrators start together: one of them probes, the others wait for its verdict.
    with (state_dir / ".acceleration.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not force and (known := _cached(cache, key)) is not None:
            return known
        found = _try_all(image, booter)
        draft = cache.with_suffix(".new")
        draft.write_text(json.dumps({"key": key, "verdict": asdict(found)}, indent=2) + "\n")
        draft.rename(cache)
    return found


def verdict(
    image: GuestImage, state_dir: Path, booter: Booter | None = None
) -> Acceleration | None:
    """The verdict of an earlier :func:`probe`; None when it must be made anew. Boots nothing.

    Raises ToolMissing without QEMU.
    """
    return _cached(*_place(image, state_dir, booter or QemuBooter()))


def _place(image: GuestImage, state_dir: Path, booter: Booter) -> tuple[Path, str]:
    """Where the verdict is kept, and what it depends on."""
    key = f"{boot_id()} {booter.version()} {image.digest}"
    return state_dir / "acceleration.json", key


def qemu_arguments(image: GuestImage, kind: str, machine: str, tsc_khz: int) -> list[str]:
    """QEMU's command line for a guest that only has to reach its first process."""
    cpu = "host" if kind == "kvm" else "max"
    options = "microvm,rtc=on,acpi=on" if machine == "microvm" else "q35"
    append = [*kernel_arguments(kind, machine, tsc_khz), "fabric.probe"]
    return [
        QEMU, "-M", options, "-accel", kind, "-cpu", cpu, "-m", "128", "-nodefaults",
        "-no-user-config", "-no-reboot", "-display", "none", "-serial", "stdio",
        "-kernel", str(image.kernel), "-initrd", str(image.initrd), "-append", " ".join(append),
    ]  # fmt: skip


def tsc_khz() -> int:
    """The rate of the host's time stamp counter, kHz; emulated guests see the same counter.

    Measured, because "cpu MHz" is the counter's rate only where the clock is never scaled: a guest
    told 800 MHz on a host of 2600 would live three times too fast.
    """
    try:
        return round(_measure(_tsc_reader()))
    except (OSError, ValueError):
        # Hardened kernels refuse memory that is both written and run.
        found = re.search(r"^cpu MHz\s*:\s*([0-9.]+)", CPUINFO.read_text(), re.MULTILINE)
        return int(float(found[1]) * 1000) if found else FALLBACK_TSC_KHZ


def _tsc_reader() -> Callable[[], int]:
    if platform.machine() != "x86_64":
        raise ValueError(platform.machine())
    page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    page.write(READ_TSC)
    # Kept by the reader: the page must stay mapped as long as the function can be called.
    code = ctypes.c_char.from_buffer(page)
    function = ctypes.CFUNCTYPE(ctypes.c_uint64)(ctypes.addressof(code))

    def read(_kept: ctypes.c_char = code) -> int:
        return int(function())

    return read


def _measure(read: Callable[[], int]) -> float:
    """kHz, from two moments at which counter and clock were read closely together."""

    def moment() -> tuple[int, int]:
        tightest = None
        for _ in range(TSC_SAMPLES):
            before, ticks, after = time.monotonic_ns(), read(), time.monotonic_ns()
            if tightest is None or after - before < tightest[0]:
                tightest = (after - before, ticks, (before + after) // 2)
        assert tightest is not None
        return tightest[1], tightest[2]

    ticks, at = moment()
    time.sleep(TSC_SPAN)
    later_ticks, later = moment()
    return (later_ticks - ticks) * 1_000_000 / (later - at)


def _try_all(image: GuestImage, booter: Booter) -> Acceleration:
    story, khz = [], tsc_khz()
    for kind, machine in ATTEMPTS:
        if kind == "kvm" and (why := _kvm_closed()):
            if machine == "microvm":
                story.append(why)
            continue
        if kind == "kvm" and any("hung" in line for line in story):
            continue
        argv = qemu_arguments(image, kind, machine, khz)
        trial = booter.boot(argv, DEADLINES[kind])
        if trial.booted:
            story.append(f"{kind}/{machine}: a guest booted in {trial.seconds:.1f} s")
            return Acceleration(kind, machine, khz, "; ".join(story), round(trial.seconds, 2))
        how = "hung" if trial.seconds >= DEADLINES[kind] else "ended"
        story.append(
            f"{kind}/{machine}: the guest {how} after {trial.seconds:.1f} s ({trial.said})"
        )
    raise EnvironmentFault(
        "no guest boots on this machine: " + "; ".join(story),
        cure="check that qemu-system-x86_64 runs and that the image is intact (make image)",
    )


def _kvm_closed() -> str:
    """Why KVM need not be tried; empty when it must be."""
    if not KVM_DEVICE.exists():
        return "no /dev/kvm"
    try:
        os.close(os.open(KVM_DEVICE, os.O_RDWR))
    except OSError as exc:
        return f"/dev/kvm does not open ({exc.strerror})"
    return ""


def _cached(cache: Path, key: str) -> Acceleration | None:
    try:
        stored = json.loads(cache.read_text())
        if stored["key"] != key:
            return None
        return replace(Acceleration(**stored["verdict"]), cached=True)
    except (OSError, ValueError, KeyError, TypeError):
        return None
