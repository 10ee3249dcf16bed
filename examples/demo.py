#!/usr/bin/env python3
"""`make demo`: one program, one destination, two declared needs, two ways through the fabric.

Brings up examples/diamond.yaml, fetches a file of 1 MiB and one of 16 MiB from the web server on h4
with a plain curl on h1, shows who carried the packets and why, does it again with another need,
checks that the ways differ at a relay, and takes everything down. Uses only the `fabric` command.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
FABRIC = HERE.parent / ".venv/bin/fabric"
LAB = "diamond"
NEEDS = ("low-latency", "bandwidth")
SIZES = {"1MiB": 1 << 20, "16MiB": 16 << 20}
STATS = "%{size_download} bytes in %{time_total} s, connected after %{time_connect} s\\n"


def say(text: str) -> None:
    print(f"\n\033[1m==> {text}\033[0m", flush=True)


def fabric(*words: str, quiet: bool = False) -> str:
    """Run the CLI on the demo's lab; what it prints is shown and returned."""
    if not quiet:
        print(f"$ fabric {' '.join(words)}", flush=True)
    environment = {**os.environ, "FABRIC_LAB": LAB}
    done = subprocess.run([FABRIC, *words], stdout=subprocess.PIPE, text=True, env=environment)
    if done.returncode != 0:
        raise SystemExit(f"fabric {words[0]} ended with {done.returncode}")
    if not quiet:
        print(done.stdout, end="", flush=True)
    return done.stdout


def fetch(need: str) -> str:
    """Both files, a connection each; returns the id of the second."""
    before = {c["id"] for c in connections()}
    urls: list[str] = []
    for name in SIZES:
        urls += ["-o", "/dev/null", f"http://h4:8000/{name}"]
    shown = fabric("run", "h1", "--need", need, "--", "curl", "-sS", "-w", STATS, *urls)
    sizes = [int(line.split()[0]) for line in shown.splitlines()]
    if sizes != list(SIZES.values()):
        raise SystemExit(f"curl fetched {sizes} bytes, expected {list(SIZES.values())}")
    mine = [c["id"] for c in connections() if c["id"] not in before]
    if len(mine) != len(SIZES):
        raise SystemExit(f"{len(mine)} connections for {len(SIZES)} files")
    return str(mine[0])


def connections() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(fabric("connections", "-o", "json", quiet=True))
    return found


def path(connection: str) -> list[str]:
    """The hosts that carried the connection's packets towards h4."""
    traces = json.loads(fabric("trace", connection, "-o", "json", quiet=True))
    forward = [trace for trace in traces if not trace["reply"]]
    return [hop["host"] for hop in forward[-1]["hops"]]


def story() -> None:
    paths = {}
    for need in NEEDS:
        say(f"curl on h1 fetches 1 MiB and 16 MiB from h4; declared need: {need}")
        connection = fetch(need)
        say("who carried it (the newest packet each way)")
        fabric("trace", connection, "--last", "2")
        say("why this way")
        fabric("explain", connection)
        paths[need] = path(connection)
    say("the same program and destination, by need")
    for need, hosts in paths.items():
        print(f"  {need:12} {' -> '.join(hosts)}")
    quick, broad = paths.values()
    relay = "h2"
    after = [hosts[hosts.index(relay) + 1] for hosts in (quick, broad)]
    if after[0] == after[1]:
        raise SystemExit(f"the ways do not differ at relay {relay}")
    print(f"  relay {relay} sent them to different neighbours: {after[0]} and {after[1]}")


def main() -> int:
    started = time.monotonic()
    say(f"bringing up {HERE.name}/diamond.yaml")
    fabric("up", str(HERE / "diamond.yaml"))
    try:
        story()
    finally:
        say("taking everything down")
        fabric("down", "--lab", LAB)
    say(f"done in {time.monotonic() - started:.0f} s; nothing of it is left")
    return 0


if __name__ == "__main__":
    sys.exit(main())
