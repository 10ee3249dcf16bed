"""Templates appear whole, are made once, and are used only as long as they are what they were."""

from __future__ import annotations

import asyncio
import os
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from fabric.errors import EnvironmentFault
from fabric.host.guest import template
from fabric.host.guest.template import Ingredients, Template, TemplateStore, stale

MADE_OF = Ingredients("image", "boot", "agent", "qemu 7", "microvm", "tcg", "layout", 1)
KERNEL = bytes(range(256)) * 1024


def store(directory: Path, made_of: Ingredients = MADE_OF) -> TemplateStore:
    return TemplateStore(directory / "templates", made_of)


def make(directory: Path, made_of: Ingredients = MADE_OF) -> Template:
    """As a guest would: a few pages of memory, and a state."""
    made, kernel = store(directory, made_of), directory / "vmlinuz"
    kernel.write_bytes(KERNEL)
    draft = made.begin()
    with draft.memory.open("r+b") as file:
        file.seek(8 * 4096)
        file.write(b"guest" * 1000)
    draft.state.write_bytes(b"devices")
    return made.publish(draft, kernel)


def test_a_published_template_is_found_by_everybody(tmp_path: Path) -> None:
    assert store(tmp_path).find() is None
    made = make(tmp_path)
    found = store(tmp_path).find()
    assert found == made
    assert found is not None and found.problem() == ""
    memory = found.memory.read_bytes()
    assert len(memory) == 1 << 20
    assert memory[8 * 4096 :].startswith(b"guest") and not any(memory[: 8 * 4096])
    assert found.kernel.read_bytes() == KERNEL[: template.KERNEL_STUB]


def test_untouched_memory_takes_no_room(tmp_path: Path) -> None:
    assert make(tmp_path).memory.stat().st_blocks * 512 < 64 * 1024


@pytest.mark.parametrize("name", [field.name for field in fields(Ingredients)])
def test_another_ingredient_is_another_template(tmp_path: Path, name: str) -> None:
    make(tmp_path)
    value = getattr(MADE_OF, name)
    other: Any = value + 1 if isinstance(value, int) else value + "'"
    changed = replace(MADE_OF, **{name: other})
    assert changed.key != MADE_OF.key
    assert store(tmp_path, changed).find() is None


def test_memory_that_was_written_to_is_noticed(tmp_path: Path) -> None:
    made = make(tmp_path)
    with made.memory.open("r+b") as file:
        file.write(b"x")
    os.utime(made.memory)
    assert "changed after it was made" in made.problem()
    assert store(tmp_path).find() is None


def test_a_template_that_is_gone_is_noticed(tmp_path: Path) -> None:
    made = make(tmp_path)
    template.remove(made.directory)
    assert "is gone" in made.problem()
    assert store(tmp_path).find() is None


def test_a_state_that_was_cut_is_no_template(tmp_path: Path) -> None:
    make(tmp_path).state.write_bytes(b"devi")
    assert store(tmp_path).find() is None


def test_an_abandoned_draft_is_no_template_and_leaves_nothing(tmp_path: Path) -> None:
    made = store(tmp_path)
    draft = made.begin()
    assert made.find() is None
    made.abandon(draft)
    assert list(made.directory.iterdir()) == []


def test_a_new_template_takes_the_old_ones_place(tmp_path: Path) -> None:
    old, new = make(tmp_path), make(tmp_path)
    assert old != new
    assert old.problem()
    assert store(tmp_path).find() == new


def test_it_is_made_by_one_at_a_time(tmp_path: Path) -> None:
    inside: list[int] = []

    async def maker(number: int) -> None:
        async with store(tmp_path).lock():
            assert not inside
            inside.append(number)
            await asyncio.sleep(0.02)
            inside.remove(number)

    async def scenario() -> None:
        async with asyncio.timeout(10):
            await asyncio.gather(*map(maker, range(3)))

    asyncio.run(scenario())


def test_a_directory_others_may_write_to_is_not_used(tmp_path: Path) -> None:
    made = store(tmp_path)
    made.directory.mkdir()
    made.directory.chmod(0o777)
    with pytest.raises(EnvironmentFault, match="only this user"):
        made.begin()


def test_a_link_in_the_directorys_place_is_not_followed(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    made = store(tmp_path)
    made.directory.symlink_to(elsewhere)
    with pytest.raises(EnvironmentFault):
        made.begin()
    assert stale(made.directory, MADE_OF) == []


def test_what_nobody_will_use_again_is_stale(tmp_path: Path) -> None:
    kept = make(tmp_path)
    bigger = make(tmp_path, replace(MADE_OF, memory_mib=2))
    old = make(tmp_path, replace(MADE_OF, agent="older"))
    torn = kept.directory.with_name("torn")
    torn.mkdir()
    draft = store(tmp_path, replace(MADE_OF, image="newer")).begin()
    found = stale(kept.directory.parent, MADE_OF)
    assert set(found) == {old.directory, torn, draft.directory}
    for place in found:
        template.remove(place)
    assert stale(kept.directory.parent, MADE_OF) == []
    assert not kept.problem() and not bigger.problem()


def test_a_draft_in_the_making_is_not_stale(tmp_path: Path) -> None:
    made = store(tmp_path)

    async def scenario() -> None:
        async with made.lock():
            made.begin()
            assert stale(made.directory, MADE_OF) == []
        assert len(stale(made.directory, MADE_OF)) == 1

    asyncio.run(scenario())
