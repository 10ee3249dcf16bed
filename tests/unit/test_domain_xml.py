"""The rendered domain XML, byte for byte, and what is read back from it.

To accept a deliberate change: FABRIC_UPDATE_GOLDEN=1 pytest tests/unit/test_domain_xml.py, and read
the difference.
"""

from __future__ import annotations

import os
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import pytest

from fabric.host.vmm.domain_xml import (
    VIRTIO_MMIO_DEVICES,
    MemoryFile,
    OwnerMark,
    read_mark,
    render,
)
from tests.unit.guest_samples import spec

QEMU_NAMESPACE = "http://libvirt.org/schemas/domain/qemu/1.0"
GOLDEN = Path(__file__).parent.parent / "golden"


@pytest.mark.parametrize("machine", ["microvm", "q35"])
@pytest.mark.parametrize("domain_type", ["kvm", "qemu"])
def test_the_domain_is_the_golden_one(domain_type: str, machine: str) -> None:
    text = render(spec(domain_type, machine))
    path = GOLDEN / f"domain-{machine}-{domain_type}.xml"
    if os.environ.get("FABRIC_UPDATE_GOLDEN"):
        path.write_text(text)
    assert text == path.read_text()


@pytest.mark.parametrize("machine", ["microvm", "q35"])
@pytest.mark.parametrize("role", ["maker", "clone"])
def test_the_domains_of_templates_are_the_golden_ones(role: str, machine: str) -> None:
    memory = MemoryFile(Path("/dev/shm/fabric/key/memory"), shared=role == "maker")
    text = render(replace(spec("qemu", machine), memory_file=memory))
    path = GOLDEN / f"domain-{machine}-qemu-{role}.xml"
    if os.environ.get("FABRIC_UPDATE_GOLDEN"):
        path.write_text(text)
    assert text == path.read_text()


def test_a_clone_has_the_same_devices_as_its_template() -> None:
    """Or its template's state would not fit."""

    def devices(shared: bool) -> str:
        memory = MemoryFile(Path("/m"), shared=shared)
        root = ET.fromstring(render(replace(spec(), memory_file=memory)))
        found = root.find("./devices")
        assert found is not None
        return ET.tostring(found, encoding="unicode")

    assert devices(shared=True) == devices(shared=False)


def test_only_a_clone_waits_for_a_state() -> None:
    def arguments(memory: MemoryFile | None) -> list[str]:
        root = ET.fromstring(render(replace(spec(), memory_file=memory)))
        return [str(arg.get("value")) for arg in root.iter(f"{{{QEMU_NAMESPACE}}}arg")]

    assert arguments(None) == []
    made = " ".join(arguments(MemoryFile(Path("/m"), shared=True)))
    assert "share=on" in made and "-incoming" not in made
    cloned = " ".join(arguments(MemoryFile(Path("/m"), shared=False)))
    assert "share=off" in cloned and cloned.endswith("-incoming defer")


def test_every_device_of_a_microvm_has_an_mmio_address() -> None:
    root = ET.fromstring(render(spec("qemu", "microvm")))
    virtio = root.findall("./devices/disk") + root.findall("./devices/interface")
    virtio += root.findall("./devices/controller[@type='virtio-serial']")
    assert 0 < len(virtio) <= VIRTIO_MMIO_DEVICES
    for device in virtio:
        address = device.find("address")
        assert address is not None
        assert address.get("type") == "virtio-mmio"


def test_the_root_filesystem_cannot_be_written() -> None:
    assert ET.fromstring(render(spec())).find("./devices/disk/readonly") is not None


def test_guests_of_a_host_cannot_talk_to_each_other() -> None:
    port = ET.fromstring(render(spec())).find("./devices/interface/port")
    assert port is not None
    assert port.get("isolated") == "yes"


def test_the_mark_says_whose_it_is() -> None:
    mark = read_mark(render(spec(index=7)))
    assert mark == OwnerMark("demo", "h1", 7, 0x1_0000_002A, 1_700_000_000_000_000)


@pytest.mark.parametrize(
    "xml",
    [
        "<domain><name>fabric-demo-h1-g1</name></domain>",
        "<domain><metadata><guest lab='demo'/></metadata></domain>",
        "<fabric:guest xmlns:fabric='urn:fabric:owner:1' lab='demo'/>",
        "not xml",
    ],
)
def test_what_has_no_whole_mark_is_not_ours(xml: str) -> None:
    assert read_mark(xml) is None


def test_values_cannot_break_out_of_their_place() -> None:
    hostile = "</cmdline><evil attr='\"&"
    root = ET.fromstring(render(replace(spec(), kernel_arguments=(hostile,))))
    assert root.find(".//evil") is None
    assert hostile in (root.findtext("./os/cmdline") or "")
