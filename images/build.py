#!/usr/bin/env python3
"""Build the guest image from Debian packages: kernel, initramfs, read-only root, manifest, keys.

    images/build.py [--output DIR] [--sources FILE] [--force]

Inputs: packages.txt (resolved by apt), the other lists beside it, guest/*, the scripts themselves.
The same inputs give the same digests: fixed times, owners and orders, unchecked-hash bytecode. The
keys of this build host stay outside the reproducible files. Nothing is rebuilt unless an input
changed, and nothing of a former image is touched before the new one is complete. May import:
errors, host.image.
"""

from __future__ import annotations

import argparse
import errno
import fcntl
import hashlib
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fabric.errors import EnvironmentFault, FabricError, NoSpace, NotRoot, ToolMissing
from fabric.host.vmm.image import FORMAT, PYTHON_ROOT, sha256_of
from images.archive import KEYRING, OS_RELEASE, RELEASE, Package, PackageArchive
from images.initramfs import add_keys, ensure_keys, make_initrd
from images.root import make_root
from images.steps import EPOCH, HERE, PYTHON, run, say

DEFAULT_STATE = Path("/var/lib/fabric")
# MiB. Packages, unpacked trees and results live side by side for a while: some 250, and room.
SPACE_NEEDED_MIB = 400
TOOLS = (
    *("apt-get", "apt-cache", "dpkg-deb", "mmdebstrap"),
    *("mkfs.erofs", "zstd", "dropbearkey", "ssh-keygen"),
)
# Their output is part of the image, so their version is one of its inputs.
PACKERS = ("erofs-utils", "zstd")


def inputs_digest(packages: list[Package]) -> str:
    """One digest of everything the image is made from."""
    text = hashlib.sha256()
    for package in packages:
        text.update(f"{package.file} {package.digest}\n".encode())
    text.update(run(["dpkg-query", "-W", *PACKERS]).encode())
    recipe = sorted(p for p in HERE.rglob("*") if p.is_file() and "__pycache__" not in p.parts)
    for path in recipe:
        if path.suffix != ".md":
            text.update(f"{path.relative_to(HERE)} {sha256_of(path)}\n".encode())
    return text.hexdigest()


def build(work: Path, archive: PackageArchive, packages: list[Package]) -> dict[str, object]:
    """Make all files in ``work`` and return the manifest."""
    packages = archive.obtain(packages, work)
    image = work / "image"
    image.mkdir(mode=0o755)
    make_root(work / "root", image / "rootfs.erofs")
    say("packing the initramfs")
    version = make_initrd(work / "kernel", work / "root/bin/busybox", image / "initrd.img")
    shutil.copy(work / "kernel/boot" / f"vmlinuz-{version}", image / "vmlinuz")
    paths = [image / name for name in ("vmlinuz", "initrd.img", "rootfs.erofs")]
    files = {path.name: {"sha256": sha256_of(path), "size": path.stat().st_size} for path in paths}
    python = run(["/usr/sbin/chroot", str(work / "root"), f"/{PYTHON}", "-V"]).split()[1]
    # The guest's Python stays at hand: it compiles the agent where the host's is another version.
    (work / "root").rename(image / PYTHON_ROOT)
    return {
        "format": FORMAT,
        "inputs": inputs_digest(packages),
        "digest": hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest(),
        "files": files,
        "packages": [p.file for p in packages],
        "kernel_version": version,
        "python_version": python,
        "root_format": "erofs",
        "machines": ["microvm", "q35"],
        "memory_mib": 128,
        "total_mib": round(sum(path.stat().st_size for path in paths) / 2**20, 1),
    }


def install(work: Path, state: Path, manifest: dict[str, object]) -> None:
    """Swap the finished image in by renames; the former one comes back if that fails."""
    image, target, old = work / "image", state / "image", work / "old"
    add_keys(image, ensure_keys(state))
    (image / "manifest.json").write_text(json.dumps(manifest, indent=2, sort_keys=True) + "\n")
    for path in image.iterdir():
        os.utime(path, (EPOCH, EPOCH))
    if target.exists():
        target.rename(old)
    try:
        image.rename(target)
    except BaseException:
        if old.exists():
            old.rename(target)
        raise


