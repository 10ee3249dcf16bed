"""What a lab has at one moment, counted through the kernel and libvirt, by name.

Two inventories of a lab at rest must be equal: what the second has more is a leak. Names that count
(slots, connection ids, process ids) are made one, so that another guest in another slot is no
difference.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections import Counter
from pathlib import Path

from fabric.host.guest import endings, guests
from tests.vm.lab import Lab, interfaces

RUN = Path("/run/fabric")
THREADS_AT_MOST = (
    guests.THREADS_PER_CPU * (os.cpu_count() or 1)
    + endings.AT_ONCE
    + min(32, (os.cpu_count() or 1) + 4)  # asyncio.to_thread, see ThreadPoolExecutor
    + 3  # the main one, libvirt's events, and one to spare for the libvirt client
)
"""Of an orchestrator: its pools of threads grow to their size and no further."""


def inventory(lab: Lab) -> Counter[str]:
    """Everything of the lab that can be counted, name → how often."""
    found: Counter[str] = Counter()
    found["domain"] = len(lab.domains())
    found += _links(lab)
    hosts = lab.json("inspect")["hosts"]
    for host in hosts:
        name, pid = host["host"], host["orchestrator"]["pid"]
        found += _named(f"{name} nft", _nft(lab.namespace(name)))
        found += _named(f"{name} neighbour", _neighbours(lab.namespace(name)))
        found += _named(f"{name} file", _files(RUN / lab.name / name))
        found += _named(f"{name} process", _processes(lab.namespace(name)))
        found += _named(f"{name} orchestrator's descriptor", _descriptors(pid))
        threads = sum(1 for _ in Path(f"/proc/{pid}/task").iterdir())
        found[f"{name} orchestrator's thread beyond its pools"] = max(0, threads - THREADS_AT_MOST)
    found["template's file"] = sum(1 for _ in Path("/dev/shm/fabric").rglob("*"))
    found["qemu"] = _emulators(lab)
    return +found


def _named(prefix: str, counts: Counter[str]) -> Counter[str]:
    return Counter({f"{prefix} {name}": count for name, count in counts.items()})


def _plain(name: str) -> str:
    """A name without what counts in it."""
    name = re.sub(r"\b[0-9a-f]{16}\b", "ID", name)
    return re.sub(r"\d+", "N", name)


def _links(lab: Lab) -> Counter[str]:
    """Taps and other ports in the machine's own namespace, and links in the hosts'."""
    words = ["ip", "-j", "-d", "link"]
    shown = json.loads(subprocess.run(words, capture_output=True, check=True).stdout)
    ours = {x["ifname"] for x in shown if f"fabric:{lab.name}:" in x.get("ifalias", "")}
    ports = [x["ifname"] for x in shown if x.get("master") in ours]
    found = Counter({"link of the lab's own": len(ours), "bridge port": len(ports)})
    for namespace in lab.namespaces():
        found[f"{namespace} link"] = len(interfaces(namespace))
    return found


def _in(namespace: str, *words: str) -> str:
    argv = ["ip", "netns", "exec", namespace, *words]
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout


def _nft(namespace: str) -> Counter[str]:
    """Rules and elements, by table and chain or set."""
    found: Counter[str] = Counter()
    for entry in json.loads(_in(namespace, "nft", "-j", "list", "ruleset"))["nftables"]:
        for kind, body in entry.items():
            where = f"{body.get('family')} {body.get('table', '')} {body.get('chain', '')}"
            if kind in ("map", "set"):
                found[f"element of {where}{body['name']}"] += len(body.get("elem", ()))
            elif kind != "metainfo":
                found[f"{kind} {where}"] += 1
    return found


def _neighbours(namespace: str) -> Counter[str]:
    lines = _in(namespace, "ip", "neigh", "show", "nud", "permanent").splitlines()
    return Counter(line.split(" dev ")[1].split()[0] for line in lines)


def _files(directory: Path) -> Counter[str]:
    return Counter(_plain(str(path.relative_to(directory))) for path in directory.rglob("*"))


def _processes(namespace: str) -> Counter[str]:
    """Programs in the host's namespace."""
    shown = subprocess.run(["ip", "netns", "pids", namespace], capture_output=True, text=True)
    found: Counter[str] = Counter()
    for pid in shown.stdout.split():
        try:
            words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
        except OSError:
            continue
        module = words[words.index("-m") + 1] if "-m" in words[:-1] else Path(words[0]).name
        found[module] += 1
    return found


def _descriptors(pid: int) -> Counter[str]:
    found: Counter[str] = Counter()
    for path in Path(f"/proc/{pid}/fd").iterdir():
        try:
            found[_plain(str(path.readlink()))] += 1
        except OSError:
            continue
    return found


def _emulators(lab: Lab) -> int:
    """QEMU processes of the lab's guests, whatever libvirt knows."""
    count = 0
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes()
        except OSError:
            continue
        count += (
            words.startswith(b"/usr/bin/qemu") and f"guest=fabric-{lab.name}-".encode() in words
        )
    return count
