"""What every store promises: asked of the one in memory, of a directory, and of a real etcd."""

from __future__ import annotations

import asyncio
import contextlib
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from fabric.errors import UserError
from fabric.host.store.file import FileStore
from fabric.host.store.interface import MAX_VALUE, State, Store
from fabric.host.store.memory import MemoryStore, Place

LEASE = 1.5
"""Seconds."""
PATIENCE = 15.0
"""Seconds until what must happen has to have happened."""


@dataclass
class Kind:
    """One implementation: how sessions with one and the same store are made, and how it is lost."""

    open: Callable[[], Store]
    lose: Callable[[], Any]
    find: Callable[[], Any]
    argv: list[str] = field(default_factory=list)
    """A program that puts KEY VALUE and then sleeps; empty: sessions cannot be other processes."""


def _file(tmp_path: Path) -> Iterator[Kind]:
    directory = tmp_path / "store"

    def lose() -> None:
        # Where the directory should be made anew, there is a file.
        shutil.rmtree(directory)
        directory.write_text("")

    program = (
        "import asyncio, sys; from pathlib import Path; "
        "from fabric.host.store.file import FileStore\n"
        "async def main():\n"
        f"    store = FileStore(Path({str(directory)!r}), {LEASE})\n"
        "    await store.put(sys.argv[1], sys.argv[2].encode())\n"
        "    async for _ in store.watch(): pass\n"
        "asyncio.run(main())"
    )
    yield Kind(
        lambda: FileStore(directory, LEASE),
        lose,
        directory.unlink,
        [sys.executable, "-c", program],
    )


def _memory(_tmp_path: Path) -> Iterator[Kind]:
    place = Place()
    yield Kind(lambda: MemoryStore(place), place.lose, lambda: place.lose(False))


KINDS: dict[str, Callable[[Path], Iterator[Kind]]] = {"memory": _memory, "file": _file}


@pytest.fixture(params=sorted(KINDS))
def kind(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Kind]:
    yield from KINDS[request.param](tmp_path)


