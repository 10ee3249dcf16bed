"""Copies of templates on disk: after a reboot of the host none has to be booted and saved again.

Owns: the directory of copies, and when one is what it was. May import: errors, and its neighbours
in host. A copy is good for exactly the ingredients the template was made of, processor included:
a saved guest counts its time in ticks of the processor it was saved on. Both memory and state are
compared with the digests written down with them, because a disk may have lost what a crash did not
let it write. Only root may read a copy. Callers hold the template's lock.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fabric.host.vmm.image import sha256_of

if TYPE_CHECKING:
    from fabric.host.guest.ingredients import Ingredients
    from fabric.host.guest.template import Template

TEMPLATE_COPIES = "templates"
"""Directory of copies, in the state directory."""

FILES = ("memory", "state", "kernel", "initrd")
_MANIFEST = "copy.json"
_DRAFT_PREFIX = ".draft-"
_PAGE = 4096
_CHUNK = 256 * _PAGE


class TemplateArchive:
    """The constructor makes nothing. Methods block."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def keep(self, template: Template, ingredients: Ingredients) -> Path:
        """Write a copy of the template, in place of those nobody will use again; where it is.

        Raises OSError (a full disk); then what was there is there still.
        """
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        place = self.directory / ingredients.key
        draft = self.directory / f"{_DRAFT_PREFIX}{ingredients.key}"
        shutil.rmtree(draft, ignore_errors=True)
        try:
            draft.mkdir(mode=0o700)
            for name in FILES:
                copy_sparse(template.directory / name, draft / name)
            digests = {name: sha256_of(draft / name) for name in FILES}
            document = {"ingredients": asdict(ingredients), "digests": digests}
            _write(draft / _MANIFEST, json.dumps(document, indent=1).encode() + b"\n")
            remove(place)
            draft.rename(place)
        except OSError:
            shutil.rmtree(draft, ignore_errors=True)
            raise
        return place

    def restore(self, ingredients: Ingredients, target: Path) -> bool:
        """Put the files of the copy into ``target``, a directory; False when there is no copy, or
        it is not what was written. Raises OSError (a full tmpfs)."""
        place = self.directory / ingredients.key
        try:
            document = _manifest(place)
            digests: dict[str, str] = document["digests"]
            if document["ingredients"] != asdict(ingredients) or set(digests) != set(FILES):
                return False
        except (OSError, ValueError, KeyError, TypeError):
            return False
        for name in FILES:
            try:
                copy_sparse(place / name, target / name)
            except FileNotFoundError:
                return False
            if sha256_of(target / name) != digests[name]:
                return False
        return True


def made_of(place: Path) -> dict[str, Any]:
    """The ingredients of the copy in this directory. Raises OSError, ValueError, KeyError."""
    found: dict[str, Any] = _manifest(place)["ingredients"]
    return found


def remove(place: Path) -> None:
    """Remove a copy: its manifest first, without which nobody takes the rest for one."""
    (place / _MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(place, ignore_errors=True)


def copy_sparse(source: Path, target: Path, mode: int = 0o600) -> None:
    """Copy a file, its zero pages as holes; ``target`` must not exist. Raises OSError."""
    zeros = bytes(_PAGE)
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    with source.open("rb", buffering=0) as reader, open(descriptor, "wb", buffering=0) as writer:  # noqa: PTH123
        while chunk := reader.read(_CHUNK):
            for at in range(0, len(chunk), _PAGE):
                page = chunk[at : at + _PAGE]
                if page == zeros[: len(page)]:
                    writer.seek(len(page), os.SEEK_CUR)
                else:
                    writer.write(page)
        writer.truncate(reader.tell())
        os.fsync(writer.fileno())


def _write(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with open(descriptor, "wb") as file:  # noqa: PTH123 - a descriptor
        file.write(data)
        file.flush()
        os.fsync(descriptor)


def _manifest(place: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((place / _MANIFEST).read_text())
    return document
