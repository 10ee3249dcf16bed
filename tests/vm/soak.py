"""Connections opened and closed for a long time, while things are killed: nobody hangs, nothing
stays. ``python -m tests.vm.soak --connections 1000 --seconds 1800 --seed 1``, see `make soak`.

Every client is curl with a file of its own to fetch. What is killed, and when, follows from the
seed: a guest's QEMU, an agent in its guest, an orchestrator (`fabric up` starts it again),
libvirtd if it is the fabric's, a client. A client may get its file or an error it can name; a time
limit reached is a hang, other bytes are wrong, and both fail the soak.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fabric.host.vmm.libvirtd import Former
from tests.vm.conftest import lab
from tests.vm.inventory import inventory
from tests.vm.lab import ROOT, WEB_SERVER, Lab, qemu_pid, wait_for

LINE = (ROOT / "examples/line.yaml").read_text()
POOL = 4
TOPOLOGY = LINE.replace(
    "\nhosts:",
    f"\ndefaults: {{hosts: {{pool: {{minimum: {POOL}, maximum: {POOL}}}}}}}\n\nhosts:",
    1,
)
PORT = 8100
TARGETS = ("h2", "h3")
SIZES = (1, 4 << 10, 64 << 10, 512 << 10)
AT_ONCE = 8
"""Clients at once; more than two processors serve quickly."""
PATIENCE = 240
"""Seconds after which a client hangs: TCP sends its SYN again after up to 64 s."""
SETTLED = 180.0
"""Seconds for everything of the last connections to go, and for pools to fill."""
CLEAN = {7: "refused", 18: "cut short", 52: "no answer", 55: "reset", 56: "reset"}
"""curl's exit codes that tell a program what happened to it."""
LIBVIRTD = Path("/run/libvirtd.pid")
KILL_AGENT = ("busybox", "sh", "-c", "busybox kill -9 $(busybox pidof python3)")


@dataclass
class Client:
    """One program that fetches one file."""

    number: int
    name: str
    target: str
    process: Any
    begun: float
    killed: bool = False


@dataclass
class Report:
    """What came of it."""

    outcomes: Counter[str] = field(default_factory=Counter)
    kills: Counter[str] = field(default_factory=Counter)
    took: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    """Hangs, other bytes, errors nobody can name."""
    leaks: Counter[str] = field(default_factory=Counter)


