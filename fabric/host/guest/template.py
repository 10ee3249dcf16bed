"""Templates: booted guests with a waiting agent, kept as files that new guests are copies of.

Owns: the directory of templates on tmpfs, what makes one valid, its lock. May import: errors,
host.vmm.domain_xml, host.vmm.image, host.vmm.libvirtd. Who boots and saves the guest is
:mod:`host.guest.tiers`.

One directory serves all labs and orchestrators of the machine. A template is named by the digest of
everything it depends on, appears whole (one rename) and is made once (file lock, which the kernel
releases when its holder dies). Its memory holds what every guest's holds at that point, the image's
SSH host key among it: root and QEMU's group may read it, nobody else.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import grp
import json
import os
import shutil
import stat
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from fabric.errors import EnvironmentFault, NoSpace
from fabric.host.guest import template_archive
from fabric.host.guest.ingredients import Ingredients
from fabric.host.guest.template_archive import TemplateArchive, copy_sparse
from fabric.host.vmm.image import sha256_of

KERNEL_STUB = 64 * 1024
"""Bytes of the kernel a clone's QEMU gets: it wants a header to look at and never runs it. The
whole one would be 14 MB of private memory in every clone."""

INITRD_STUB = 4096

LOCK_POLL = 0.1
"""Seconds between looks at a lock that somebody else holds for the 6 to 20 s of a boot."""

_DRAFT_PREFIX = ".draft-"
_QEMU_GROUPS = ("libvirt-qemu", "qemu")
"""Whom libvirt runs QEMU as, on Debian and Ubuntu, elsewhere."""


@dataclass(frozen=True)
class Template:
    """A valid template."""

    directory: Path
    memory_stamp: tuple[int, int, int]
    """(inode, size, time of change in ns) of the memory file when it was published."""

    @property
    def memory(self) -> Path:
        return self.directory / "memory"

    @property
    def state(self) -> Path:
        return self.directory / "state"

    @property
    def kernel(self) -> Path:
        return self.directory / "kernel"

    @property
    def initrd(self) -> Path:
        return self.directory / "initrd"

    def problem(self) -> str:
        """Why it cannot be used now, in words; empty when it can. Costs one system call.

        QEMU opens the memory for writing even where it only copies. One that was taken over could
        write to it: then the time of change tells.
        """
        try:
            found = _stamp(self.memory)
        except OSError as exc:
            return f"template {self.directory.name} is gone: {exc.strerror}"
        if found != self.memory_stamp:
            return f"template {self.directory.name}: its memory was changed after it was made"
        return ""


@dataclass(frozen=True)
class Draft:
    """A template in the making."""

    directory: Path

    @property
    def memory(self) -> Path:
        """Where the guest's memory is while it runs."""
        return self.directory / "running-memory"

    @property
    def state(self) -> Path:
        return self.directory / "state"


