"""The agent as one file: a deterministic zip application of what it imports, and nothing else.

Owns: finding the agent's modules and packing them. May import: errors, host.guest.bytecode,
host.vmm.image. Reads source files; never imports the agent.

The same sources give the same bytes, so a digest names an agent: times are fixed, names sorted, and
compiled code is written without the reference counts that make ``marshal`` differ between runs.
"""

from __future__ import annotations

import ast
import hashlib
import io
import platform
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from fabric.errors import EnvironmentFault
from fabric.host.guest.bytecode import compile_here, compile_with
from fabric.host.vmm.image import GuestImage

ENTRY_MODULE = "fabric.agent.main"

_PACKAGE = Path(__file__).resolve().parents[2]
_MAIN = "import sys\nfrom fabric.agent.main import main\n\nsys.exit(main())\n"
_EPOCH = (1980, 1, 1, 0, 0, 0)
"""The earliest time a zip file can carry."""

Compiler = Callable[[dict[str, bytes]], dict[str, bytes]]
"""Sources by module file, without suffix, to the contents of their .pyc files."""


@dataclass(frozen=True)
class Bundle:
    """The agent, ready to be pushed."""

    data: bytes
    digest: str
    """SHA-256 of ``data``, hex."""
    compiled: bool
    """Whether it carries bytecode (for exactly one Python version) instead of sources."""
    modules: tuple[str, ...]


def compiler_for(image: GuestImage) -> Compiler:
    """Who compiles for the image's guests: this Python where it is of the same version, else the
    guest's own, which the image keeps at hand. A guest would take seconds under emulation."""
    minor = ".".join(image.python_version.split(".")[:2])
    if minor == ".".join(platform.python_version_tuple()[:2]):
        return compile_here
    argv = ("/usr/sbin/chroot", str(image.python_root), f"/usr/bin/python{minor}", "-I", "-S")
    return partial(compile_with, argv)


def build_bundle(package: Path = _PACKAGE, compiler: Compiler | None = compile_here) -> Bundle:
    """Pack the agent found in the ``fabric`` package directory.

    ``compiler`` makes the bytecode that is shipped (see :func:`compiler_for`); None: sources are.
    Raises EnvironmentFault when the agent's sources are not there or do not parse.
    """
    found = _closure(package, ENTRY_MODULE)
    files = {"__main__": _MAIN.encode()}
    for name, path in sorted(found.items()):
        inside = name.replace(".", "/")
        files[f"{inside}/__init__" if path.name == "__init__.py" else inside] = path.read_bytes()
    contents = files if compiler is None else compiler(files)
    buffer = io.BytesIO()
    # Stored: what zlib makes of the same input differs between its versions. Deflating would save
    # an emulated guest some 0.1 s of the push, less what inflating costs it.
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for inside in files:
            entry = zipfile.ZipInfo(f"{inside}{'.pyc' if compiler else '.py'}", _EPOCH)
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, contents[inside])
    data = buffer.getvalue()
    return Bundle(
        data, hashlib.sha256(data).hexdigest(), compiler is not None, tuple(sorted(found))
    )


def _closure(package: Path, entry: str) -> dict[str, Path]:
    """``entry`` and every module of ``fabric`` it imports, anywhere in its text, transitively."""
    found: dict[str, Path] = {}
    pending = [entry]
    while pending:
        name = pending.pop()
        if name in found or (path := _locate(package, name)) is None:
            continue
        found[name] = path
        pending.append(name.rpartition(".")[0] or name)
        try:
            tree = ast.parse(path.read_bytes(), str(path))
        except SyntaxError as exc:
            raise EnvironmentFault(f"agent module {path}: {exc}") from exc
        pending.extend(_imports(tree))
    if entry not in found:
        raise EnvironmentFault(f"{package}: {entry} is not there", cure="install the package again")
    return found


def _locate(package: Path, name: str) -> Path | None:
    """Source of a module of ours; None for a name that is none (``from module import name``)."""
    parts = name.split(".")[1:]
    directory = package.joinpath(*parts)
    candidates = [directory / "__init__.py"]
    if parts:
        candidates.append(directory.with_name(directory.name + ".py"))
    return next((path for path in candidates if path.is_file()), None)


def _imports(tree: ast.Module) -> Iterator[str]:
    """Names of ours that a module may import. Imports for type checkers only are not followed."""
    skipped: set[int] = set()
    for node in ast.walk(tree):  # breadth first: an ``if`` comes before what is inside it
        if isinstance(node, ast.If) and _is_type_checking(node.test):
            skipped.update(id(inner) for child in node.body for inner in ast.walk(child))
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name.split(".")[0] == "fabric")
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "fabric":
            yield str(node.module)
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _is_type_checking(test: ast.expr) -> bool:
    return (isinstance(test, ast.Name) and test.id == "TYPE_CHECKING") or (
        isinstance(test, ast.Attribute) and test.attr == "TYPE_CHECKING"
    )