class Watcher:
    """Somebody who watches, and remembers."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.states: list[State | None] = []
        self._changed = asyncio.Event()
        self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        async for state in self.store.watch():
            self.states.append(state)
            self._changed.set()

    async def until(self, wanted: Callable[[State | None], bool]) -> None:
        async with asyncio.timeout(PATIENCE):
            while not (self.states and wanted(self.states[-1])):
                self._changed.clear()
                await self._changed.wait()

    async def sees(self, expected: State | None) -> None:
        try:
            await self.until(lambda state: state == expected)
        except TimeoutError:
            raise AssertionError(f"at last {self.states[-1:]}, not {expected}") from None

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await self.store.close()


@contextlib.asynccontextmanager
async def watchers(kind: Kind, count: int = 1) -> AsyncIterator[list[Watcher]]:
    made = [Watcher(kind.open()) for _ in range(count)]
    try:
        yield made
    finally:
        for each in made:
            await each.close()


def story(tell: Callable[[], Awaitable[None]]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(4 * PATIENCE):
            await tell()

    asyncio.run(limited())


def test_an_empty_store_has_a_state_too(kind: Kind) -> None:
    async def tell() -> None:
        async with watchers(kind) as (one,):
            await one.sees({})

    story(tell)


def test_what_is_put_is_seen_by_all_and_the_newest_value_counts(kind: Kind) -> None:
    async def tell() -> None:
        async with watchers(kind, 2) as (one, other):
            await one.store.put("links/1", b"old")
            await one.store.put("links/1", b"new")
            await other.store.put("links/2", b"\0\xff binary")
            expected = {"links/1": b"new", "links/2": b"\0\xff binary"}
            await one.sees(expected)
            await other.sees(expected)

    story(tell)


def test_who_comes_later_sees_what_is_there(kind: Kind) -> None:
    async def tell() -> None:
        async with watchers(kind) as (one,):
            await one.store.put("links/1", b"x")
            await one.sees({"links/1": b"x"})
            async with watchers(kind) as (late,):
                await late.sees({"links/1": b"x"})
                assert late.states[0] == {"links/1": b"x"}

    story(tell)


def test_who_leaves_takes_its_values_along_at_once(kind: Kind) -> None:
    async def tell() -> None:
        async with watchers(kind) as (stays,):
            await stays.store.put("links/1", b"mine")
            leaves = kind.open()
            watching = Watcher(leaves)
            await leaves.put("links/2", b"gone soon")
            await stays.sees({"links/1": b"mine", "links/2": b"gone soon"})
            await watching.close()
            await stays.sees({"links/1": b"mine"})

    story(tell)


def test_values_outlive_many_leases_as_long_as_their_session_lives(kind: Kind) -> None:
    async def tell() -> None:
        async with watchers(kind, 2) as (one, other):
            await one.store.put("links/1", b"x")
            await other.sees({"links/1": b"x"})
            await asyncio.sleep(2.5 * LEASE)
            assert other.states[-1] == {"links/1": b"x"}
            assert {} not in other.states[other.states.index({"links/1": b"x"}) :]

    story(tell)


def test_busy_neighbours_do_not_keep_a_session_from_renewing_its_lease(kind: Kind) -> None:
    async def tell() -> None:
        async with watchers(kind, 2) as (quiet, busy):
            await quiet.store.put("links/1", b"x")
            for number in range(int(2.5 * LEASE / 0.05)):
                await busy.store.put("links/2", b"%d" % number)
                await asyncio.sleep(0.05)
            await busy.until(lambda state: state is not None and state.get("links/1") == b"x")

    story(tell)


def test_a_lost_store_is_told_and_its_return_brings_the_whole_state(kind: Kind) -> None:
    async def tell() -> None:
        async with watchers(kind, 2) as (one, other):
            await one.store.put("links/1", b"before")
            await other.store.put("links/2", b"x")
            await one.sees({"links/1": b"before", "links/2": b"x"})
            kind.lose()
            await one.sees(None)
            await other.sees(None)
            with contextlib.suppress(Exception):  # it may say so; it must not forget
                await one.store.put("links/1", b"meanwhile")
            kind.find()
            await one.sees({"links/1": b"meanwhile", "links/2": b"x"})
            await other.sees({"links/1": b"meanwhile", "links/2": b"x"})

    story(tell)


def test_nothing_is_missed_when_many_write_at_once(kind: Kind) -> None:
    async def write(watcher: Watcher, number: int, rng: random.Random) -> None:
        for count in range(20):
            await watcher.store.put(f"links/{number}", b"%d" % count)
            await asyncio.sleep(rng.random() * 0.02)

    async def tell() -> None:
        async with watchers(kind, 4) as several:
            rng = random.Random(7)
            await asyncio.gather(*(write(w, n, rng) for n, w in enumerate(several)))
            for watcher in several:
                await watcher.sees({f"links/{n}": b"19" for n in range(4)})

    story(tell)


def test_what_no_store_takes_is_refused_and_changes_nothing(kind: Kind) -> None:
    async def tell() -> None:
        async with watchers(kind) as (one,):
            for key, value in (
                ("", b""),
                ("../x", b""),
                ("a/b/c", b""),
                ("A", b""),
                ("links/1+2", b""),
                ("links/1", bytes(MAX_VALUE + 1)),
            ):
                with pytest.raises(UserError):
                    await one.store.put(key, value)
            await one.store.put("links/1", bytes(MAX_VALUE))
            await one.sees({"links/1": bytes(MAX_VALUE)})

    story(tell)


def test_a_killed_process_is_gone_when_its_lease_ends(kind: Kind) -> None:
    if not kind.argv:
        pytest.skip("sessions with a store in memory are of one process")

    async def tell() -> None:
        async with watchers(kind) as (stays,):
            await stays.store.put("links/1", b"mine")
            with subprocess.Popen([*kind.argv, "links/2", "theirs"]) as process:
                await stays.sees({"links/1": b"mine", "links/2": b"theirs"})
                await asyncio.sleep(2 * LEASE)
                assert stays.states[-1] == {"links/1": b"mine", "links/2": b"theirs"}
                process.send_signal(signal.SIGKILL)
                process.wait()
            await stays.sees({"links/1": b"mine"})

    story(tell)
