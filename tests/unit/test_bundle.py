"""The agent's bundle is deterministic, complete and minimal."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from fabric.errors import EnvironmentFault
from fabric.host.bundle import build_bundle

BUILD = "import sys; from fabric.host.bundle import build_bundle; print(build_bundle().digest)"


def package(root: Path, files: dict[str, str]) -> Path:
    top = root / "fabric"
    for name, text in files.items():
        path = top / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return top


SMALL = {
    "__init__.py": '"""Top."""\n__version__ = "1"\n',
    "agent/__init__.py": "",
    "agent/main.py": (
        '"""Documented."""\n'
        "import json\n"
        "from fabric.wire import packet\n"
        "def main():\n"
        '    """Documented too."""\n'
        "    from fabric.routing.late import WORD\n"
        "    assert packet.SIZE == 40\n"
        "    print(WORD, sorted({'a', 'b', 'c'}), json.dumps(1), __doc__, main.__doc__)\n"
    ),
    "wire/__init__.py": "",
    "wire/packet.py": "SIZE = 40\n",
    "wire/unused.py": "",
    "routing/__init__.py": "",
    "routing/late.py": "WORD = 'late'\n",
    "host/__init__.py": "",
    "host/main.py": "",
}


def run_bundle(data: bytes, directory: Path) -> subprocess.CompletedProcess[str]:
    path = directory / "agent.pyz"
    path.write_bytes(data)
    argv = [sys.executable, "-I", "-S", str(path)]
    return subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)


@pytest.mark.parametrize("python", ["3.11", "2.7"])
def test_the_bundle_runs_alone(tmp_path: Path, python: str) -> None:
    bundle = build_bundle(package(tmp_path, SMALL), python)
    assert bundle.compiled == (python == "3.11" == f"{sys.version_info[0]}.{sys.version_info[1]}")
    result = run_bundle(bundle.data, tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("late ['a', 'b', 'c'] 1 ")


def test_only_what_the_agent_imports_is_in_it(tmp_path: Path) -> None:
    bundle = build_bundle(package(tmp_path, SMALL))
    assert bundle.modules == (
        "fabric",
        "fabric.agent",
        "fabric.agent.main",
        "fabric.routing",
        "fabric.routing.late",
        "fabric.wire",
        "fabric.wire.packet",
    )


def test_imports_for_type_checkers_are_not_followed(tmp_path: Path) -> None:
    files = SMALL | {
        "wire/packet.py": (
            "SIZE = 40\nTYPE_CHECKING = False\n"
            "if TYPE_CHECKING:\n    from fabric.host import main\n"
        )
    }
    assert "fabric.host" not in build_bundle(package(tmp_path, files)).modules


def test_a_changed_source_is_another_bundle(tmp_path: Path) -> None:
    before = build_bundle(package(tmp_path, SMALL)).digest
    package(tmp_path, {"wire/packet.py": "SIZE = 41\n"})
    assert build_bundle(tmp_path / "fabric").digest != before


def test_an_unrelated_change_is_the_same_bundle(tmp_path: Path) -> None:
    before = build_bundle(package(tmp_path, SMALL)).digest
    package(tmp_path, {"host/main.py": "CHANGED = True\n", "wire/unused.py": "X = 1\n"})
    assert build_bundle(tmp_path / "fabric").digest == before


def test_the_real_agent_is_the_same_in_any_process() -> None:
    digests = {
        subprocess.run(
            [sys.executable, "-c", BUILD],
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": str(Path(__file__).parents[2])},
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(digests) == 1


def test_the_real_agent_needs_nothing_of_the_host(tmp_path: Path) -> None:
    bundle = build_bundle()
    assert not [name for name in bundle.modules if name.startswith("fabric.host")]
    # Its imports work with nothing but the standard library; then it wants a channel.
    result = run_bundle(bundle.data, tmp_path)
    assert "ImportError" not in result.stderr
    assert "ModuleNotFoundError" not in result.stderr


def test_an_agent_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFault, match="not there"):
        build_bundle(package(tmp_path, {"__init__.py": ""}))
