"""The agent's bundle is deterministic, complete and minimal."""

from __future__ import annotations

import io
import os
import platform
import subprocess
import sys
import zipfile
from functools import partial
from pathlib import Path

import pytest

from fabric.errors import EnvironmentFault
from fabric.host.guest.bundle import Compiler, build_bundle, compiler_for
from fabric.host.guest.bytecode import compile_here, compile_with
from fabric.host.vmm.image import GuestImage, load_image

STATE = Path(os.environ.get("FABRIC_STATE", "/var/lib/fabric"))
BUILD = (
    "import sys; from fabric.host.guest.bundle import build_bundle; print(build_bundle().digest)"
)


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


@pytest.mark.parametrize("compiler", [compile_here, None])
def test_the_bundle_runs_alone(tmp_path: Path, compiler: Compiler | None) -> None:
    bundle = build_bundle(package(tmp_path, SMALL), compiler)
    assert bundle.compiled == (compiler is not None)
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


def test_another_python_compiles_the_same_way() -> None:
    other = partial(compile_with, (sys.executable, "-I", "-S"))
    assert build_bundle(compiler=other).data == build_bundle(compiler=compile_here).data


def test_a_python_that_does_not_compile_is_an_error() -> None:
    with pytest.raises(EnvironmentFault, match=r"does not compile the agent: .*SyntaxError"):
        compile_with((sys.executable,), {"broken": b"def"})
    with pytest.raises(EnvironmentFault, match="No such file"):
        compile_with(("/no/python",), {})


def image_of(python_version: str, directory: Path = Path("/image")) -> GuestImage:
    key = directory / "key"
    return GuestImage(directory, "digest", "6.1", python_version, 128, "ssh-ed25519 A", key)


def test_a_guest_of_this_pythons_version_is_compiled_for_right_here() -> None:
    assert compiler_for(image_of(platform.python_version())) is compile_here


def test_for_a_guest_of_another_version_its_own_python_compiles() -> None:
    compiler = compiler_for(image_of("3.99.1"))
    assert isinstance(compiler, partial)
    (argv,) = compiler.args
    assert argv == ("/usr/sbin/chroot", "/image/python", "/usr/bin/python3.99", "-I", "-S")


@pytest.mark.root
def test_the_images_own_python_compiles_the_agent() -> None:
    """As it would on a machine of another Python version: the same bytes."""
    image = load_image(STATE)
    argv = ("/usr/sbin/chroot", str(image.python_root), "/usr/bin/python3.11", "-I", "-S")
    made = build_bundle(compiler=partial(compile_with, argv))
    code = zipfile.ZipFile(io.BytesIO(made.data)).read("__main__.pyc")
    assert code[:4] == (3495).to_bytes(2, "little") + b"\r\n", "magic number of Python 3.11"
    if platform.python_version().startswith("3.11."):
        assert made.data == build_bundle(compiler=compile_here).data
