"""The template tier on real guests: copies are somebody of their own, and carry connections."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.vm.conftest import lab
from tests.vm.lab import FABRIC, ROOT, Lab, qemu_pid, wait_for

MADE = 120.0
"""Seconds for a template: a boot takes 5 s alone, 40 s beside a dozen others."""


@pytest.fixture(scope="module")
def copies(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A line of three hosts whose guests are copies of a template."""
    text = (ROOT / "examples/line.yaml").read_text()
    text = text.replace("h3: {}", "h3: {services: {web: [./web_server.py, 8000]}}")
    directory = tmp_path_factory.mktemp("copies")
    options = ("--tier", "template", "--idle-timeout", "40")
    with lab("copies", text, directory, *options) as made:
        wait_for("the templates", lambda: len(named(made, "template-ready")) == 3, MADE)
        yield made


def named(made: Lab, name: str, connection: str | None = None) -> list[dict[str, Any]]:
    found = [event for event in made.events() if event["name"] == name]
    return [event for event in found if connection in (None, event["connection"])]


def memory_mapping(domain: str) -> str:
    """The line of /proc/PID/maps that is a copy's memory."""
    maps = Path(f"/proc/{qemu_pid(domain)}/maps").read_text()
    (line,) = [line for line in maps.splitlines() if line.endswith("/memory")]
    return line


def memory_files(made: Lab) -> set[Path]:
    """What all copies' memory is mapped from, but for those that end meanwhile: no pid file, no
    process, or one without memory."""
    found = set()
    for domain in made.domains():
        with suppress(FileNotFoundError, ProcessLookupError, ValueError):
            found.add(Path(memory_mapping(domain).split(maxsplit=5)[5]))
    return found


def newest(made: Lab) -> str:
    return str(made.json("connections")[0]["id"])


def fetch(made: Lab, where: Path) -> str:
    """Fetch the file from h3; the connection that carried it."""
    done = made.run("h1", "curl", "-sS", "-o", str(where), "http://h3:8000/1MiB")
    assert done.returncode == 0, done.stderr
    return newest(made)


def ping(made: Lab) -> str:
    """The connection of one ping from h1 to h3: its guests stay until they are idle, where those
    of a TCP connection that was closed go after seconds."""
    done = made.run("h1", "ping", "-c", "1", "-W", "120", "h3")
    assert done.returncode == 0, done.stdout + done.stderr
    return newest(made)


def inside(made: Lab, connection: str, host: str, *command: str) -> str:
    """What a command in a guest says."""
    return str(made.fabric("exec", f"{connection}@{host}", "--", *command).stdout)


def test_a_connection_crosses_copies_and_nothing_boots(copies: Lab, tmp_path: Path) -> None:
    connection = fetch(copies, tmp_path / "file")
    (original,) = Path("/run/fabric/copies").glob("**/1MiB")
    assert (tmp_path / "file").read_bytes() == original.read_bytes()
    ready = named(copies, "guest-ready", connection)
    assert {event["host"]: event["tier"] for event in ready} == dict.fromkeys(
        ("h1", "h2", "h3"), "template"
    )
    assert not [event for event in ready if "boot_ms" in event["phases"]]
    assert not named(copies, "tier-fallback", connection)


def test_the_guest_resumes_after_the_request_and_before_the_first_packet(
    copies: Lab, tmp_path: Path
) -> None:
    connection = fetch(copies, tmp_path / "file")
    (request,) = named(copies, "request", connection)
    for host in ("h1", "h2", "h3"):
        at = {
            name: min(e["at_us"] for e in named(copies, name, connection) if e["host"] == host)
            for name in ("guest-spawning", "guest-resumed", "released", "first-packet")
        }
        assert request["at_us"] < at["guest-spawning"] < at["guest-resumed"]
        # The agent's clock stamps the last one: it was set a moment ago, over a slow channel.
        assert at["guest-resumed"] < at["released"]
        assert at["guest-resumed"] < at["first-packet"]


