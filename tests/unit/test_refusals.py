"""A machine or file that is not fit: `fabric up` says what is wrong, how to mend it, and stops."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from fabric.errors import ConfigError, FabricError, HypervisorDown, ImageMissing, NotRoot
from fabric.lab import builder, preflight
from fabric.lab.spec import LabSpec, Options
from fabric.lab.topology_file import load_topology
from tests.unit import lab_samples
from tests.unit.test_lab_builder import LAB, ours, run_dir

__all__ = ["run_dir"]  # a fixture

Worsen = Callable[[pytest.MonkeyPatch], None]
TOPOLOGY = f"""
name: {LAB}
hosts:
  h1: {{}}
  h2: {{services: {{web: [./serve, "8000"]}}}}
links: [h1-h2]
"""


def not_root(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(os, "geteuid", lambda: 1000)


def no_image(_: pytest.MonkeyPatch) -> None:
    """The state directory of these tests is empty."""


def no_libvirt(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("fabric.host.vmm.image.load_image", lambda _: None)


@pytest.mark.root
@pytest.mark.parametrize(
    ("worsen", "error", "cure"),
    [
        (not_root, NotRoot, "sudo"),
        (no_image, ImageMissing, "make image"),
        (no_libvirt, HypervisorDown, "FABRIC_LIBVIRT_URI"),
    ],
)
def test_a_machine_that_is_not_fit_stays_as_it_is(
    tmp_path: Path,
    run_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    worsen: Worsen,
    error: type[FabricError],
    cure: str,
) -> None:
    options = Options(
        run_dir=run_dir,
        state_dir=tmp_path / "state",
        libvirt_uri="qemu+unix:///system?socket=/nonexistent",
    )
    spec = lab_spec(tmp_path, options)
    machine = replace(lab_samples.machine(tmp_path), check=preflight.require_machine)
    with monkeypatch.context() as patch:
        worsen(patch)
        with pytest.raises(error) as caught:
            builder.up(spec, machine)
    assert cure in caught.value.cure
    assert ours() == [] and not run_dir.exists()


@pytest.mark.root
def test_a_service_whose_port_is_taken_is_the_files_mistake(tmp_path: Path, run_dir: Path) -> None:
    spec = lab_spec(tmp_path, Options(run_dir=run_dir))
    serve = tmp_path / "serve"
    serve.write_text("#!/bin/sh\necho port $1: Address already in use >&2; exit 1\n")
    serve.chmod(0o755)
    with pytest.raises(
        ConfigError, match=r"service web of h2 ended.*\nport 8000: Address"
    ) as caught:
        builder.up(spec, lab_samples.machine(tmp_path))
    assert "hosts.h2.services.web" in caught.value.cure and spec.path in caught.value.cure
    assert ours() == [] and not run_dir.exists()


def lab_spec(directory: Path, options: Options) -> LabSpec:
    file = directory / "topology.yaml"
    file.write_text(TOPOLOGY)
    return LabSpec.from_model(load_topology(file), options)
