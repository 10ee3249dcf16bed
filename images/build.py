#!/usr/bin/env python3
"""Build the guest image from Debian packages: kernel, initramfs, read-only root, manifest, keys.

    images/build.py [--output DIR] [--force]

Inputs: packages.txt (resolved by this machine's apt), modules.txt, guest/*, this file. The same
inputs give the same digests: fixed times, owners and orders, unchecked-hash bytecode. The keys of
this build host stay outside the reproducible files. Nothing is rebuilt unless an input changed, and
nothing of a former image is touched before the new one is complete.
"""

from __future__ import annotations

import argparse
import errno
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cpio import Archive

from fabric.errors import EnvironmentFault, FabricError, NoSpace, NotRoot, ToolMissing
from fabric.host.image import FORMAT, sha256_of

HERE = Path(__file__).resolve().parent
DEFAULT_STATE = Path("/var/lib/fabric")
# Any fixed moment does: it stands in every file time, so that two builds agree.
EPOCH = 1_700_000_000
ROOT_UUID = "fab00000-0000-4000-8000-000000000001"
# Packages, unpacked trees and results live side by side for a while.
SPACE_NEEDED_MIB = 600
TOOLS = ("apt-get", "apt-cache", "dpkg-deb", "mkfs.erofs", "zstd", "dropbearkey", "ssh-keygen")
# What no agent ever imports; a third of the standard library.
PRUNED = (
    "usr/share",
    "usr/games",
    "usr/include",
    "var",
    "boot",
    "etc/init.d",
    "etc/default",
    "usr/lib/python3.11/test",
    "usr/lib/python3.11/idlelib",
    "usr/lib/python3.11/lib2to3",
    "usr/lib/python3.11/ensurepip",
    "usr/lib/python3.11/distutils",
    "usr/lib/python3.11/pydoc_data",
    "usr/lib/python3.11/unittest",
    "usr/lib/python3.11/tkinter",
    "usr/lib/python3.11/turtledemo",
    "usr/lib/python3.11/sqlite3",
    "usr/lib/python3.11/wsgiref",
    "usr/lib/python3.11/dbm",
    "usr/lib/x86_64-linux-gnu/gconv",
    "usr/lib/x86_64-linux-gnu/audit",
    "usr/bin/dropbearconvert",
)
APPLETS = (
    "sh",
    "cat",
    "ls",
    "ip",
    "ping",
    "ps",
    "kill",
    "mount",
    "dmesg",
    "sleep",
    "setsid",
    "tail",
    "grep",
    "head",
    "free",
    "top",
    "uname",
    "date",
    "hexdump",
    "nohup",
    "rm",
    "mkdir",
)


@dataclass(frozen=True)
class Package:
    """One .deb: where apt would get it and what it must hash to."""

    file: str
    digest: str
    name: str


def say(text: str) -> None:
    print(f"  image: {text}", flush=True)


def run(argv: Sequence[str], **options: object) -> str:
    """Run a command. Raises EnvironmentFault with what it printed."""
    done = subprocess.run(argv, capture_output=True, text=True, **options)  # type: ignore[call-overload]
    if done.returncode != 0:
        words = (done.stderr or done.stdout).strip().splitlines()
        raise EnvironmentFault(f"{argv[0]} failed: {' | '.join(words[-3:])}")
    return str(done.stdout)


def resolve_packages() -> list[Package]:
    """packages.txt as this machine's apt resolves it now. Raises EnvironmentFault."""
    names = []
    for line in (HERE / "packages.txt").read_text().splitlines():
        if (word := line.strip()).startswith("@"):
            found = re.search(r"Depends: (\S+)", run(["apt-cache", "depends", word[1:]]))
            if found is None:
                raise EnvironmentFault(f"apt knows no {word[1:]}", cure="run apt-get update")
            names.append(found[1])
        elif word and not word.startswith("#"):
            names.append(word)
    lines = run(["apt-get", "--print-uris", "-qq", "download", *names]).splitlines()
    packages = []
    for line in lines:
        _uri, file, _size, digest = line.split(maxsplit=3)
        packages.append(Package(file, digest.strip(), file.split("_")[0]))
    if len(packages) != len(names):
        missing = sorted(set(names) - {p.name for p in packages})
        raise EnvironmentFault(f"apt cannot find {', '.join(missing)}", cure="run apt-get update")
    return sorted(packages, key=lambda p: p.file)


