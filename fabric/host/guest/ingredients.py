"""What a template is made of.

Owns: Ingredients. May import: host.guest.bundle, host.guest.guest, host.vmm.
"""

from __future__ import annotations

import hashlib
import json
import platform
from dataclasses import asdict, dataclass
from pathlib import Path

from fabric.host.guest.bundle import Bundle
from fabric.host.guest.guest import Accelerator
from fabric.host.vmm.domain_xml import template_text
from fabric.host.vmm.image import GuestImage, sha256_of

FORMAT = 3
"""Raised when what a template consists of changes, the agent's part in it included."""


@dataclass(frozen=True)
class Ingredients:
    """Everything a saved guest depends on: with any other of it, it must be made anew."""

    image: str
    boot: str
    """Digest of the initramfs with this build host's keys."""
    agent: str
    qemu: str
    machine: str
    accelerator: str
    layout: str
    """Digest of the domain XML template: other devices, other state."""
    memory_mib: int
    format: int = FORMAT
    processor: str = ""
    """Its model, and MHz of its time stamp counter: a guest was told them when it booted."""
    kernel: str = ""
    """Release of the host's where KVM runs guests: what it lets them see of the processor is saved
    with them. Empty where QEMU emulates, which does not ask it."""

    @classmethod
    def gather(
        cls, image: GuestImage, acceleration: Accelerator, bundle: Bundle, qemu: str, memory: int
    ) -> Ingredients:
        """``qemu`` is its version line, ``memory`` a guest's, MiB. Reads the initramfs."""
        layout = hashlib.sha256(template_text().encode()).hexdigest()
        machine, kind = str(acceleration.machine), str(acceleration.kind)
        boot = sha256_of(image.initrd)
        made_of = (image.digest, boot, bundle.digest, qemu, machine, kind, layout, memory)
        kernel = platform.release() if kind == "kvm" else ""
        return cls(*made_of, processor=processor(acceleration.tsc_khz), kernel=kernel)

    @property
    def key(self) -> str:
        """32 hex digits."""
        text = json.dumps(asdict(self), sort_keys=True).encode()
        return hashlib.blake2s(text, digest_size=16).hexdigest()


def processor(tsc_khz: int, cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Model and speed. In MHz: what a kernel measures differs by some parts in a million from one
    boot to the next, which no guest's clock notices. Raises OSError."""
    lines = cpuinfo.read_text().splitlines()
    model = next((x.partition(":")[2].strip() for x in lines if x.startswith("model name")), "")
    return f"{model}, {round(tsc_khz / 1000)} MHz"
