"""What is killed comes back: connections survive their orchestrators, and guests their agents."""

from __future__ import annotations

import json
import os
import re
import signal
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from fabric.host.vmm import libvirtd, stillborn
from fabric.host.vmm.libvirtd import Former
from fabric.host.vmm.remains import STATUS_DIRECTORY
from tests.vm.conftest import lab
from tests.vm.lab import ROOT, Lab, qemu_pid, wait_for

LIBVIRTD = Path("/run/libvirtd.pid")

LINE = (ROOT / "examples/line.yaml").read_text()
WEB = LINE.replace("h2: {}", "h2: {services: {web: [./web_server.py, 8000]}}")
HOSTS = ("h1", "h2", "h3")
URL = "http://h2:8000/1MiB"
KILL_AGENT = ("busybox", "sh", "-c", "busybox kill -9 $(busybox pidof python3)")


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    directory = tmp_path_factory.mktemp("restart")
    with lab("restart", WEB, directory, "--idle-timeout", "60") as made:
        wait_for("guests kept ready", lambda: len(named(made, "guest-kept-ready")) >= 3, 120)
        yield made


def named(where: Lab, name: str, connection: str | None = None) -> list[dict[str, Any]]:
    found = [event for event in where.events() if event["name"] == name]
    return [event for event in found if connection in (None, event["connection"])]


def waiting_points(pid: int) -> int:
    """How many eventfds a process has: libvirt's client takes one for each connection."""
    found = 0
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):  # closed meanwhile
            found += "eventfd" in str(descriptor.readlink())
    return found


def orchestrators(where: Lab) -> dict[str, int]:
    hosts = where.json("inspect")["hosts"]
    return {host["host"]: host["orchestrator"]["pid"] for host in hosts}


def kill(pid: int) -> None:
    """kill -9, and its end."""
    os.kill(pid, signal.SIGKILL)
    wait_for(f"the end of process {pid}", lambda: state_of(pid) in ("", "Z"), 10)