class TemplateStore:
    """The template of one set of ingredients in one directory. Methods block, but for lock()."""

    def __init__(
        self, directory: Path, ingredients: Ingredients, archive: TemplateArchive | None = None
    ) -> None:
        """``archive``: where a copy survives reboots; None: nowhere."""
        self.archive = archive
        self.directory = directory
        self.ingredients = ingredients
        self.key = ingredients.key
        self._place = directory / self.key

    def find(self) -> Template | None:
        """The template, if it is there and whole. Raises EnvironmentFault (see :meth:`begin`)."""
        _require_own(self.directory)
        try:
            manifest = _manifest(self._place)
            template = Template(self._place, tuple(manifest["memory_stamp"]))
            if sha256_of(template.state) != manifest["state"] or template.problem():
                return None
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return template

    @contextlib.asynccontextmanager
    async def lock(self) -> AsyncIterator[None]:
        """Be the only one on this machine that makes this template.

        Raises EnvironmentFault."""
        _require_own(self.directory)
        descriptor = _open_lock(self.directory / f"{self.key}.lock")
        try:
            # Polled, not waited for in a thread: nothing could end that one at shutdown.
            while not _try_lock(descriptor):
                await asyncio.sleep(LOCK_POLL)
            yield
        finally:
            os.close(descriptor)

    def begin(self) -> Draft:
        """A directory to make the template in. Hold the lock; :meth:`abandon` it in any case.

        Raises NoSpace (tmpfs that is full would kill the guest in the midst of its boot),
        EnvironmentFault (the directory is not ours alone)."""
        _require_own(self.directory)
        draft = Draft(self.directory / f"{_DRAFT_PREFIX}{self.key}")
        self.abandon(draft)  # of a maker that was killed
        try:
            draft.directory.mkdir(mode=0o700)
            _share(draft.directory, 0o750)
            with draft.memory.open("xb") as file:
                os.posix_fallocate(file.fileno(), 0, self.ingredients.memory_mib << 20)
            _share(draft.memory, 0o660)
        except OSError as exc:
            self.abandon(draft)
            raise translated(exc, self.directory) from exc
        return draft

    def abandon(self, draft: Draft) -> None:
        """Remove what is left of a draft: nothing, once it was published."""
        shutil.rmtree(draft.directory, ignore_errors=True)

    def publish(self, draft: Draft, kernel: Path) -> Template:
        """Make the draft the template. Its guest must be gone. Raises NoSpace, EnvironmentFault."""
        try:
            made = draft.directory / "memory"
            # A copy: whatever still has the draft's memory mapped cannot change the template's.
            # And a sparse one: half of a fresh guest's memory was never touched.
            copy_sparse(draft.memory, made)
            draft.memory.unlink()
            _share(made, 0o660)
            with kernel.open("rb") as file:
                (draft.directory / "kernel").write_bytes(file.read(KERNEL_STUB))
            (draft.directory / "initrd").write_bytes(bytes(INITRD_STUB))
            for name in ("kernel", "initrd"):
                _share(draft.directory / name, 0o640)
            return self._seal(draft)
        except OSError as exc:
            raise translated(exc, self.directory) from exc

    def _seal(self, draft: Draft) -> Template:
        stamp = _stamp(draft.directory / "memory")
        manifest = {
            "ingredients": asdict(self.ingredients),
            "memory_stamp": stamp,
            "state": sha256_of(draft.state),
        }
        (draft.directory / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
        _remove(self._place)
        draft.directory.rename(self._place)
        return Template(self._place, stamp)

    def restore(self) -> Template | None:
        """The template from its copy on disk, as it would be after a reboot; None when there is no
        good one. Hold the lock. Raises NoSpace, EnvironmentFault."""
        if self.archive is None:
            return None
        _require_own(self.directory)
        draft = Draft(self.directory / f"{_DRAFT_PREFIX}{self.key}")
        self.abandon(draft)
        try:
            draft.directory.mkdir(mode=0o700)
            if not self.archive.restore(self.ingredients, draft.directory):
                return None
            _share(draft.directory, 0o750)
            _share(draft.directory / "memory", 0o660)
            for name in ("state", "kernel", "initrd"):
                _share(draft.directory / name, 0o640)
            return self._seal(draft)
        except OSError as exc:
            raise translated(exc, self.directory) from exc
        finally:
            self.abandon(draft)

    def keep_copy(self, template: Template) -> None:
        """Copy the template to disk, for after a reboot. Hold the lock. Raises OSError."""
        if self.archive is not None:
            place = self.archive.keep(template, self.ingredients)
            if template.problem():
                template_archive.remove(place)  # what was copied was bad already


def stale_copies(directory: Path, current: Ingredients) -> list[Path]:
    """Copies on disk that nobody will use again, as :func:`stale` has it; torn ones, too. A copy
    in the making is not told from one that was abandoned: it costs the copy, nothing else."""
    found = []
    for place in sorted(directory.glob("*")):
        try:
            if not place.name.startswith(_DRAFT_PREFIX):
                written = Ingredients(**template_archive.made_of(place))
                if replace(written, memory_mib=current.memory_mib) == current:
                    continue
        except (OSError, ValueError, KeyError, TypeError):
            pass
        found.append(place)
    return found


def stale(directory: Path, current: Ingredients) -> list[Path]:
    """Templates that nobody will use again: of another image, QEMU, agent …, torn or abandoned.

    Guests of any memory size are current: labs may differ in that. Nothing when the directory is
    not ours.
    """
    found = []
    try:
        _require_own(directory, create=False)
        places = sorted(path for path in directory.iterdir() if path.is_dir())
    except (OSError, EnvironmentFault):
        return []
    for place in places:
        if place.name.startswith(_DRAFT_PREFIX):
            if not _is_locked(_lock_of(place)):
                found.append(place)
            continue
        try:
            made_of = Ingredients(**_manifest(place)["ingredients"])
            if replace(made_of, memory_mib=current.memory_mib) == current:
                continue
        except (OSError, ValueError, KeyError, TypeError):
            pass  # no manifest we can read: torn
        found.append(place)
    return found


def abandoned(directory: Path) -> list[str]:
    """Names of drafts that nobody is working on any more."""
    try:
        _require_own(directory, create=False)
        drafts = sorted(directory.glob(_DRAFT_PREFIX + "*"))
    except (OSError, EnvironmentFault):
        return []
    return [draft.name for draft in drafts if not _is_locked(_lock_of(draft))]


def remove_abandoned(directory: Path, name: str) -> None:
    """Remove such a draft, unless somebody took it up since. Raises OSError."""
    place = directory / name
    descriptor = _open_lock(_lock_of(place))
    try:
        if _try_lock(descriptor):
            shutil.rmtree(place, ignore_errors=True)
    finally:
        os.close(descriptor)


def _open_lock(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)


def _lock_of(draft: Path) -> Path:
    return draft.with_name(f"{draft.name.removeprefix(_DRAFT_PREFIX)}.lock")


def remove(place: Path) -> None:
    """Remove what :func:`stale` found, and its lock file."""
    _remove(place)
    place.with_name(f"{place.name}.lock").unlink(missing_ok=True)


def _remove(place: Path) -> None:
    # The manifest goes first: without it nobody takes the rest for a template.
    (place / "manifest.json").unlink(missing_ok=True)
    shutil.rmtree(place, ignore_errors=True)


def _manifest(place: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((place / "manifest.json").read_text())
    return document


def _stamp(path: Path) -> tuple[int, int, int]:
    facts = path.stat()
    return facts.st_ino, facts.st_size, facts.st_mtime_ns


def _require_own(directory: Path, *, create: bool = True) -> None:
    # /dev/shm is everybody's: a directory or link somebody else put there is not to be trusted.
    with contextlib.suppress(FileExistsError):
        if create:
            directory.mkdir(mode=0o711)
    facts = directory.lstat()
    mode = stat.S_IMODE(facts.st_mode)
    if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.geteuid() or mode & 0o022:
        raise EnvironmentFault(
            f"{directory} is not a directory that only this user may write to",
            cure="move it away; nothing of the fabric needs what is in it",
        )


def _share(path: Path, mode: int) -> None:
    """Let QEMU's group at it, as ``mode`` says; where there is no such group QEMU runs as root."""
    for name in _QEMU_GROUPS:
        with contextlib.suppress(KeyError):
            os.chown(path, -1, grp.getgrnam(name).gr_gid)
            break
    path.chmod(mode)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_locked(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return not _try_lock(file.fileno())
    except FileNotFoundError:
        return False


def translated(exc: OSError, directory: Path) -> EnvironmentFault:
    """The fabric error for one of the file system that templates are on."""
    if exc.errno == errno.ENOSPC:
        return NoSpace(f"{directory}: no room for a template", cure="free space on its tmpfs")
    return EnvironmentFault(f"{directory}: {exc}", cure="mend it; until then guests boot cold")
