"""Building the guest image: what can be decided without a package archive."""

from __future__ import annotations

import errno
import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from fabric.errors import EnvironmentFault, NoSpace
from images import build, steps
from images.archive import Package, PackageArchive
from images.initramfs import SIGNATURE_TRAILER, unsigned

SIGNATURE = b"rsa" * 100


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """A state directory with a whole image made from the inputs "i1"."""
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys/client_key").touch()
    image = tmp_path / "image"
    image.mkdir()
    for name in ("vmlinuz", "boot-initrd.img", "host_key.pub"):
        (image / name).write_bytes(b"1234")
    (image / "python/usr/bin").mkdir(parents=True)
    (image / "python/usr/bin/python3.11").touch()
    manifest = {"inputs": "i1", "files": {"vmlinuz": {"size": 4, "sha256": "?"}}}
    (image / "manifest.json").write_text(json.dumps(manifest))
    return tmp_path


def test_a_whole_image_of_the_same_inputs_is_current(state: Path) -> None:
    assert build.is_current(state, "i1")
    assert not build.is_current(state, "i2")


@pytest.mark.parametrize(
    "lost",
    [
        "image/vmlinuz",
        "image/boot-initrd.img",
        "image/manifest.json",
        "image/python/usr/bin/python3.11",
        "keys/client_key",
    ],
)
def test_an_image_that_lost_a_file_is_not_current(state: Path, lost: str) -> None:
    (state / lost).unlink()
    assert not build.is_current(state, "i1")


def test_a_shortened_file_is_not_current(state: Path) -> None:
    (state / "image/vmlinuz").write_bytes(b"12")
    assert not build.is_current(state, "i1")


def test_a_signature_is_cut_off_a_module_and_nothing_else() -> None:
    facts = bytes(8) + len(SIGNATURE).to_bytes(4, "big")
    assert unsigned(b"ELF module" + SIGNATURE + facts + SIGNATURE_TRAILER) == b"ELF module"
    assert unsigned(b"ELF module") == b"ELF module"


def test_a_failed_command_tells_its_last_words() -> None:
    with pytest.raises(EnvironmentFault, match=r"sh failed \(3\): no such luck"):
        steps.run(["sh", "-c", "echo no such luck >&2; exit 3"])


def test_a_command_without_space_is_a_full_disk() -> None:
    with pytest.raises(OSError) as caught:
        steps.run(["sh", "-c", "echo 'x: No space left on device' >&2; exit 1"])
    assert caught.value.errno == errno.ENOSPC


def test_too_little_space_names_filesystem_and_need(
    state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "SPACE_NEEDED_MIB", 1 << 40)
    monkeypatch.setattr(build, "TOOLS", ())
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    with pytest.raises(NoSpace, match=r"filesystem /.*needs 1099511627776 MiB"):
        build.check_ground(state / "new")
    assert not (state / "new").exists()


def test_a_failing_swap_gives_the_former_image_back(
    state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "ensure_keys", lambda state: state / "keys")
    monkeypatch.setattr(build, "add_keys", lambda image, keys: (image / "gone").touch())
    work = state / ".image-x"
    (work / "image").mkdir(parents=True)
    rename = Path.rename

    def renamed(self: Path, target: Path) -> Path:
        if self == work / "image":
            raise OSError(errno.ENOSPC, "full")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", renamed)
    with pytest.raises(OSError, match="full"):
        build.install(work, state, {"inputs": "i2"})
    assert build.is_current(state, "i1")


def test_leftovers_of_a_killed_build_are_removed(state: Path) -> None:
    (state / ".image-old/root").mkdir(parents=True)
    with build.alone(state):
        assert not (state / ".image-old").exists()
    assert (state / "image").exists()


@pytest.mark.parametrize(
    ("os_release", "own"),
    [
        ("ID=debian\nVERSION_CODENAME=bookworm\n", True),
        ('ID=debian\nVERSION_CODENAME="bookworm"\n', True),
        ("ID=debian\nVERSION_CODENAME=trixie\n", False),
        ("ID=ubuntu\nVERSION_CODENAME=noble\nUBUNTU_CODENAME=noble\n", False),
        ("", False),
    ],
)
def test_only_the_guests_own_release_asks_the_machines_apt(os_release: str, own: bool) -> None:
    directory = Path("/state/apt")
    found = PackageArchive.for_machine(directory, None, os_release)
    assert found == (PackageArchive() if own else PackageArchive(directory))


def test_a_source_list_is_used_on_any_machine() -> None:
    directory, sources = Path("/state/apt"), Path("/etc/mirror.list")
    found = PackageArchive.for_machine(directory, sources, "VERSION_CODENAME=bookworm\n")
    assert found == PackageArchive(directory, sources)


@dataclass(frozen=True)
class GreedyArchive(PackageArchive):
    """Delivers packages until the disk is full."""

    def resolve(self) -> list[Package]:
        return [Package("linux.deb", "SHA256:0", "linux")]

    def obtain(self, packages: list[Package], work: Path) -> list[Package]:
        with (work / packages[0].file).open("wb") as file:
            while True:
                file.write(bytes(1 << 20))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "small"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "small", disk], check=True)
    try:
        yield disk
    finally:
        subprocess.run(["umount", disk], check=True)


@pytest.mark.root
@pytest.mark.parametrize(("needed", "when"), [(400, "15 MiB free"), (8, "full while building")])
def test_on_a_full_disk_the_former_image_stays_and_nothing_else(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch, needed: int, when: str
) -> None:
    """Full before the build starts, and in the midst of it."""
    monkeypatch.setattr(build, "SPACE_NEEDED_MIB", needed)
    (small_disk / "image").mkdir()
    (small_disk / "image/manifest.json").write_text("the former image")
    with pytest.raises(NoSpace, match=f"filesystem {small_disk}: {when}.* untouched"):
        build.make_image(small_disk, GreedyArchive(), force=False)
    assert (small_disk / "image/manifest.json").read_text() == "the former image"
    assert {path.name for path in small_disk.iterdir()} <= {"image", ".image.lock"}