def is_current(state: Path, digest: str) -> bool:
    """Whether the image there is whole and made from these inputs."""
    image = state / "image"
    try:
        manifest = json.loads((image / "manifest.json").read_text())
        keys = (state / "keys/client_key", image / "boot-initrd.img", image / "host_key.pub")
        sizes = all(
            (image / name).stat().st_size == facts["size"]
            for name, facts in manifest["files"].items()
        )
        whole = sizes and all(k.exists() for k in keys) and (image / PYTHON_ROOT / PYTHON).exists()
        return bool(manifest["inputs"] == digest and whole)
    except (OSError, ValueError, KeyError):
        return False


def check_ground(state: Path) -> None:
    """Everything that can be known before work starts. Raises EnvironmentFault."""
    if os.geteuid() != 0:
        raise NotRoot("building the guest image needs root", cure="run it with sudo")
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if not KEYRING.exists():
        missing.append(KEYRING.stem)
    if missing:
        raise ToolMissing(f"not installed: {', '.join(missing)}", cure="run make setup")
    there = next(path for path in (state, *state.absolute().parents) if path.exists())
    free = shutil.disk_usage(there).free >> 20
    if free < SPACE_NEEDED_MIB:
        raise full(state, f"{free} MiB free")
    state.mkdir(mode=0o755, parents=True, exist_ok=True)


def full(state: Path, what: str) -> NoSpace:
    """The error of a full disk, naming the filesystem."""
    mount = state.resolve()
    while not mount.is_mount():
        mount = mount.parent
    return NoSpace(
        f"filesystem {mount}: {what}, building the guest image in {state} needs "
        f"{SPACE_NEEDED_MIB} MiB",
        cure="free some space there or name another directory with --output; "
        "the former image, if any, is untouched",
    )


@contextmanager
def full_disk_named(state: Path) -> Iterator[None]:
    """A full disk becomes the error that says which one."""
    try:
        yield
    except OSError as exc:
        if exc.errno == errno.ENOSPC:
            raise full(state, "full while building") from exc
        raise


@contextmanager
def alone(state: Path) -> Iterator[None]:
    """One build at a time in a state directory; leftovers of a killed one are removed."""
    with (state / ".image.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another build is under way: waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        for stale in state.glob(".image-*"):
            shutil.rmtree(stale, ignore_errors=True)
        yield


def make_image(state: Path, archive: PackageArchive, force: bool) -> None:
    """Build unless what is there was made from the same inputs. Raises EnvironmentFault."""
    check_ground(state)
    started = time.monotonic()
    with alone(state), full_disk_named(state):
        try:
            packages = archive.resolve()
        except EnvironmentFault:
            packages = archive.refresh()
        if not force and is_current(state, inputs_digest(packages)):
            say(f"up to date ({state / 'image'})")
            return
        work = Path(tempfile.mkdtemp(prefix=".image-", dir=state))
        try:
            manifest = build(work, archive, packages)
            install(work, state, manifest)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    took = time.monotonic() - started
    say(f"built {state / 'image'}: {manifest['total_mib']} MiB, {took:.0f} s")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    default = Path(os.environ.get("FABRIC_STATE", DEFAULT_STATE))
    parser.add_argument("--output", type=Path, default=default, help="state directory")
    parser.add_argument(
        "--sources",
        type=Path,
        default=os.environ.get("FABRIC_DEBIAN_SOURCES"),
        help=f"apt source list for {RELEASE}, instead of the machine's own or the public archive",
    )
    parser.add_argument("--force", action="store_true", help="rebuild even if nothing changed")
    options = parser.parse_args()
    # A polite kill removes the half-made directory too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        archive = PackageArchive.for_machine(
            options.output / "apt", options.sources, OS_RELEASE.read_text()
        )
        make_image(options.output, archive, options.force)
    except FabricError as exc:
        print(f"error: {exc.message}", file=sys.stderr)
        if exc.cure:
            print(f"cure: {exc.cure}", file=sys.stderr)
        return exc.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