class Soak:
    """Use inside a lab's with-block."""

    def __init__(self, where: Lab, place: Path, seed: int, say: Callable[[str], None]) -> None:
        self.lab, self.place, self.say = where, place, say
        self.chance = random.Random(seed)
        self.report = Report()
        self.began = time.monotonic()
        self.digests: dict[str, str] = {}
        self.clients: list[Client] = []

    def run(self, connections: int, seconds: float, kills: int, at_most: float) -> Report:
        """``connections`` begin, evenly, within ``seconds`` or as fast as they are served, but none
        after ``at_most`` seconds; ``kills`` fall among them."""
        self.fetch_all(2 * POOL)  # pools of threads and caches have their size
        before = self.settled(None)
        self.log(f"at rest: {sum(before.values())} things of {len(before)} kinds")
        fatal = set(self.chance.sample(range(connections), min(kills, connections)))
        start = time.monotonic()
        for number in range(connections):
            if time.monotonic() - start > at_most:
                self.log(f"{connections - number} connections not begun: {at_most:g} s are over")
                break
            while time.monotonic() < start + number * seconds / connections:
                self.reap()
                time.sleep(0.05)
            self.make_room()
            self.open(number)
            if number in fatal:
                self.kill_something()
        self.drain()
        after = self.settled(before)
        self.report.leaks = after - before
        self.log(f"at rest: {dict(self.report.leaks) or 'nothing more than before'}")
        return self.report

    def log(self, text: str) -> None:
        self.say(f"{time.monotonic() - self.began:8.1f} s  {text}")

    # -- clients -------------------------------------------------------------------------------

    def open(self, number: int) -> None:
        target = self.chance.choice(TARGETS)
        name = self.chance.choice(sorted(self.digests))
        words = ["curl", "-sS", "--max-time", str(PATIENCE), "-o", str(self.place / f"got{number}")]
        url = f"http://{target}:{PORT}/{name}"
        argv = ["ip", "netns", "exec", self.lab.namespace("h1"), *words, url]
        process = subprocess.Popen(argv, stderr=subprocess.PIPE, text=True)
        self.clients.append(Client(number, name, target, process, time.monotonic()))

    def fetch_all(self, count: int) -> None:
        for number in range(count):
            self.open(number)
        self.drain()

    def make_room(self) -> None:
        while len(self.clients) >= AT_ONCE:
            self.reap()
            time.sleep(0.05)

    def drain(self) -> None:
        while self.clients:
            self.reap()
            time.sleep(0.05)

    def reap(self) -> None:
        """Judge the clients that ended."""
        for client in [c for c in self.clients if c.process.poll() is not None]:
            self.clients.remove(client)
            _, complaint = client.process.communicate()
            outcome = self.judge(client, client.process.returncode)
            self.report.outcomes[outcome] += 1
            took = time.monotonic() - client.begun
            self.report.took.append(took)
            if outcome != "complete" or took > 20:
                self.log(f"client {client.number} to {client.target}: {outcome}, {took:.1f} s")
            if outcome.startswith("WRONG"):
                self.report.wrong.append(f"client {client.number}: {outcome}: {complaint.strip()}")

    def judge(self, client: Client, status: int) -> str:
        path = self.place / f"got{client.number}"
        content = path.read_bytes() if path.exists() else b""
        path.unlink(missing_ok=True)
        if client.killed:
            return "killed"
        if status == 0:
            same = hashlib.sha256(content).hexdigest() == self.digests[client.name]
            return "complete" if same else "WRONG bytes"
        if status in CLEAN:
            return CLEAN[status]
        return "WRONG: it hung" if status == 28 else f"WRONG: curl's status {status}"

    # -- what is killed ------------------------------------------------------------------------

    def kill_something(self) -> None:
        ways = [self.kill_qemu, self.kill_qemu, self.kill_agent, self.kill_orchestrator]
        ways += [self.kill_client]
        former = Former.read()
        if former is not None and former.process.is_alive():
            ways.append(self.kill_libvirtd)
        way = self.chance.choice(ways)
        time.sleep(self.chance.random())
        what = way()
        name = way.__name__.removeprefix("kill_")
        self.report.kills[name if what else f"{name} (none there)"] += 1
        self.log(f"killed: {name} {what}")

    def kill_qemu(self) -> str:
        """Any guest's: of a connection, or kept ready."""
        domains = self.lab.domains()
        if not domains:
            return ""
        domain = self.chance.choice(domains)
        try:
            os.kill(qemu_pid(domain), signal.SIGKILL)
        except (OSError, ValueError):
            return ""
        return domain

    def kill_agent(self) -> str:
        views = [v for c in self.lab.json("connections", "--live") for v in c["hosts"]]
        views = [v for v in views if v["state"] == "established"]
        if not views:
            return ""
        view = self.chance.choice(views)
        who = f"{view['id']}@{view['host']}"
        done = self.lab.fabric("exec", who, "--", *KILL_AGENT, check=False)
        return who if done.returncode == 0 else ""

    def kill_orchestrator(self) -> str:
        host = self.chance.choice(self.lab.json("inspect")["hosts"])
        os.kill(host["orchestrator"]["pid"], signal.SIGKILL)
        time.sleep(self.chance.random() * 3)
        self.lab.up()
        return str(host["host"])

    def kill_libvirtd(self) -> str:
        pid = LIBVIRTD.read_text().strip()
        os.kill(int(pid), signal.SIGKILL)
        return pid

    def kill_client(self) -> str:
        if not self.clients:
            return ""
        client = self.chance.choice(self.clients)
        client.killed = True
        client.process.kill()
        return str(client.number)

    # -- what is there -------------------------------------------------------------------------

    def settled(self, before: Counter[str] | None) -> Counter[str]:
        """The inventory once everything is at rest; as soon as nothing is there that was not
        ``before``, or at the latest after SETTLED seconds."""

        def at_rest() -> bool:
            hosts = self.lab.json("inspect")["hosts"]
            full = all(h["kept_ready"].get("prepared", 0) == POOL for h in hosts)
            return full and self.lab.only_keeps_guests_ready()

        wait_for("rest", at_rest, SETTLED)
        end = time.monotonic() + SETTLED
        found = inventory(self.lab)
        while before is not None and found - before and time.monotonic() < end:
            time.sleep(2)
            found = inventory(self.lab)
        if before is None:
            time.sleep(5)  # the API's last connections, pools' last members
            found = inventory(self.lab)
        return found


def soak(
    where: Lab,
    place: Path,
    connections: int,
    seconds: float,
    seed: int,
    kills: int,
    at_most: float = math.inf,
) -> Report:
    """Run it on a lab that is up; prints its log. See :meth:`Soak.run`."""
    served = place / "served"
    served.mkdir()
    work = Soak(where, place, seed, lambda line: print(line, flush=True))
    content = random.Random(seed + 1)
    for number, size in enumerate(SIZES * 2):
        data = content.randbytes(size + number)
        (served / f"file{number}").write_bytes(data)
        work.digests[f"file{number}"] = hashlib.sha256(data).hexdigest()
    command = (str(WEB_SERVER), str(PORT), str(served))
    with (
        where.server("h2", *command, ready=where.listens("h2", PORT)),
        where.server("h3", *command, ready=where.listens("h3", PORT)),
    ):
        report = work.run(connections, seconds, kills, at_most)
    took = sorted(report.took)
    print(f"outcomes {dict(report.outcomes)}; kills {dict(report.kills)}")
    print(f"a client took {took[len(took) // 2]:.1f} s (median), {took[-1]:.1f} s at most")
    for line in report.wrong:
        print(line)
    return report


def main() -> int:
    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument("--connections", type=int, default=1000)
    words.add_argument("--seconds", type=float, default=1800.0)
    words.add_argument("--seed", type=int, default=1)
    words.add_argument("--at-most", type=float, default=math.inf, help="begin none after, s")
    words.add_argument("--kills", type=int, default=0, help="0: one for twenty connections")
    given = words.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the lab is taken down
    kills = given.kills or max(1, given.connections // 20)
    print(f"seed {given.seed}: {given.connections} connections, {kills} kills, {given.seconds:g} s")
    with tempfile.TemporaryDirectory(prefix="soak-") as directory:
        place = Path(directory)
        with lab("soak", TOPOLOGY, place, "--idle-timeout", "10") as made:
            report = soak(
                made, place, given.connections, given.seconds, given.seed, kills, given.at_most
            )
    print("leaks:", dict(report.leaks) or "none")
    return 1 if report.wrong or report.leaks else 0


if __name__ == "__main__":
    sys.exit(main())
