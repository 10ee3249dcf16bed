"""A host that rebooted with a lab on it: what the boot before left is not taken for what runs."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from fabric.host.process import boot_id
from tests.vm.conftest import lab
from tests.vm.lab import ROOT, Lab, qemu_pid, wait_for
from tests.vm.test_remains import ours

LINE = (ROOT / "examples/line.yaml").read_text()
RUN = Path("/run/fabric")
COPIES = Path("/var/lib/fabric/templates")


def template_of(where: Lab) -> Path:
    """The template's directory, from what a guest has mapped."""
    maps = Path(f"/proc/{qemu_pid(where.domains()[0])}/maps").read_text()
    (line,) = [line for line in maps.splitlines() if line.endswith("/memory")]
    return Path(line.split(maxsplit=5)[5]).parent


def processes(where: Lab) -> list[int]:
    """Of the lab: QEMUs, what runs in its namespaces, what was started with its files."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().decode(errors="replace")
        except OSError:
            continue
        if f"guest=fabric-{where.name}-" in words or f"{RUN / where.name}/" in words:
            found.append(int(path.parent.name))
    for namespace in where.namespaces():
        shown = subprocess.run(["ip", "netns", "pids", namespace], capture_output=True, text=True)
        found += map(int, shown.stdout.split())
    return sorted(set(found))


def reboot(where: Lab) -> None:
    """What a reboot takes goes, what it might leave stays, and is of another boot."""
    template = template_of(where)
    for pid in processes(where):
        os.kill(pid, signal.SIGKILL)
    wait_for("the end of all processes", lambda: not processes(where), 30)
    wait_for("libvirt to notice", lambda: not where.domains(), 30)
    for namespace in where.namespaces():
        subprocess.run(["ip", "netns", "delete", namespace], check=True)
    links = subprocess.run(["ip", "-d", "link"], capture_output=True, text=True, check=True).stdout
    name = ""
    for line in links.splitlines():
        if not line.startswith(" "):
            name = line.split()[1].rstrip(":").partition("@")[0]
        elif f"fabric:{where.name}:" in line:
            subprocess.run(["ip", "link", "delete", name], capture_output=True)
    shutil.rmtree(template)
    for path in (RUN / where.name).rglob("*"):
        if path.is_file() and boot_id() in (text := path.read_text(errors="replace")):
            path.write_text(text.replace(boot_id(), "00000000-0000-0000-0000-000000000000"))


@pytest.mark.parametrize("collected", [False, True], ids=["up", "gc"])
def test_after_a_reboot(tmp_path: Path, collected: bool) -> None:
    with lab("reboot", LINE, tmp_path) as made:
        made.wait_for_guests_kept_ready("prepared")
        assert made.run("h1", "ping", "-c", "1", "-W", "60", "h3").returncode == 0
        wait_for("the template's copy", (COPIES / template_of(made).name / "copy.json").exists, 60)
        reboot(made)
        if collected:
            made.fabric("gc", "--lab", made.name)
            assert ours(made) == []
        made.up()
        made.wait_for_guests_kept_ready("prepared")
        events = made.events()
        restored = [e["host"] for e in events if e["name"] == "template-restored"]
        assert len(restored) == 1, "by whoever was first; the others found it"
        assert not [e for e in events if e["name"] == "connection-adopted"]
        assert made.run("h1", "ping", "-c", "1", "-W", "60", "h3").returncode == 0
        tiers = {e["tier"] for e in made.events() if e["name"] == "guest-ready"}
        assert tiers == {"prepared"}, "no guest booted"
    assert ours(made) == []
