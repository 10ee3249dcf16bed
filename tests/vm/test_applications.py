"""Real, unmodified programs on real guests: each connection is detected, carried and traced."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.tshark import dissect
from tests.vm.conftest import lab
from tests.vm.lab import ROOT, WEB_SERVER, Lab, wait_for

IDLE = 20


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """examples/line.yaml: h1 - h2 - h3."""
    text = (ROOT / "examples/line.yaml").read_text()
    directory = tmp_path_factory.mktemp("apps")
    with lab("apps", text, directory, "--idle-timeout", str(IDLE)) as made:
        yield made


def requests(where: Lab, host: str, **flow: Any) -> list[dict[str, Any]]:
    """``request`` events of a host whose flow has these values."""
    return [
        e
        for e in where.events()
        if (e["host"], e["name"]) == (host, "request")
        and all(e["flow"][key] == value for key, value in flow.items())
    ]


def established(where: Lab, host: str, since: float, **flow: Any) -> list[dict[str, Any]]:
    """Connections opened after ``since`` that a host has a working guest for, whose flow has these
    values."""
    return [
        c
        for c in where.connections()
        if (c["host"], c["state"]) == (host, "established")
        and c["created_at_us"] >= since * 1e6
        and all(c["flow"][key] == value for key, value in flow.items())
    ]


def path_of(where: Lab, connection: str) -> list[str]:
    forward = [t for t in where.traces(connection) if not t["reply"]]
    return [hop["host"] for hop in forward[-1]["hops"]]


@pytest.mark.parametrize(("name", "version"), [("h3", 4), ("h3.v6", 6)])
def test_ping(line: Lab, name: str, version: int) -> None:
    done = line.run("h1", "ping", "-c", "3", "-W", "60", name)
    assert done.returncode == 0, done.stdout + done.stderr
    protocol = 1 if version == 4 else 58
    (request,) = requests(line, "h1", version=version, protocol=protocol)
    assert path_of(line, request["connection"]) == ["h1", "h2", "h3"]


def test_dig_asks_a_real_name_server(line: Lab) -> None:
    server = (
        "dnsmasq", "--keep-in-foreground", "--no-resolv", "--no-hosts", "--conf-file=/dev/null",
        "--pid-file=", "--port=5353", "--bind-interfaces", "--listen-address=10.77.0.3",
        "--address=/fabric.test/192.0.2.7",
    )  # fmt: skip
    with line.server("h3", *server, ready=line.listens("h3", 5353, "u")):
        done = line.run("h1", "dig", "+short", "+time=60", "-p", "5353", "@h3", "fabric.test")
    assert done.stdout.strip() == b"192.0.2.7", done.stdout + done.stderr
    (request,) = requests(line, "h1", protocol=17, destination_port=5353)
    facts = [e for e in line.events() if e["name"] == "facts"]
    (mine,) = [e["facts"] for e in facts if e["connection"] == request["connection"]]
    assert Path(mine["executable"]).name == "dig"


def test_ssh(line: Lab, tmp_path: Path) -> None:
    """A shell session over the fabric, with a server and keys of the test's own."""
    for name in ("host", "user"):
        words = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / name)]
        subprocess.run(words, check=True)
    tmp_path.chmod(0o755)
    allowed = tmp_path / "allowed"
    allowed.write_text((tmp_path / "user.pub").read_text())
    Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    server = (
        "/usr/sbin/sshd", "-D", "-e", "-f", "/dev/null", "-p", "2222", "-h", str(tmp_path / "host"),
        "-o", f"AuthorizedKeysFile={allowed}", "-o", "StrictModes=no", "-o", "UsePAM=no",
        "-o", "PidFile=none", "-o", "PermitRootLogin=yes",
    )  # fmt: skip
    client = (
        "ssh", "-F", "/dev/null", "-i", str(tmp_path / "user"), "-p", "2222",
        "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null",
        "-o", "ConnectTimeout=120", "root@h3", "cat | sha256sum",
    )  # fmt: skip
    text = os.urandom(200_000)
    with (
        line.server("h3", *server, ready=line.listens("h3", 2222)),
        line.start("h1", *client, stdin=subprocess.PIPE) as process,
    ):
        out, err = process.communicate(text, timeout=150)
    assert out.split()[0].decode() == hashlib.sha256(text).hexdigest(), err
    assert len(requests(line, "h1", destination_port=2222)) == 1


@pytest.mark.parametrize("transport", ["tcp", "udp"])
def test_iperf3(line: Lab, transport: str) -> None:
    """Two connections each: iperf3's control connection and its data."""
    extra = ("--udp", "--bitrate", "2M", "--length", "1000") if transport == "udp" else ()
    port = "5201" if transport == "tcp" else "5202"
    ready = line.listens("h3", int(port))
    with line.server("h3", "iperf3", "--server", "--port", port, ready=ready):
        done = line.run(
            "h1", "iperf3", "--client", "h3", "--port", port, "--time", "8", "--json",
            "--connect-timeout", "120000", *extra, timeout=170,
        )  # fmt: skip
    report = json.loads(done.stdout)
    assert done.returncode == 0, report.get("error")
    end = report["end"]
    moved = end["sum"]["bytes"] if transport == "udp" else end["sum_received"]["bytes"]
    assert moved > 100_000
    flows = requests(line, "h1", destination_port=int(port))
    kinds = {e["flow"]["protocol"] for e in flows}
    assert len(flows) >= 2 and kinds == ({6} if transport == "tcp" else {6, 17})


