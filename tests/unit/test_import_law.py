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
    "sim": {"errors", "wire", "routing"},
    "cli": {"errors", "wire", "routing", "host", "lab", "sim"},
}
# the folders of host, lowest first: each may import those before it, and the foundation
HOST_FOLDERS = ["store", "network", "vmm", "guest", "links", "control", "upkeep"]
HOST_TOP = {"main", "assembly", "api", "views"}
"""Modules directly in host that stand on everything; the others are its foundation."""
# third-party library -> the one module that may import it (typer: the one package)
OWNERS = {
    "libvirt": "fabric/host/vmm/hypervisor.py",
    "libvirt_qemu": "fabric/host/vmm/monitor.py",
    "paramiko": "fabric/host/guest/provision.py",
    "jinja2": "fabric/host/vmm/domain_xml.py",
    "pyroute2": "fabric/host/network/netlink.py",
    "networkx": "fabric/lab/graphml.py",
    "pygal": "fabric/cli/plot.py",
}
IMPURE = {"socket", "time", "os", "random", "secrets", "subprocess", "asyncio", "selectors"}
GUEST_STDLIB = {"_sha256"}
"""What the guest's Python 3.11 has and a later one here may not."""

MODULES = sorted(p for p in PACKAGE.rglob("*.py"))


def imports(path: Path) -> set[str]:
    """Dotted names of every module a file imports, at any depth of its code."""
    return modules_named(ast.parse(path.read_text()))


def modules_named(tree: ast.AST) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import"
            module = node.module or ""
            found.add(module)
            if module == "fabric":
                found |= {f"fabric.{alias.name}" for alias in node.names}
    return found


def at_run_time(path: Path) -> set[str]:
    """As :func:`imports`, without what only type checkers import."""
    tree = ast.parse(path.read_text())
    tree.body = [
        node
        for node in tree.body
        if not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    ]
    return modules_named(tree)


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
    if here in {"wire", "routing", "sim"}:
        seeded = {"random"} if here == "sim" else set()
        assert not tops & (IMPURE - seeded), "wire, routing and sim are pure"
    if here in {"errors", "wire", "routing", "agent"}:
        foreign = tops - set(sys.stdlib_module_names) - GUEST_STDLIB
        assert not foreign, f"{here} runs in the guest: stdlib only"
    if "typer" in tops:
        assert here == "cli"


@pytest.mark.parametrize(
    "path", sorted((PACKAGE / "host").rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE))
)
def test_folders_of_host_stand_on_those_below(path: Path) -> None:
    where = path.relative_to(PACKAGE / "host").parts
    if len(where) == 1 and path.stem in HOST_TOP | {"__init__"}:
        return
    here = HOST_FOLDERS.index(where[0]) if len(where) > 1 else -1
    for name in at_run_time(path):
        if name.startswith("fabric.host."):
            target = name.split(".")[2]
            assert target not in HOST_TOP, f"{name} is the top of host"
            if target in HOST_FOLDERS:
                assert HOST_FOLDERS.index(target) <= here, f"{name} stands above"


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
