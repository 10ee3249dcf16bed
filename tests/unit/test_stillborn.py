"""A start nobody will finish is told from one under way, and only ours are forgotten."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fabric.errors import SpawnFailed
from fabric.host.vmm import stillborn
from fabric.host.vmm.hypervisor import LibvirtHypervisor

NAME = "fabric-demo-h1-g4"
MARK = (
    "<fabric:guest xmlns:fabric='urn:fabric:owner:1' lab='demo' host='h1' index='4' "
    "connection='000000010000002a' created-us='1700000000000000'/>"
)


def noted(directory: Path, name: str = NAME, pid: int = 0, mark: str = MARK, age: int = 60) -> Path:
    """libvirt's status file of a domain, ``age`` seconds older than its present daemon."""
    path = directory / f"{name}.xml"
    path.write_text(
        f"<domstatus state='paused' reason='starting up' pid='{pid}'><job type='none' "
        f"async='start'/><domain type='qemu' id='7'><name>{name}</name>"
        f"<metadata>{mark}</metadata></domain></domstatus>"
    )
    path.with_suffix(".xml.new").touch()
    path.with_suffix(".pid").write_text("4711")
    started = (directory / "daemon").stat().st_mtime
    os.utime(path, (started - age, started - age))
    return path


@pytest.fixture(autouse=True)
def daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The pid file of the libvirtd that runs."""
    file = tmp_path / "daemon"
    file.touch()
    monkeypatch.setattr(stillborn, "libvirt_pid_file", lambda: file)
    return file


def test_what_a_former_daemon_left_without_a_process_is(tmp_path: Path) -> None:
    noted(tmp_path)
    assert stillborn.is_stillborn(NAME, tmp_path)


def test_without_a_daemon_nobody_works_on_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noted(tmp_path, age=-60)
    monkeypatch.setattr(stillborn, "libvirt_pid_file", lambda: None)
    assert stillborn.is_stillborn(NAME, tmp_path)


@pytest.mark.parametrize(
    "facts",
    [{"age": -1}, {"pid": 4711}, {"mark": ""}],
    ids=["being-started", "runs", "somebody-elses"],
)
def test_others_are_not(tmp_path: Path, facts: dict[str, object]) -> None:
    path = noted(tmp_path, **facts)  # type: ignore[arg-type]
    assert not stillborn.is_stillborn(NAME, tmp_path)
    if "age" not in facts:
        stillborn.forget_all(tmp_path)
        assert path.exists() and path.with_suffix(".pid").exists()


def test_between_two_daemons_no_start_is_under_way(tmp_path: Path) -> None:
    """The last one may look alive: nobody has waited for it yet."""
    path = noted(tmp_path, age=-1)
    stillborn.forget_all(tmp_path)
    assert not path.exists()


@pytest.mark.parametrize("text", ["", "<domstatus", "<domstatus/>"])
def test_what_cannot_be_read_is_not(tmp_path: Path, text: str) -> None:
    noted(tmp_path).write_text(text)
    assert not stillborn.is_stillborn(NAME, tmp_path)
    assert not stillborn.is_stillborn("another", tmp_path)


def test_it_is_forgotten_whole(tmp_path: Path, daemon: Path) -> None:
    noted(tmp_path)
    kept = noted(tmp_path, "fabric-demo-h1-g5", pid=4712)
    stillborn.forget_all(tmp_path)
    left = {path.name for path in tmp_path.iterdir()} - {daemon.name}
    assert left == {kept.name, f"{kept.stem}.xml.new", f"{kept.stem}.pid"}


def test_a_libvirtd_of_somebody_elses_is_left_running(monkeypatch: pytest.MonkeyPatch) -> None:
    """libvirt lists the domain and would wait for its lock; only a restart helps."""
    forgotten: list[str] = []
    monkeypatch.setattr(stillborn, "is_stillborn", lambda name: True)
    monkeypatch.setattr(stillborn, "forget", forgotten.append)
    hypervisor = LibvirtHypervisor("qemu:///system", renew=lambda name: False)
    monkeypatch.setattr(hypervisor, "_lookup", lambda name: object())
    with pytest.raises(SpawnFailed) as caught:
        hypervisor.destroy(NAME)
    assert forgotten == [NAME]
    assert "systemctl restart libvirtd" in caught.value.cure
