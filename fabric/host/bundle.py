"""The agent as one file: a deterministic zip application of what it imports, and nothing else.

Owns: finding the agent's modules and packing them. May import: errors. Reads source files; never
imports the agent.

The same sources give the same bytes, so a digest names an agent: times are fixed, names sorted, and
compiled code is written without the reference counts that make ``marshal`` differ between runs.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import io
import marshal
import platform
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fabric.errors import EnvironmentFault

ENTRY_MODULE = "fabric.agent.main"

_PACKAGE = Path(__file__).resolve().parent.parent
_MAIN = "import sys\nfrom fabric.agent.main import main\n\nsys.exit(main())\n"
_EPOCH = (1980, 1, 1, 0, 0, 0)
"""The earliest time a zip file can carry."""

_UNCHECKED_HASH_PYC = 0b01
"""PEP 552: hash-based, and not to be compared with a source the guest does not have."""

_MARSHAL_WITHOUT_REFERENCES = 2
"""From version 3 on marshal writes reference flags that depend on the process's history."""


@dataclass(frozen=True)
class Bundle:
    """The agent, ready to be pushed."""

    data: bytes
    digest: str
    """SHA-256 of ``data``, hex."""
    compiled: bool
    """Whether it carries bytecode (for exactly one Python version) instead of sources."""
    modules: tuple[str, ...]


def build_bundle(package: Path = _PACKAGE, python: str | None = None) -> Bundle:
    """Pack the agent found in the ``fabric`` package directory.

    ``python`` is the guest's version ("3.11", "3.11.2", …; the image's manifest has it). Where the
    running interpreter is of the same minor version, bytecode is shipped: the guest would take
    seconds to compile it itself under emulation. Unknown (None) means Debian 12's, 3.11.
    Raises EnvironmentFault when the agent's sources are not there or do not parse.
    """
    minor = ".".join((python or "3.11").split(".")[:2])
    compiled = minor == ".".join(platform.python_version_tuple()[:2])
    sources = _closure(package, ENTRY_MODULE)
    buffer = io.BytesIO()
    # Stored: what zlib makes of the same input differs between its versions. Deflating would save
    # an emulated guest some 0.1 s of the push, less what inflating costs it.
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        _add(archive, "__main__", _MAIN.encode(), compiled)
        for name, path in sorted(sources.items()):
            inside = name.replace(".", "/")
            if path.name == "__init__.py":
                inside += "/__init__"
            _add(archive, inside, path.read_bytes(), compiled)
    data = buffer.getvalue()
    return Bundle(data, hashlib.sha256(data).hexdigest(), compiled, tuple(sorted(sources)))


def _add(archive: zipfile.ZipFile, inside: str, source: bytes, compiled: bool) -> None:
    content, suffix = source, ".py"
    if compiled:
        # No docstrings: they are a third of the bytecode, and nobody reads them in there.
        # Assertions stay (optimize=1 would drop them).
        tree = _without_docstrings(ast.parse(source))
        code = compile(tree, f"{inside}.py", "exec", dont_inherit=True, optimize=0)
        header = (
            importlib.util.MAGIC_NUMBER
            + _UNCHECKED_HASH_PYC.to_bytes(4, "little")
            + importlib.util.source_hash(source)
        )
        content, suffix = header + marshal.dumps(code, _MARSHAL_WITHOUT_REFERENCES), ".pyc"
    entry = zipfile.ZipInfo(inside + suffix, _EPOCH)
    entry.external_attr = 0o644 << 16
    archive.writestr(entry, content)


def _without_docstrings(tree: ast.Module) -> ast.Module:
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(tree):
        if not isinstance(node, documented):
            continue
        # Attribute docstrings go the same way: any statement that is only a string.
        body = [s for s in node.body if not _is_string(s)]
        node.body = body or [ast.copy_location(ast.Pass(), node.body[0])] if node.body else []
    return tree


def _is_string(statement: ast.stmt) -> bool:
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
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
