"""The guest's initramfs: drivers, first program, and (apart from it) this build host's keys.

Owns: what is in both archives, and the keys' directory. May import: errors (through steps).
"""

from __future__ import annotations

import shutil
from pathlib import Path

from images.cpio import Archive
from images.steps import EPOCH, HERE, listed, run, say

QEMU_GROUP = "libvirt-qemu"
SIGNATURE_TRAILER = b"~Module signature appended~\n"
SIGNATURE_FACTS_SIZE = 12
"""Bytes of struct module_signature before the trailer, include/linux/module_signature.h."""


def unsigned(module: bytes) -> bytes:
    """A kernel module without its signature, which a guest would spend milliseconds on checking."""
    if not module.endswith(SIGNATURE_TRAILER):
        return module
    end = len(module) - len(SIGNATURE_TRAILER)
    length = int.from_bytes(module[end - 4 : end], "big")
    return module[: end - SIGNATURE_FACTS_SIZE - length]


def make_initrd(kernel_tree: Path, busybox: Path, out: Path) -> str:
    """The initramfs; returns the kernel's version."""
    version = next((kernel_tree / "lib/modules").iterdir()).name
    modules = f"lib/modules/{version}"
    archive = Archive(EPOCH)
    for name in ("bin", "dev", "proc", "sys", "root", "lib", "lib/modules", modules):
        archive.directory(name)
    archive.file("init", (HERE / "guest/init").read_bytes(), 0o755)
    archive.file("bin/busybox", busybox.read_bytes(), 0o755)
    order, dependencies = "", ""
    for line in listed("modules.txt"):
        name, _, bus = line.partition(" ")
        path = kernel_tree / modules / name
        archive.file(f"{modules}/{path.name}", unsigned(path.read_bytes()), 0o644)
        order += f"{path.stem} {bus}\n"
        # The order in the list is all there is to know about dependencies.
        dependencies += f"{path.name}:\n"
    archive.file("modules.order", order.encode(), 0o644)
    archive.file(f"{modules}/modules.dep", dependencies.encode(), 0o644)
    raw = out.with_suffix(".cpio")
    raw.write_bytes(archive.close())
    run(["zstd", "-q", "-19", "-f", "--rm", str(raw), "-o", str(out)])
    return version


def ensure_keys(state: Path) -> Path:
    """This build host's SSH keys, made once: the guests' host key and the fabric's client key."""
    keys = state / "keys"
    keys.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not (keys / "host_key.pub").exists():
        (keys / "host_key").unlink(missing_ok=True)
        say("making this build host's guest host key")
        run(["dropbearkey", "-t", "ed25519", "-f", str(keys / "host_key")])
        shown = run(["dropbearkey", "-y", "-f", str(keys / "host_key")])
        line = next(text for text in shown.splitlines() if text.startswith("ssh-ed25519"))
        (keys / "host_key.pub").write_text(" ".join(line.split()[:2]) + "\n")
    if not (keys / "client_key").exists():
        say("making this build host's client key")
        path = str(keys / "client_key")
        run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "fabric", "-f", path])
    return keys


def add_keys(image: Path, keys: Path) -> None:
    """boot-initrd.img: the initramfs with this build host's keys behind it (kernels join them)."""
    archive = Archive(EPOCH)
    for name in ("run", "run/fabric", "run/keys", "run/home", "run/home/.ssh"):
        archive.directory(name, 0o700)
    archive.file("run/keys/host_key", (keys / "host_key").read_bytes(), 0o600)
    allowed = (keys / "client_key.pub").read_bytes()
    archive.file("run/home/.ssh/authorized_keys", allowed, 0o600)
    initrd = (image / "initrd.img").read_bytes()
    padding = bytes(-len(initrd) % 4)
    boot = image / "boot-initrd.img"
    boot.touch(mode=0o600)
    boot.write_bytes(initrd + padding + archive.close())
    # QEMU runs as libvirt's user: it, and nobody else, must be able to read the host key in there.
    try:
        shutil.chown(boot, group=QEMU_GROUP)
        boot.chmod(0o640)
    except LookupError:
        say(f"no group {QEMU_GROUP} here: install libvirt, then build again with --force")
    (image / "host_key.pub").write_text((keys / "host_key.pub").read_text())
