"""The profile libvirt's own helper would write for our guests, where they are confined."""

from __future__ import annotations

import re
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from fabric.host.vmm.apparmor import RULES
from fabric.host.vmm.domain_xml import MemoryFile, render
from tests.unit.guest_samples import spec

HELPER = Path("/usr/lib/libvirt/virt-aa-helper")
NAME = "00000000-0000-4000-8000-000000000001"
MEMORY = Path("/dev/shm/fabric/0123abcd/memory")

pytestmark = pytest.mark.skipif(not HELPER.exists(), reason="libvirt without AppArmor support")


def profile(xml: str) -> dict[str, str]:
    """Path → what the guest's QEMU may do with it. A dry run: nothing is loaded or written."""
    named = xml.replace("</name>", f"</name><uuid>{NAME}</uuid>", 1)
    words = [str(HELPER), "--create", "--dryrun", "--uuid", f"libvirt-{NAME}"]
    done = subprocess.run(words, input=named, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return dict(re.findall(r'^ +"([^"]+)" ([a-z]+),$', done.stdout + done.stderr, re.MULTILINE))


@pytest.mark.parametrize("machine", ["microvm", "q35"])
@pytest.mark.parametrize("memory", [None, MemoryFile(MEMORY, shared=True)])
def test_a_guest_may_use_its_image_and_its_channel(machine: str, memory: MemoryFile | None) -> None:
    guest = replace(spec("qemu", machine), memory_file=memory)
    allowed = profile(render(guest))
    for path in (guest.kernel, guest.initrd, guest.rootfs):
        assert allowed[str(path)].startswith("r") and "w" not in allowed[str(path)]
    assert allowed[str(guest.identity.channel)] == "rw"


def test_a_copy_may_use_the_templates_kernel_and_initramfs() -> None:
    kernel, initrd = MEMORY.parent / "kernel", MEMORY.parent / "initrd"
    memory = MemoryFile(MEMORY, shared=False)
    allowed = profile(render(replace(spec(), memory_file=memory, kernel=kernel, initrd=initrd)))
    assert allowed[str(kernel)] == allowed[str(initrd)] == "r"


def test_the_memory_is_what_libvirt_does_not_know_of() -> None:
    """Were it in there, our own rules could go."""
    allowed = profile(render(replace(spec(), memory_file=MemoryFile(MEMORY, shared=False))))
    assert str(MEMORY) not in allowed
    assert any(MEMORY.name in rule and str(MEMORY.parents[1]) in rule for rule in RULES)