def state_of(pid: int) -> str:
    """One letter as in ps; empty when there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


class Pings:
    """A ping that goes on for as long as the block lasts; counts what came back."""

    def __init__(self, where: Lab, path: Path) -> None:
        self._where = where
        self._path = path

    def __enter__(self) -> Pings:
        self._file = self._path.open("w")
        words = ("ping", "-n", "-i", "0.2", "h3")
        self.process = self._where.start("h1", *words, stdout=self._file)
        wait_for("the first answer", lambda: self.answers() > 0, 120)
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            self.process.wait(30)
        self._file.close()

    def numbers(self) -> list[int]:
        return [int(n) for n in re.findall(r"icmp_seq=(\d+) ttl", self._path.read_text())]

    def answers(self) -> int:
        return len(self.numbers())

    def more(self, count: int, deadline: float = 60.0) -> None:
        """Wait for so many more answers."""
        target = self.answers() + count
        wait_for(f"{count} more answers", lambda: self.answers() >= target, deadline)


def newest(where: Lab) -> str:
    return str(where.json("connections")[0]["id"])


def in_order(where: Lab) -> None:
    """No orchestrator finds a difference between what is there and what should be."""
    words = ("gc", "--dry-run", "--lab", where.name)
    wait_for("order", lambda: where.json(*words) == [], 60)


def test_established_connections_survive_every_orchestrator(line: Lab, tmp_path: Path) -> None:
    with Pings(line, tmp_path / "pings") as pings:
        number = newest(line)
        steered = wait_for("three hosts", lambda: named(line, "steering-installed", number)[:3])
        guests = {event["guest"] for event in steered}
        pings.more(10)
        for pid in orchestrators(line).values():
            kill(pid)
        before = pings.numbers()[-1]
        pings.more(40)  # 8 s: leases of those that come late end after others are back
        line.up()
        pings.more(15)
        pings.stop()
        adopted = named(line, "guest-adopted", number)
        assert {event["host"] for event in adopted} == set(HOSTS)
        assert {event["guest"] for event in adopted} == guests
        kept = named(line, "connection-adopted", number)
        assert {event["host"]: event["role"] for event in kept} == {
            "h1": "ingress", "h2": "transit", "h3": "egress",
        }  # fmt: skip
        assert not named(line, "guest-started", number)
        after = [n for n in pings.numbers() if n > before]
        assert after == list(range(before + 1, before + 1 + len(after))), "none was lost"
        assert line.json("explain", number)["path"][0]["facts"]["executable"].endswith("/ping")
        assert line.traces(number), "its traces are still to be had"
        assert line.fabric("exec", f"{number}@h2", "--", "true").returncode == 0
    in_order(line)


def test_a_dead_agent_is_noticed_and_its_connection_goes_on(line: Lab, tmp_path: Path) -> None:
    with Pings(line, tmp_path / "pings") as pings:
        number = newest(line)
        pings.more(10)
        numbered = [t["sequence"] for t in line.traces(number) if not t["reply"]]
        line.fabric("exec", f"{number}@h1", "--", *KILL_AGENT)
        (lost,) = wait_for("its loss", lambda: named(line, "guest-lost", number), 60)
        pings.more(10)
        reasons = [event["reason"] for event in named(line, "guest-failed", number)]
        assert lost["host"] == "h1" and "silent for" in reasons[0]
        again = [t["sequence"] for t in line.traces(number) if not t["reply"]]
        assert max(again) > max(numbered)
        assert len(set(again)) == len(again), "a successor repeats no number"
    in_order(line)


# -- killed at a named step ------------------------------------------------------------------------


def kill_orchestrator(where: Lab, pid: int) -> None:
    kill(pid)
    where.up()


def kill_qemu(where: Lab, pid: int) -> None:
    # The newest guest of a connection is the one whose step it is.
    for event in reversed(events_on_disk(where, "h1")):
        if event["name"] in ("guest-claimed", "guest-started"):
            kill(qemu_pid(event["guest"]))
            break
    os.kill(pid, signal.SIGCONT)


def kill_libvirtd(where: Lab, pid: int) -> None:
    kill(int(LIBVIRTD.read_text()))
    os.kill(pid, signal.SIGCONT)


def events_on_disk(where: Lab, host: str) -> list[dict[str, Any]]:
    """A stopped orchestrator answers no question."""
    text = (Path("/run/fabric") / where.name / host / "events.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def ours_to_kill() -> bool:
    """Whether libvirtd was started by the fabric, and so is started again by it."""
    former = Former.read()
    return former is not None and former.process.is_alive()


@pytest.mark.parametrize(
    ("step", "kill_it"),
    [
        ("configured", kill_orchestrator),
        ("recorded", kill_orchestrator),
        ("resumed", kill_qemu),
        ("configured", kill_libvirtd),
    ],
)
def test_killed_at_a_step_of_a_spawn(
    line: Lab, tmp_path: Path, step: str, kill_it: Callable[[Lab, int], None]
) -> None:
    if kill_it is kill_libvirtd and not ours_to_kill():
        pytest.skip("this machine's libvirtd is somebody else's")
    pid = orchestrators(line)["h1"]
    Path(f"/run/fabric/{line.name}/h1/stop-at").write_text(step)
    words = ("curl", "-sS", "--retry", "5", "--retry-all-errors", "-o", str(tmp_path / "file"))
    with line.start("h1", *words, URL) as curl:
        wait_for(f"the step {step}", lambda: state_of(pid) == "T", 30)
        kill_it(line, pid)
        said = curl.communicate(timeout=120)
    assert curl.returncode == 0, said
    (original,) = Path(f"/run/fabric/{line.name}").glob("**/1MiB")
    assert (tmp_path / "file").read_bytes() == original.read_bytes()
    in_order(line)


def test_killed_at_a_step_of_a_teardown(line: Lab, step: str = "destroyed") -> None:
    pid = orchestrators(line)["h1"]
    done = line.run("h1", "curl", "-sS", "-o", "/dev/null", URL)
    assert done.returncode == 0, done.stderr
    number = newest(line)
    Path(f"/run/fabric/{line.name}/h1/stop-at").write_text(step)
    wait_for(f"the step {step}", lambda: state_of(pid) == "T", 30)  # it was closed: soon it ends
    kill_orchestrator(line, pid)
    in_order(line)

    def here() -> list[dict[str, Any]]:
        views = line.json("connections")
        return [v for c in views if c["id"] == number for v in c["hosts"] if v["host"] == "h1"]

    wait_for("its end", lambda: all(view["state"] == "closed" for view in here()), 90)


def test_guests_and_connections_survive_libvirtd(line: Lab, tmp_path: Path) -> None:
    if not ours_to_kill():
        pytest.skip("this machine's libvirtd is somebody else's")
    with Pings(line, tmp_path / "pings") as pings:
        number = newest(line)
        pings.more(5)
        former = int(LIBVIRTD.read_text())
        before = {host: waiting_points(pid) for host, pid in orchestrators(line).items()}
        back = "libvirt-reconnected"
        earlier = named(line, back)
        kill(former)

        def hosts_back() -> set[str]:
            return {event["host"] for event in named(line, back) if event not in earlier}

        wait_for("libvirtd", lambda: hosts_back() == set(HOSTS), 60)
        assert int(LIBVIRTD.read_text()) != former
        pings.more(10)
        pings.stop()
        numbers = pings.numbers()
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers))), "none was lost"
        assert not named(line, "guest-lost", number)
        assert line.run("h1", "ping", "-c", "1", "-W", "60", "h2").returncode == 0
    in_order(line)

    def still_open() -> dict[str, int]:
        after = {host: waiting_points(pid) for host, pid in orchestrators(line).items()}
        return {host: count - before[host] for host, count in after.items()}

    # Not at once: see PARTING in host.vmm.hypervisor.
    nothing = dict.fromkeys(HOSTS, 0)
    wait_for("nothing of the lost connection to be open", lambda: still_open() == nothing, 30)


def test_a_start_that_libvirtd_did_not_live_to_finish(
    line: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it is after libvirtd was killed between noting a domain and starting its QEMU."""
    if not ours_to_kill():
        pytest.skip("this machine's libvirtd is somebody else's")
    line.wait_for_guests_kept_ready("prepared")
    waiting = next(name for name in line.domains() if "-h1-" in name)
    unborn = f"fabric-{line.name}-h1-g99"
    text = (STATUS_DIRECTORY / f"{waiting}.xml").read_text().replace(waiting, unborn)
    text = re.sub(r"<uuid>.*?</uuid>", f"<uuid>{uuid.uuid4()}</uuid>", text)
    text = re.sub(r"(<domstatus .*) pid='\d+'>", r"\1 pid='0'>", text)
    text = re.sub(r"<job .*/>", "<job type='none' async='start' flags='0x1'/>", text)
    with stopped(orchestrators(line).values()):  # or they would start it, and know better
        (STATUS_DIRECTORY / f"{unborn}.xml").write_text(text)
        kill(int(LIBVIRTD.read_text()))
        monkeypatch.setattr(stillborn, "forget_all", lambda: None)
        assert libvirtd.revive()
        assert unborn in line.domains(), "libvirt does not believe in it: the test proves nothing"
        believing = int(LIBVIRTD.read_text())
    line.fabric("gc", "--lab", line.name)  # if they have not found it by themselves
    wait_for("its end", lambda: unborn not in line.domains())
    assert int(LIBVIRTD.read_text()) != believing
    in_order(line)


@contextmanager
def stopped(pids: Iterable[int]) -> Iterator[None]:
    pids = list(pids)
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