def test_two_copies_share_no_mac_no_address_no_key_and_no_randomness(copies: Lab) -> None:
    """Entering a guest by SSH pins the key it was given: `fabric exec` proves that it shows it."""
    first, second = ping(copies), ping(copies)
    assert first != second
    seen = []
    for connection in (first, second):
        shown = inside(copies, connection, "h1", "busybox", "ip", "-o", "address", "show", "eth0")
        mac = inside(copies, connection, "h1", "cat", "/sys/class/net/eth0/address").strip()
        drawn = inside(copies, connection, "h1", "cat", "/proc/sys/kernel/random/uuid")
        key = inside(copies, connection, "h1", "busybox", "sha256sum", "/run/keys/host_key")
        seen.append((mac, shown.split(" inet ")[1].split()[0], drawn, key))
    for a, b in zip(*seen, strict=True):
        assert a != b
    told = {view["id"]: view for view in copies.connections() if view["host"] == "h1"}
    for connection, (mac, address, *_) in zip((first, second), seen, strict=True):
        view = told[connection]
        assert (view["guest_mac"], view["guest_address"]) == (mac, address.partition("/")[0])


def test_a_template_holds_no_key(copies: Lab) -> None:
    """The booted guest had the build host's SSH key; a picture of its memory must not."""
    ping(copies)
    key = Path("/var/lib/fabric/keys/host_key").read_bytes()
    seed = key[-64:-32]
    (memory,) = memory_files(copies)
    for path in (memory, memory.with_name("state")):
        assert seed not in path.read_bytes()


def test_the_samples_the_agents_drew_all_differ(copies: Lab) -> None:
    """Drawn soon after waking up: without fresh entropy all copies draw the same."""
    ping(copies)
    ping(copies)
    # They show who they are a moment after they served a packet.
    wait_for("four of them", lambda: len(named(copies, "guest-identified")) >= 4)
    samples = [event["sample"] for event in named(copies, "guest-identified")]
    assert len(set(samples)) == len(samples)


def test_a_copy_knows_what_time_it_is(copies: Lab) -> None:
    """Its clock stood still while it was a template."""
    connection = ping(copies)
    here = int(subprocess.run(["date", "+%s"], capture_output=True, check=True).stdout)

    def right() -> bool:
        there = int(inside(copies, connection, "h1", "busybox", "date", "+%s"))
        return abs(there - here) < 30

    wait_for("the right time", right, 30)


def test_copies_share_the_templates_memory(copies: Lab) -> None:
    connection = ping(copies)
    views = [view for view in copies.connections() if view["id"] == connection]
    names = [view["guest"] for view in views]
    assert len(names) == 3
    for name in names:
        assert " rw-p " in memory_mapping(name), "private: copied on write"
        rollup = Path(f"/proc/{qemu_pid(name)}/smaps_rollup").read_text()
        facts = {
            words[0]: int(words[1])
            for words in map(str.split, rollup.splitlines()[1:])
            if len(words) == 3
        }
        assert facts["Anonymous:"] < 64 * 1024, "KiB of its own, translated code included"


def test_a_template_that_vanishes_costs_time_only(copies: Lab) -> None:
    ping(copies)
    used = memory_files(copies)
    assert len(used) == 1, "one template serves all hosts of the machine"
    used.pop().touch()  # as if somebody had written to it
    connection = ping(copies)
    assert named(copies, "tier-fallback", connection)
    wait_for("a new template", lambda: len(named(copies, "template-ready")) >= 6, MADE)
    again = ping(copies)
    assert {e["tier"] for e in named(copies, "guest-ready", again)} == {"template"}


def test_the_self_test_shows_that_two_copies_share_nothing() -> None:
    argv = [str(FABRIC), "selftest", "--name", "selftest", "-o", "json"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr + done.stdout
    found = {each["what"]: each for each in json.loads(done.stdout)}
    compared = {"MAC", "address", "SSH host key", "random stream", "connection key"}
    assert compared <= found.keys()
    assert all(each["differs"] for each in found.values())
