"""Nothing leaks: whatever is killed, `gc`, `down` and the next `up` leave nothing of ours."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

from tests.vm.conftest import lab
from tests.vm.lab import FABRIC, ROOT, Lab, interfaces, wait_for

LINE = (ROOT / "examples/line.yaml").read_text()


def kill_orchestrators(where: Lab) -> None:
    hosts = where.json("inspect")["hosts"]
    for host in hosts:
        os.kill(host["orchestrator"]["pid"], signal.SIGKILL)


def ours(where: Lab) -> list[str]:
    """What the machine still has of a lab, asked of libvirt and the kernel."""
    links = subprocess.run(["ip", "-d", "link"], capture_output=True, text=True, check=True).stdout
    found = [line for line in links.splitlines() if f"fabric:{where.name}:" in line]
    files = [str(path) for path in Path("/etc/netns").glob(f"fabric-{where.name}-*")]
    run = Path("/run/fabric") / where.name
    return [*where.domains(), *where.namespaces(), *found, *files, *([str(run)] * run.exists())]


def test_gc_after_every_orchestrator_was_killed(tmp_path: Path) -> None:
    with lab("crashed", LINE, tmp_path) as crashed:
        before = set(interfaces()) - {n for n in interfaces() if n.startswith(("fb", "fv", "ft"))}
        done = crashed.run("h1", "ping", "-c", "1", "-W", "60", "h2")
        assert done.returncode == 0
        kill_orchestrators(crashed)
        domains = crashed.domains()  # those kept ready included
        planned = subprocess.run([FABRIC, "gc", "--dry-run"], capture_output=True, text=True)
        assert len(domains) >= 2 and all(name in planned.stdout for name in domains)
        assert crashed.domains() == domains, "a dry run removes nothing"
        subprocess.run([FABRIC, "gc", "--lab", "crashed"], check=True, capture_output=True)
        assert ours(crashed) == []
        assert before <= set(interfaces()), "something that is not ours is gone"


def test_up_again_after_a_crash_works_and_ends_what_nobody_uses(tmp_path: Path) -> None:
    with lab("again", LINE, tmp_path, "--idle-timeout", "10") as again:
        assert again.run("h1", "ping", "-c", "1", "-W", "60", "h2").returncode == 0
        kill_orchestrators(again)
        again.up()
        adopted = [e for e in again.events() if e["name"] == "connection-adopted"]
        assert {event["host"] for event in adopted} == {"h1", "h2"}
        wait_for(
            "the end of the old connection",
            lambda: {c["state"] for c in again.connections()} == {"closed"},
        )
        assert again.run("h1", "ping", "-c", "1", "-W", "60", "h2").returncode == 0
    assert ours(again) == []


def test_down_while_guests_boot_leaves_nothing(tmp_path: Path) -> None:
    with (
        lab("hasty", LINE, tmp_path) as hasty,
        hasty.start("h1", "ping", "-c", "1", "-W", "60", "h3") as process,
    ):
        wait_for("the first guests", lambda: len(hasty.domains()) >= 2)
        hasty.fabric("down", "--lab", "hasty")
        process.kill()
    assert ours(hasty) == []
