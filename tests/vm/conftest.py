"""Labs on real guests. Everything a test brings up is taken down and proven gone."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.vm.lab import FABRIC, WEB_SERVER, Lab

VM_TESTS = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if VM_TESTS in item.path.parents:
            item.add_marker(pytest.mark.vm)


@contextmanager
def lab(name: str, text: str, directory: Path, *options: str) -> Iterator[Lab]:
    """Bring up a topology given as text under another name; take it down and look for remains."""
    file = directory / f"{name}.yaml"
    file.write_text(re.sub(r"^name: .*", f"name: {name}", text, flags=re.MULTILINE))
    shutil.copy(WEB_SERVER, directory)
    made = Lab(name, file, options)
    # Of a run that was cut off; one that is up stays, and is a conflict.
    subprocess.run([FABRIC, "gc", "--lab", name], check=True, timeout=300, capture_output=True)
    try:
        made.up()
        yield made
    finally:
        subprocess.run([FABRIC, "down", "--lab", name], check=True, timeout=300)
        assert made.domains() == []
        assert made.namespaces() == []
