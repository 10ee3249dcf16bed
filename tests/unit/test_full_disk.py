"""A file system that is full: refused cleanly, nothing leaks, and room makes all well again."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from fabric.host.events import EventLog
from fabric.host.guest import template_keeper
from tests.unit.host_world import Life, Machine, machine, until
from tests.unit.test_orchestrator import syn

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="mounts a tmpfs"),
]

SIZE = 4 * 1024 * 1024
"""Bytes of the tmpfs: room for a template of 1 MiB."""


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "small"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", place], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", place], check=True)


def fill(place: Path) -> Path:
    """Until not a byte more fits."""
    ballast = place / "ballast"
    with ballast.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            return ballast


def story(
    directory: Path, tell: Callable[[Machine, Life], Awaitable[None]], **options: str
) -> None:
    async def within() -> None:
        async with asyncio.timeout(30), machine(directory, **options) as made:
            life = Life(made)
            await life.host.start()
            await tell(made, life)
            await life.host.close()
            assert made.left() == []

    asyncio.run(within())


def test_with_the_run_directory_full_a_spawn_is_refused_and_later_ones_work(small: Path) -> None:
    async def tell(made: Machine, life: Life) -> None:
        ballast = fill(small)
        life.miss(syn())
        await until(lambda: bool(made.answers))
        (refused,) = life.told("refused")
        assert refused["cause"] == "spawn-failed" and "No space left" in refused["why"]
        await until(lambda: life.host.manager.alive() == 0)
        assert not made.hypervisor.domains and life.connections() == []
        ballast.unlink()
        life.miss(syn())
        await until(life.works)
        assert await life.host.housekeeper.run() == []

    story(small, tell)


def test_established_connections_go_on_and_end_while_the_disk_is_full(small: Path) -> None:
    async def tell(made: Machine, life: Life) -> None:
        life.miss(syn())
        await until(life.works)
        ballast = fill(small)
        await life.host.orchestrator.end(life.connections()[0], "asked")
        assert not made.hypervisor.domains and life.host.manager.alive() == 0
        ballast.unlink()

    story(small, tell)


def test_a_record_without_room_costs_the_connection_nothing_and_is_written_later(
    small: Path,
) -> None:
    async def tell(made: Machine, life: Life) -> None:
        (made.config.host_dir / "connections").write_text("as good as full")
        life.miss(syn())
        await until(life.works)
        (failed,) = life.told("record-failed")
        assert "connections" in failed["reason"]
        (made.config.host_dir / "connections").unlink()
        assert [action.verb.value for action in await life.host.housekeeper.run()] == ["record"]
        assert await life.host.housekeeper.run() == []

    story(small, tell)


def test_without_room_for_a_template_guests_boot_cold_until_there_is_some(
    small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(template_keeper, "MAKING_PAUSE", 0.05)
    monkeypatch.setattr(template_keeper, "MAX_MAKINGS", 1)

    async def tell(made: Machine, life: Life) -> None:
        await until(lambda: bool(life.told("template-failed")))
        life.miss(syn())
        await until(life.works)
        assert life.guest().tier == "cold"
        assert "no room" in life.told("tier-fallback")[0]["reason"]
        assert not list(Path(made.config.template_dir).glob(".draft*"))
        ballast.unlink()
        await until(lambda: bool(life.told("template-ready")))
        (failed,) = life.told("template-failed")
        assert "no room for a template" in failed["reason"]

    (small / "templates").mkdir(mode=0o711)
    ballast = fill(small)
    story(small, tell, tier="template", run_dir=str(small.parent))


def test_events_go_on_in_the_file_when_there_is_room_again(small: Path) -> None:
    path = small / "events.jsonl"
    log = EventLog("h1", lambda: 0, path)
    log.emit("before")
    ballast = fill(small)
    for _ in range(100):
        log.emit("meanwhile", text="x" * 100)
    ballast.unlink()
    log.emit("after")
    log.close()
    whole, torn = [], 0
    for line in path.read_text().splitlines():
        try:
            whole.append(json.loads(line)["name"])
        except ValueError:
            torn += 1
    assert (whole[0], whole[-1]) == ("before", "after") and torn <= 1
    assert len(log.since(0)) == 102
