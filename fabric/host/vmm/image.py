"""The guest image as the host uses it: where its files are and whether they are what they claim.

Owns: the manifest's meaning, kernel arguments. May import: errors. Written by ``images/build.py``.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fabric.errors import ImageInvalid, ImageMissing

FORMAT = 1
CURE = "run `make image`"
PYTHON_ROOT = "python"
"""Directory beside the files: what is in the guest's root, for running its Python here."""
CHUNK = 1 << 20
QUICK_START = (
    # The kernel's self-tests of its ciphers: 0.35 s under emulation, and 0.13 s in the one below.
    "cryptomgr.notests",
    # The second is the key that module signatures are checked with: the image's carry none.
    "initcall_blacklist=crypto_kdf108_init,load_system_certificate_list",
    # Grace periods without waiting for ticks: mounts and network devices are made of them.
    "rcupdate.rcu_expedited=1",
    # Accounting nobody reads, and security modules nobody configures: they have code on every path
    # of the kernel, and a copied guest runs each path for the first time before its first packet.
    "psi=0",
    "audit=0",
    "lsm=capability",
    "cgroup_disable=memory",
    # What the kernel does for itself every half second to four: due at the same moment of every
    # copy's life, as a copy goes on where the template was saved.
    "nowatchdog",
    "sysctl.vm.compaction_proactiveness=0",
    "sysctl.vm.stat_interval=3600",
)
"""What the kernel need not do in a guest that lives for one connection: 0.6 s of 3.6 s of a boot
under emulation."""


@dataclass(frozen=True)
class GuestImage:
    """A built image. ``digest`` covers kernel, initramfs and root, not the keys."""

    directory: Path
    digest: str
    kernel_version: str
    python_version: str
    memory_mib: int
    host_public_key: str
    """The key every guest of this build host answers with: ``ssh-ed25519 AAAA…``."""
    client_key: Path
    """OpenSSH private key the guests let in as root."""

    @property
    def kernel(self) -> Path:
        return self.directory / "vmlinuz"

    @property
    def initrd(self) -> Path:
        """The initramfs with this build host's keys."""
        return self.directory / "boot-initrd.img"

    @property
    def rootfs(self) -> Path:
        return self.directory / "rootfs.erofs"

    @property
    def python_root(self) -> Path:
        return self.directory / PYTHON_ROOT


def kernel_arguments(kind: str, machine: str, tsc_khz: int) -> list[str]:
    """The kernel command line's machine part.

    ``kind`` is ``kvm`` or ``tcg``, ``machine`` is ``microvm`` or ``q35``, ``tsc_khz`` the host's
    time stamp counter.
    """
    arguments = [
        "console=ttyS0",
        "quiet",
        "panic=-1",
        "reboot=t",
        "mitigations=off",
        "random.trust_cpu=on",
        *QUICK_START,
    ]
    if kind == "tcg" and machine == "microvm":
        # A microvm has no PIT to calibrate against: it hangs unless it is told the rate.
        arguments += [f"tsc_early_khz={tsc_khz}", "no_timer_check", f"lpj={2 * tsc_khz}"]
    if kind == "tcg":
        # On a busy host the watchdog sees emulated time jump, drops the TSC for jiffies, and with
        # it the microseconds of every hop record.
        arguments.append("tsc=reliable")
    return arguments


def load_image(state_dir: Path, *, verify: bool = False) -> GuestImage:
    """The image under ``state_dir``. ``verify`` reads every byte; otherwise sizes must do.

    Raises ImageMissing, ImageInvalid.
    """
    directory = state_dir / "image"
    manifest_path = directory / "manifest.json"
    if not manifest_path.exists():
        raise ImageMissing(f"no guest image in {directory}", cure=CURE)
    try:
        manifest: dict[str, Any] = json.loads(manifest_path.read_text())
        if manifest["format"] != FORMAT:
            raise ImageInvalid(
                f"{manifest_path}: format {manifest['format']}, expected {FORMAT}", cure=CURE
            )
        for name, facts in manifest["files"].items():
            _check(directory / name, facts, verify)
        image = GuestImage(
            directory=directory,
            digest=manifest["digest"],
            kernel_version=manifest["kernel_version"],
            python_version=manifest["python_version"],
            memory_mib=manifest["memory_mib"],
            host_public_key=(directory / "host_key.pub").read_text().strip(),
            client_key=state_dir / "keys/client_key",
        )
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise ImageInvalid(f"{manifest_path}: {exc!r}", cure=CURE) from exc
    for path in (image.initrd, image.client_key):
        if not path.exists():
            raise ImageInvalid(f"{path} is missing", cure=CURE)
    return image


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _check(path: Path, facts: dict[str, Any], verify: bool) -> None:
    size = path.stat().st_size
    if size != facts["size"]:
        raise ImageInvalid(f"{path}: {size} bytes, expected {facts['size']}", cure=CURE)
    if verify and sha256_of(path) != facts["sha256"]:
        raise ImageInvalid(f"{path}: its SHA-256 is not the manifest's", cure=CURE)
