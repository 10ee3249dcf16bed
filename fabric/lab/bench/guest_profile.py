"""The agent under a clock or a profiler, inside a guest.

Runs in a guest as ``python3 -I -S - JSON``, where it takes the place of the guest's agent: same
program, same connection, instructions given by the benchmark. May import: the standard library; the
agent comes out of the guest's own zip application, at run time, so this file knows its names only.

``{"agent": PATH, "configure": LINE, "settle": S, "seconds": S, "mode": MODE}``; answers one
JSON object. settle: seconds that do not count, for first packets and newly translated code. Mode
split: wall time per part of the loop, from two clock reads around each part; calls:
cProfile. Every call costs it extra, so its times tell shares of the Python code, not rates.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from typing import Any

PARTS = {
    "read": (("tun", "Tun", "read_burst"), ("udp", "Underlay", "receive_burst")),
    "engine": (
        ("forwarder", "Forwarder", "from_application"),
        ("forwarder", "Forwarder", "from_underlay"),
    ),
    "write": (("tun", "Tun", "write_burst"), ("udp", "Underlay", "send")),
    "timer": (("agent", "Agent", "_on_timer"),),
}
"""Part → what is timed for it."""
PACKAGES = dict.fromkeys(("tun", "udp", "agent", "main"), "fabric.agent")
TOP = 30
READY_LIMIT = 60.0
"""Seconds for the agent to take its instructions."""


class TimeIsUp(BaseException):
    """Raised by the alarm; no handler of the agent's takes it for an error."""


class Clock:
    """Wall time and calls per part, since the last reset."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Count from now on."""
        self.seconds = dict.fromkeys([*PARTS, "idle"], 0.0)
        self.calls = dict.fromkeys([*PARTS, "idle"], 0)
        self.packets = 0
        self._machine = machine_ticks()
        self._times = os.times()
        self._begin = time.perf_counter()

    def around(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """``function`` with a clock."""
        clock = time.perf_counter

        def timed(*arguments: Any) -> Any:
            begin = clock()
            result = function(*arguments)
            self.seconds[part] += clock() - begin
            self.calls[part] += 1
            if part == "read":
                self.packets += len(result)
            return result

        return timed

    def result(self) -> dict[str, Any]:
        """Seconds and calls by part, packets, and the processor time of agent and guest."""
        times, machine = os.times(), machine_ticks()
        return {
            "wall": time.perf_counter() - self._begin,
            "seconds": self.seconds,
            "calls": self.calls,
            "packets": self.packets,
            "user": times.user - self._times.user,
            "system": times.system - self._times.system,
            "ticks": {name: machine[name] - self._machine[name] for name in machine},
        }


class Poll:
    """An epoll object whose waiting is timed."""

    def __init__(self, real: Any, clock: Clock) -> None:
        self._real = real
        self.poll = clock.around("idle", real.poll)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


def main(options: dict[str, Any]) -> dict[str, Any]:
    """See the module docstring."""
    sys.path.insert(0, options["agent"])
    modules = {
        name: importlib.import_module(f"{PACKAGES.get(name, 'fabric.routing')}.{name}")
        for name in ("tun", "udp", "agent", "main", "forwarder")
    }
    clock = Clock()
    profiler = importlib.import_module("_lsprof").Profiler()
    calls = options["mode"] == "calls"
    if not calls:
        instrument(modules, clock)
    host, agent = socket.socketpair()
    os.set_inheritable(agent.fileno(), True)
    configure = options["configure"].encode()
    host.sendall(configure)
    alarms: list[int] = []

    def alarm(*_: object) -> None:
        alarms.append(1)
        if len(alarms) > 1:
            raise TimeIsUp
        clock.reset()
        if calls:
            profiler.enable()

    signal.signal(signal.SIGALRM, alarm)
    # On a busy machine nobody knows how long the agent takes to be ready.
    signal.setitimer(signal.ITIMER_REAL, READY_LIMIT, options["seconds"])
    agent_class = modules["agent"].Agent
    configure_agent = agent_class._configure

    def ready(*arguments: Any) -> None:
        configure_agent(*arguments)
        signal.setitimer(signal.ITIMER_REAL, options["settle"], options["seconds"])

    agent_class._configure = ready
    words = ["--control", f"fd:{agent.fileno()}"]
    end_agent(options["agent"])
    try:
        modules["main"].main(words)
    except TimeIsUp:
        profiler.disable()
    result = functions(profiler) if calls else clock.result()
    host.sendall(configure)
    leave_agent([sys.executable, "-I", "-S", options["agent"], *words], agent.fileno())
    return result


def leave_agent(argv: list[str], channel: int) -> None:
    """Start a plain agent that goes on when this process ends: the connection must not stall."""
    if os.fork():
        return
    os.setsid()
    null = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(null, number)
    os.closerange(3, channel)
    os.closerange(channel + 1, 256)
    wait_for_tun()  # the parent still has it
    os.execv(argv[0], argv)


def end_agent(path: str) -> None:
    """Kill the agent that runs here and wait until it is gone, and its TUN device with it."""
    for entry in os.listdir("/proc"):  # noqa: PTH208 - the guest starts it bare
        if not entry.isdigit() or int(entry) == os.getpid():
            continue
        try:
            with open(f"/proc/{entry}/cmdline", "rb") as file:  # noqa: PTH123
                words = file.read().split(b"\0")
        except OSError:
            continue
        if path.encode() in words:
            os.kill(int(entry), signal.SIGKILL)
    wait_for_tun()


def wait_for_tun() -> None:
    """Until the TUN device of an ending agent is gone."""
    while os.path.exists("/sys/class/net/fab0"):  # noqa: PTH110
        time.sleep(0.01)


def instrument(modules: dict[str, Any], clock: Clock) -> None:
    """Put clocks around the parts."""
    for part, places in PARTS.items():
        for module, owner, name in places:
            where = getattr(modules[module], owner)
            setattr(where, name, clock.around(part, getattr(where, name)))
    loop = modules["agent"]
    real = loop.select
    loop.select = type(
        "select",
        (),
        {
            "EPOLLIN": real.EPOLLIN,
            "EPOLLOUT": real.EPOLLOUT,
            "epoll": staticmethod(lambda: Poll(real.epoll(), clock)),
        },
    )


def machine_ticks() -> dict[str, int]:
    """Where the guest's processor spends its time, 10 ms ticks since boot."""
    with open("/proc/stat") as file:  # noqa: PTH123
        words = file.readline().split()[1:]
    names = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal")
    return dict(zip(names, map(int, words), strict=False))


def functions(profiler: Any) -> dict[str, Any]:
    """What cProfile says: name, calls, own and total seconds of the most expensive functions."""
    rows = []
    for entry in profiler.getstats():
        name = entry.code
        if not isinstance(name, str):
            file = name.co_filename.rpartition("/")[2].removesuffix(".py")
            name = f"{file}.{name.co_name}"
        rows.append([name, entry.callcount, entry.inlinetime, entry.totaltime])
    rows.sort(key=lambda row: -row[2])
    return {"functions": rows[:TOP], "total": sum(row[2] for row in rows)}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(json.loads(sys.argv[1]))) + "\n")
