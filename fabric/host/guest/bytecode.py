"""Compiling modules for the guest's Python, whichever that is.

Owns: what the agent's bytecode looks like. May import: errors; at the top only what a guest's
standard library has, because another Python runs this very text: it reads sources from standard
input and writes bytecode to standard output.
"""

from __future__ import annotations

import ast
import importlib.util
import marshal
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_UNCHECKED_HASH_PYC = 0b01
"""PEP 552: hash-based, and not to be compared with a source the guest does not have."""

_MARSHAL_WITHOUT_REFERENCES = 2
"""From version 3 on marshal writes reference flags that depend on the process's history."""

DEADLINE = 60.0
"""Seconds for another Python to compile the agent: it takes less than one."""


def compile_here(sources: Mapping[str, bytes]) -> dict[str, bytes]:
    """Contents of .pyc files for this Python, by the same names. Raises SyntaxError."""
    return {name: _compiled(name, source) for name, source in sources.items()}


def compile_with(python: Sequence[str], sources: Mapping[str, bytes]) -> dict[str, bytes]:
    """The same by the Python that ``python`` (an argv) starts. Raises EnvironmentFault."""
    import subprocess
    from pathlib import Path

    from fabric.errors import EnvironmentFault

    argv = [*python, "-c", Path(__file__).read_text()]
    given = marshal.dumps(dict(sources), _MARSHAL_WITHOUT_REFERENCES)
    try:
        done = subprocess.run(argv, input=given, capture_output=True, timeout=DEADLINE, check=True)
        made: dict[str, bytes] = marshal.loads(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError, EOFError) as exc:
        why = getattr(exc, "stderr", b"").decode(errors="replace").strip().splitlines()[-1:]
        raise EnvironmentFault(
            f"the guest's Python does not compile the agent: {' '.join(why) or exc}",
            cure="run as root; if that is so, `make image`",
        ) from exc
    return made


def _compiled(name: str, source: bytes) -> bytes:
    # No docstrings: they are a third of the bytecode, and nobody reads them in there.
    # Assertions stay (optimize=1 would drop them).
    tree = _without_docstrings(ast.parse(source))
    code = compile(tree, f"{name}.py", "exec", dont_inherit=True, optimize=0)
    header = (
        importlib.util.MAGIC_NUMBER
        + _UNCHECKED_HASH_PYC.to_bytes(4, "little")
        + importlib.util.source_hash(source)
    )
    return header + marshal.dumps(code, _MARSHAL_WITHOUT_REFERENCES)


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


if __name__ == "__main__":
    result = compile_here(marshal.load(sys.stdin.buffer))
    sys.stdout.buffer.write(marshal.dumps(result, _MARSHAL_WITHOUT_REFERENCES))
