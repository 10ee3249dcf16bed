"""The guest's read-only root file system, made from unpacked packages.

Owns: what is in it and how it is packed. May import: errors (through steps).
"""

from __future__ import annotations

import shutil
from pathlib import Path

from images.steps import EPOCH, HERE, PYTHON, listed, run, say

ROOT_UUID = "fab00000-0000-4000-8000-000000000001"
LIBRARY = "usr/lib/python3.11"


def make_root(root: Path, out: Path) -> None:
    """The read-only root: pruned, bytecode instead of sources, one erofs file."""
    for pattern in listed("pruned.txt"):
        for path in root.glob(pattern):
            remove(path)
    for name in ("dev", "proc", "sys", "run", "tmp", "etc", "sbin", "usr/bin"):
        (root / name).mkdir(parents=True, exist_ok=True)
    for applet in listed("applets.txt"):
        if not (root / "bin" / applet).exists():
            (root / "bin" / applet).symlink_to("busybox")
    (root / "usr/bin/python3").unlink(missing_ok=True)
    (root / "usr/bin/python3").symlink_to(Path(PYTHON).name)
    (root / "etc/passwd").write_text("root:*:0:0:root:/run/home:/bin/sh\n")
    (root / "etc/group").write_text("root:x:0:\n")
    (root / "etc/shells").write_text("/bin/sh\n")
    shutil.copy(HERE / "guest/start", root / "sbin/start")
    compile_library(root)
    say("packing the root filesystem")
    # Not compressed: unpacking costs a guest under emulation a third of its Python's start.
    run(["mkfs.erofs", f"-T{EPOCH}", f"-U{ROOT_UUID}", "--all-root", str(out), str(root)])


def compile_library(root: Path) -> None:
    """Bytecode in the sources' place, made by the guest's own Python.

    Half the size, half the file operations of an import; without docstrings and assertions, because
    reading bytecode is what an import costs.
    """
    say("compiling the standard library")
    python = ["/usr/sbin/chroot", str(root), f"/{PYTHON}", "-I", "-S"]
    options = ["-q", "-b", "-o", "2", "--invalidation-mode", "unchecked-hash"]
    run(
        [*python, "-m", "compileall", *options, f"/{LIBRARY}"],
        env={"PYTHONHASHSEED": "0", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
    )
    for source in (root / LIBRARY).rglob("*.py"):
        source.unlink()
    for cache in list((root / LIBRARY).rglob("__pycache__")):
        shutil.rmtree(cache)


def remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