def test_a_guest_can_be_entered_and_has_no_other_way_out(line: Lab) -> None:
    began = time.time()
    with line.start("h1", "ping", "-i", "0.5", "h3") as process:
        try:
            (mine,) = wait_for(
                "the ping's guest",
                lambda: established(line, "h1", began, protocol=1, destination="10.77.0.3"),
            )
            inside = f"{mine['id']}@h1"
            shown = line.fabric("exec", inside, "--", "ip", "-o", "addr").stdout
            assert mine["guest_address"] in shown
            done = line.fabric("exec", inside, "--", "sh", "-c", "exit 7", check=False)
            assert done.returncode == 7
            # Neither this machine, nor its host's services, nor another host's underlay answers.
            for address in ("172.31.0.1", "10.77.0.1", "192.0.2.1"):
                tried = line.fabric(
                    "exec", inside, "--", "ping", "-c", "1", "-W", "2", address, check=False
                )
                assert tried.returncode != 0, f"{address} answers a guest: {tried.stdout}"
        finally:
            process.terminate()


def test_a_capture_of_a_connection_is_a_pcap(line: Lab) -> None:
    began = time.time()
    with line.start("h1", "ping", "-i", "0.3", "h2") as process:
        try:
            (mine,) = wait_for(
                "the ping's guest",
                lambda: established(line, "h1", began, protocol=1, destination="10.77.0.2"),
            )
            environment = {**os.environ, "FABRIC_LAB": line.name}
            words = ["timeout", "4", str(ROOT / ".venv/bin/fabric"), "capture", "h1", mine["id"]]
            pcap = subprocess.run(words, capture_output=True, env=environment, timeout=30).stdout
        finally:
            process.terminate()
    shown = dissect(pcap, "-Y", "fabric", "-T", "fields", "-e", "fabric.connection")
    seen = {connection.removeprefix("0x") for connection in shown.split()}
    assert seen == {mine["id"]}


def test_eight_parallel_fetches_are_eight_connections(line: Lab, tmp_path: Path) -> None:
    """Every curl gets its own guest on every host and exactly its own bytes; then all is gone."""
    contents = {}
    for number in range(8):
        contents[number] = os.urandom(150_000)
        (tmp_path / f"file{number}").write_bytes(contents[number])
    command = (str(WEB_SERVER), "8200", str(tmp_path))
    with line.server("h2", *command, ready=line.listens("h2", 8200)):
        fetches = [line.start("h1", "curl", "-sS", f"http://h2:8200/file{n}") for n in range(8)]
        results = [process.communicate(timeout=240) for process in fetches]
    assert [process.returncode for process in fetches] == [0] * 8, [err for _, err in results]
    for number, (body, _) in enumerate(results):
        assert body == contents[number], f"fetch {number} got other bytes"
    flows = requests(line, "h1", destination_port=8200)
    ids = {e["connection"] for e in flows}
    story = [
        (e["at"], e["name"], e.get("why"), e["connection"])
        for e in line.events()
        if e["host"] == "h1" and e["connection"] in ids
    ]
    assert len(ids) == len(flows) == 8, story
    for host in ("h1", "h2"):
        mine = [c for c in line.connections() if c["host"] == host and c["id"] in ids]
        assert len({c["guest"] for c in mine}) == 8
    wait_for("the end of all guests", line.only_keeps_guests_ready, IDLE + 40)
    rules = subprocess.run(
        ["ip", "netns", "exec", line.namespace("h1"), "nft", "list", "ruleset"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert not re.search(r"elements = ", rules.split("map connections")[1].split("}")[0])


def test_beyond_the_limit_programs_are_refused_promptly(tmp_path: Path) -> None:
    text = (ROOT / "examples/line.yaml").read_text()
    text += "\ndefaults: {hosts: {limits: {guests: 1}}}\n"
    with lab("limited", text, tmp_path) as small:
        with small.start("h1", "ping", "h2") as process:
            try:
                wait_for("one guest", lambda: len(small.domains()) >= 1)
                done = small.run("h1", "curl", "-sS", "--max-time", "20", "http://h2:1/")
                # 7 is a reset; a connection that nobody answers would end with 28, a timeout.
                assert done.returncode == 7, done.stderr
                pinged = small.run("h1", "ping", "-c", "1", "-W", "5", "h3")
                assert pinged.returncode == 1 and b"filtered" in pinged.stdout
            finally:
                process.terminate()
        refused = [e for e in small.events() if e["name"] == "refused"]
        assert {e["limit"] for e in refused} == {"guests"}
