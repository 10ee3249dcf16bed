"""Many connections in one instant: all are served, with the right bytes, and nothing stays."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.vm.conftest import lab
from tests.vm.lab import ROOT, WEB_SERVER, Lab, wait_for

COUNT = 20
KIB = 1024


@pytest.fixture(scope="module", params=("prepared", "warm"))
def full(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """The diamond, sixteen guests of each host waiting."""
    tier = request.param
    text = (ROOT / "examples/diamond.yaml").read_text()
    defaults = f"{{hosts: {{tier: {tier}, pool: {{minimum: 16, maximum: 16}}}}}}"
    text = text.replace("\nhosts:", f"\ndefaults: {defaults}\n\nhosts:", 1)
    with lab("burst", text, tmp_path_factory.mktemp("burst"), "--idle-timeout", "20") as made:
        made.wait_for_guests_kept_ready(tier, 16)
        yield made


def test_twenty_curls_at_once(full: Lab, tmp_path: Path) -> None:
    files = {f"file{n}": os.urandom(64 * KIB + n) for n in range(COUNT)}
    served, out = tmp_path / "served", tmp_path / "fetched"
    for directory in (served, out):
        directory.mkdir()
    for name, data in files.items():
        (served / name).write_bytes(data)
    server = [str(WEB_SERVER), "8100", str(served)]
    with full.server("h4", *server, ready=full.listens("h4", 8100)):
        # One program of the fabric's own for all of them: twenty would compete with the guests.
        script = "".join(
            f"curl -sS --max-time 150 -w '{name} %{{http_code}} %{{time_connect}}\\n' "
            f"-o {out / name} http://h4:8100/{name} & "
            for name in files
        )
        done = full.run("h1", "sh", "-c", f"{script} wait")
    assert done.returncode == 0, done.stderr
    told = [line.split() for line in done.stdout.decode().splitlines()]
    assert {name: code for name, code, _ in told} == dict.fromkeys(files, "200"), done.stderr
    for name, data in files.items():
        fetched = (out / name).read_bytes()
        assert hashlib.sha256(fetched).digest() == hashlib.sha256(data).digest(), name
    connects = sorted(float(seconds) for _, _, seconds in told)
    print("connected after, s:", *(f"{seconds:.2f}" for seconds in connects))
    happened = full.events()
    assert not [e for e in happened if e["name"] == "link-down"], "links are there, only late"
    tiers = [e["tier"] for e in happened if e["name"] == "guest-ready" and "tier" in e]
    print("guests by tier:", {tier: tiers.count(tier) for tier in sorted(set(tiers))})
    wait_for("all guests are gone", full.only_keeps_guests_ready, 120)
    assert not [c for c in full.connections() if c["state"] != "closed"]