def inputs_digest(packages: list[Package]) -> str:
    """One digest of everything the image is made from."""
    text = hashlib.sha256()
    for package in packages:
        text.update(f"{package.file} {package.digest}\n".encode())
    recipe = sorted(p for p in HERE.rglob("*") if p.is_file() and "__pycache__" not in p.parts)
    for path in recipe:
        if path.suffix != ".md":
            text.update(f"{path.relative_to(HERE)} {sha256_of(path)}\n".encode())
    return text.hexdigest()


def fetch(packages: list[Package], into: Path) -> None:
    """Download and unpack. apt verifies the archive's signatures and the digests."""
    say(f"downloading {len(packages)} packages")
    names = [f"{p.name}" for p in packages]
    run(["apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", *names], cwd=into)
    for package in packages:
        target = into / ("kernel" if package.name.startswith("linux-image") else "root")
        run(["dpkg-deb", "-x", str(into / package.file), str(target)])


def make_root(root: Path, out: Path) -> None:
    """The read-only root: pruned, bytecode compiled by the guest's own Python, one erofs file."""
    for name in PRUNED:
        path = root / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    for name in ("dev", "proc", "sys", "run", "tmp", "etc", "sbin", "usr/bin"):
        (root / name).mkdir(parents=True, exist_ok=True)
    for applet in APPLETS:
        link = root / "bin" / applet
        if not link.exists():
            link.symlink_to("busybox")
    (root / "usr/bin/python3").unlink(missing_ok=True)
    (root / "usr/bin/python3").symlink_to("python3.11")
    (root / "etc/passwd").write_text("root:*:0:0:root:/run/home:/bin/sh\n")
    (root / "etc/group").write_text("root:x:0:\n")
    (root / "etc/shells").write_text("/bin/sh\n")
    shutil.copy(HERE / "guest/start", root / "sbin/start")
    say("compiling the standard library")
    compileall = ["-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash"]
    run(
        [
            "/usr/sbin/chroot",
            str(root),
            "/usr/bin/python3.11",
            "-I",
            "-S",
            *compileall,
            "/usr/lib/python3.11",
        ],
        env={"PYTHONHASHSEED": "0", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
    )
    say("packing the root filesystem")
    run(
        ["mkfs.erofs", "-zlz4hc", f"-T{EPOCH}", f"-U{ROOT_UUID}", "--all-root", str(out), str(root)]
    )


def make_initrd(kernel_tree: Path, busybox: Path, out: Path) -> str:
    """The initramfs; returns the kernel's version."""
    version = next((kernel_tree / "lib/modules").iterdir()).name
    archive = Archive(EPOCH)
    for name in ("bin", "dev", "proc", "sys", "root", "modules", "keys"):
        archive.directory(name)
    archive.file("init", (HERE / "guest/init").read_bytes(), 0o755)
    archive.file("bin/busybox", busybox.read_bytes(), 0o755)
    order = []
    for line in (HERE / "modules.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            path = kernel_tree / "lib/modules" / version / line
            archive.file(f"modules/{path.name}", path.read_bytes(), 0o644)
            order.append(path.name)
    archive.file("modules/order", "".join(f"{name}\n" for name in order).encode(), 0o644)
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
    archive.file("keys/host_key", (keys / "host_key").read_bytes(), 0o600)
    archive.file("keys/authorized_keys", (keys / "client_key.pub").read_bytes(), 0o600)
    initrd = (image / "initrd.img").read_bytes()
    padding = bytes(-len(initrd) % 4)
    boot = image / "boot-initrd.img"
    boot.touch(mode=0o600)
    boot.write_bytes(initrd + padding + archive.close())
    # QEMU runs as libvirt's user: it, and nobody else, must be able to read the host key in there.
    try:
        shutil.chown(boot, group="libvirt-qemu")
        boot.chmod(0o640)
    except LookupError:
        boot.chmod(0o600)
    (image / "host_key.pub").write_text((keys / "host_key.pub").read_text())


def build(work: Path, packages: list[Package], digest: str) -> dict[str, object]:
    """Make all files in ``work`` and return the manifest."""
    fetch(packages, work)
    image = work / "image"
    image.mkdir(mode=0o755)
    make_root(work / "root", image / "rootfs.erofs")
    say("packing the initramfs")
    version = make_initrd(work / "kernel", work / "root/bin/busybox", image / "initrd.img")
    shutil.copy(work / "kernel/boot" / f"vmlinuz-{version}", image / "vmlinuz")
    names = ("vmlinuz", "initrd.img", "rootfs.erofs")
    files = {
        name: {"sha256": sha256_of(image / name), "size": (image / name).stat().st_size}
        for name in names
    }
    python = run(["/usr/sbin/chroot", str(work / "root"), "/usr/bin/python3.11", "-V"]).split()[1]
    return {
        "format": FORMAT,
        "inputs": digest,
        "digest": hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest(),
        "files": files,
        "packages": [p.file for p in packages],
        "kernel_version": version,
        "python_version": python,
        "root_format": "erofs",
        "machines": ["microvm", "q35"],
        "memory_mib": 128,
        "compressed_mib": round(sum((image / name).stat().st_size for name in names) / 2**20, 1),
    }


def install(work: Path, state: Path, manifest: dict[str, object]) -> None:
    """Swap the finished image in by renames."""
    image, target, old = work / "image", state / "image", work / "old"
    add_keys(image, ensure_keys(state))
    (image / "manifest.json").write_text(json.dumps(manifest, indent=2, sort_keys=True) + "\n")
    for path in image.iterdir():
        os.utime(path, (EPOCH, EPOCH))
    if target.exists():
        target.rename(old)
    image.rename(target)


def is_current(state: Path, digest: str) -> bool:
    try:
        manifest = json.loads((state / "image/manifest.json").read_text())
        present = (state / "keys/client_key").exists()
        sizes = all(
            (state / "image" / name).stat().st_size == facts["size"]
            for name, facts in manifest["files"].items()
        )
        return bool(manifest["inputs"] == digest and present and sizes)
    except (OSError, ValueError, KeyError):
        return False


def check_ground(state: Path) -> None:
    """Everything that can be known before work starts. Raises EnvironmentFault."""
    if os.geteuid() != 0:
        raise NotRoot("building the guest image needs root", cure="run it with sudo")
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        raise ToolMissing(f"not installed: {', '.join(missing)}", cure="run make setup")
    state.mkdir(mode=0o755, parents=True, exist_ok=True)
    free = shutil.disk_usage(state).free >> 20
    if free < SPACE_NEEDED_MIB:
        raise NoSpace(
            f"{state}: {free} MiB free, building the guest image needs {SPACE_NEEDED_MIB} MiB",
            cure="free some space there, or name another directory with --output",
        )


def make_image(state: Path, force: bool) -> None:
    """Build unless what is there was made from the same inputs."""
    check_ground(state)
    started = time.monotonic()
    try:
        packages = resolve_packages()
    except EnvironmentFault:
        say("refreshing apt's package lists")
        run(["apt-get", "update", "-qq"])
        packages = resolve_packages()
    digest = inputs_digest(packages)
    if not force and is_current(state, digest):
        say(f"up to date ({state / 'image'})")
        return
    work = Path(tempfile.mkdtemp(prefix=".image-", dir=state))
    try:
        manifest = build(work, packages, digest)
        install(work, state, manifest)
    except OSError as exc:
        if exc.errno == errno.ENOSPC:
            cure = f"free {SPACE_NEEDED_MIB} MiB there; the former image is untouched"
            raise NoSpace(f"{state}: filesystem full while building", cure=cure) from exc
        raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
    took = time.monotonic() - started
    say(f"built {state / 'image'}: {manifest['compressed_mib']} MiB, {took:.0f} s")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    default = Path(os.environ.get("FABRIC_STATE", DEFAULT_STATE))
    parser.add_argument("--output", type=Path, default=default, help="state directory")
    parser.add_argument("--force", action="store_true", help="rebuild even if nothing changed")
    options = parser.parse_args()
    try:
        make_image(options.output, options.force)
    except FabricError as exc:
        print(f"error: {exc.message}", file=sys.stderr)
        if exc.cure:
            print(f"cure: {exc.cure}", file=sys.stderr)
        return exc.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
