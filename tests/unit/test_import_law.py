"""The architecture's import law, read off the syntax trees."""

from __future__ import annotations

import ast
import sys
from collections import defaultdict
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "fabric"

# layer -> what it may import of ours
LAW = {
    "errors": set(),
    "wire": {"errors"},
    "routing": {"errors", "wire"},
    "agent": {"errors", "wire", "routing"},
    "host": {"errors", "wire", "routing"},
    "lab": {"errors", "wire", "routing", "host"},
    "cli": {"errors", "wire", "routing", "host", "lab"},
}
# third-party library -> the one module that may import it (typer: the one package)
OWNERS = {
    "libvirt": "fabric/host/hypervisor.py",
    "libvirt_qemu": "fabric/host/hypervisor.py",
    "paramiko": "fabric/host/provision.py",
    "jinja2": "fabric/host/domain_xml.py",
    "pyroute2": "fabric/host/netlink.py",
}
IMPURE = {"socket", "time", "os", "random", "secrets", "subprocess", "asyncio", "selectors"}
GUEST_STDLIB = {"_sha256"}
"""What the guest's Python 3.11 has and a later one here may not."""

MODULES = sorted(p for p in PACKAGE.rglob("*.py"))


def imports(path: Path) -> set[str]:
    """Dotted names of every module a file imports, at any depth of its code."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            module = node.module or ""
            found.add(module)
            if module == "fabric":
                found |= {f"fabric.{alias.name}" for alias in node.names}
    return found


def layer(path: Path) -> str:
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE.parent)))
def test_module_keeps_the_import_law(path: Path) -> None:
    here = layer(path)
    if here == "__init__":
        return
    names = imports(path)
    allowed = LAW[here] | {here, "__version__"}
    ours = {n.split(".")[1] for n in names if n.startswith("fabric.")}
    assert ours <= allowed, f"{here} may import {sorted(allowed)}"
    relative = str(path.relative_to(PACKAGE.parent))
    for library, owner in OWNERS.items():
        if library in {n.split(".")[0] for n in names}:
            assert relative == owner, f"{library} belongs to {owner} alone"
    tops = {n.split(".")[0] for n in names if n} - {"fabric"}
    if here in {"wire", "routing"}:
        assert not tops & IMPURE, "wire and routing are pure"
    if here in {"errors", "wire", "routing", "agent"}:
        foreign = tops - set(sys.stdlib_module_names) - GUEST_STDLIB
        assert not foreign, f"{here} runs in the guest: stdlib only"
    if "typer" in tops:
        assert here == "cli"


def test_only_the_cli_prints_exits_or_reads_the_environment() -> None:
    offences = defaultdict(list)
    for path in MODULES:
        if layer(path) in {"cli", "__init__"}:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                if node.func.id in {"print", "exit", "quit"}:
                    offences[str(path)].append(node.lineno)
            elif ast.unparse(node) in {"os.environ", "os.getenv"}:
                offences[str(path)].append(getattr(node, "lineno", 0))
    assert not offences
