"""A machine short of memory keeps nobody ready, serves while it can, and says so when it cannot."""

from __future__ import annotations

from pathlib import Path

from tests.vm.conftest import lab
from tests.vm.lab import ROOT, wait_for

MORE_THAN_THERE_IS = 1 << 24
"""MiB."""


def test_short_of_memory(tmp_path: Path) -> None:
    """h2 and h3 are below the floor of their pools, h1 below the reserve for a guest too."""
    text = (ROOT / "examples/line.yaml").read_text()
    pool = f"defaults: {{hosts: {{pool: {{memory_floor_mib: {MORE_THAN_THERE_IS}}}}}}}"
    text = text.replace("\nhosts:", f"\n{pool}\n\nhosts:", 1)
    text = text.replace(
        "  h1: {}", f"  h1: {{limits: {{memory_reserve_mib: {MORE_THAN_THERE_IS}}}}}"
    )
    with lab("pressure", text, tmp_path, "--idle-timeout", "20") as made:

        def told() -> set[str]:
            return {e["host"] for e in made.events() if e["name"] == "memory-short"}

        wait_for("word of it", lambda: told() == {"h1", "h2", "h3"}, 60)
        ready = "template-ready"
        wait_for("templates", lambda: sum(e["name"] == ready for e in made.events()) == 3, 120)
        assert made.domains() == [], "nobody is kept ready"
        assert made.run("h2", "ping", "-c", "1", "-W", "60", "h3").returncode == 0
        tiers = {e["tier"] for e in made.events() if e["name"] == "guest-ready"}
        assert tiers == {"template"}
        refused = made.run("h1", "curl", "-sS", "--max-time", "60", "http://h2:8000/")
        assert refused.returncode == 7, "at once, not after a time limit"
        limits = [e["limit"] for e in made.events() if e["name"] == "refused"]
        assert limits == ["memory_reserve_mib"]
