"""Loading the guest image, and the reproducible archive it is packed with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fabric.errors import ImageInvalid, ImageMissing
from fabric.host.vmm.image import FORMAT, kernel_arguments, load_image, sha256_of
from images.cpio import Archive


@pytest.fixture
def state(tmp_path: Path) -> Path:
    image = tmp_path / "image"
    image.mkdir()
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys/client_key").write_text("secret")
    files = {}
    for name in ("vmlinuz", "initrd.img", "rootfs.erofs"):
        (image / name).write_bytes(name.encode())
        files[name] = {"sha256": sha256_of(image / name), "size": len(name)}
    (image / "boot-initrd.img").write_bytes(b"initrd and keys")
    (image / "host_key.pub").write_text("ssh-ed25519 AAAA\n")
    manifest = {
        "format": FORMAT, "digest": "d", "files": files, "kernel_version": "6.1",
        "python_version": "3.11.2", "memory_mib": 128,
    }  # fmt: skip
    (image / "manifest.json").write_text(json.dumps(manifest))
    return tmp_path


def test_a_whole_image_loads(state: Path) -> None:
    image = load_image(state, verify=True)
    assert image.host_public_key == "ssh-ed25519 AAAA"
    assert image.kernel.exists() and image.initrd.exists() and image.rootfs.exists()


def test_no_image_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(ImageMissing, match="make image"):
        load_image(tmp_path)


def test_a_shortened_file_is_found_without_reading_it(state: Path) -> None:
    (state / "image/rootfs.erofs").write_bytes(b"short")
    with pytest.raises(ImageInvalid, match="5 bytes, expected 12"):
        load_image(state)


def test_a_changed_byte_is_found_by_verify(state: Path) -> None:
    (state / "image/vmlinuz").write_bytes(b"VMLINUZ")
    load_image(state)
    with pytest.raises(ImageInvalid, match="SHA-256"):
        load_image(state, verify=True)


@pytest.mark.parametrize("text", ["{", "{}", '{"format": 99}', "[]"])
def test_a_bad_manifest_is_invalid_not_a_traceback(state: Path, text: str) -> None:
    (state / "image/manifest.json").write_text(text)
    with pytest.raises(ImageInvalid):
        load_image(state)


def test_a_microvm_under_tcg_is_told_the_clock_rate() -> None:
    assert "tsc_early_khz=2000000" in kernel_arguments("tcg", "microvm", 2_000_000)
    assert not any("tsc" in a for a in kernel_arguments("kvm", "microvm", 2_000_000))


def test_equal_contents_make_equal_archives() -> None:
    def made() -> bytes:
        archive = Archive(0)
        archive.directory("bin")
        archive.file("bin/x", b"abc", 0o755)
        return archive.close()

    assert made() == made()
    assert len(made()) % 4 == 0
    assert made().startswith(b"070701") and b"TRAILER!!!" in made()
