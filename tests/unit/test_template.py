"""Templates appear whole, are made once, and are used only as long as they are what they were."""

from __future__ import annotations

import asyncio
import errno
import os
import platform
import shutil
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from fabric.errors import EnvironmentFault
from fabric.host.guest import template
from fabric.host.guest.ingredients import Ingredients, processor
from fabric.host.guest.template import Template, TemplateStore, stale, stale_copies
from fabric.host.guest.template_archive import TemplateArchive
from fabric.host.vmm.image import GuestImage
from tests.unit.guest_samples import SampleAccelerator
from tests.unit.guest_world import BUNDLE

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


# -- copies on disk --------------------------------------------------------------------------------


def archived(directory: Path, made_of: Ingredients = MADE_OF) -> TemplateStore:
    return TemplateStore(
        directory / "templates", made_of, TemplateArchive(directory / "state/templates")
    )


def rebooted(directory: Path) -> None:
    """What was on tmpfs is gone."""
    shutil.rmtree(directory / "templates")


def kept(directory: Path) -> Path:
    """A template with a copy, after a reboot; where the copy is."""
    made = make(directory)
    archived(directory).keep_copy(made)
    rebooted(directory)
    return directory / "state/templates" / MADE_OF.key


def test_after_a_reboot_the_template_comes_from_its_copy(tmp_path: Path) -> None:
    kept(tmp_path)
    assert archived(tmp_path).find() is None
    found = archived(tmp_path).restore()
    assert found is not None and found == archived(tmp_path).find()
    memory = found.memory.read_bytes()
    assert len(memory) == 1 << 20 and memory[8 * 4096 :].startswith(b"guest" * 1000)
    assert found.state.read_bytes() == b"devices"
    assert found.kernel.read_bytes() == KERNEL[: template.KERNEL_STUB]
    assert found.memory.stat().st_blocks * 512 < 64 * 1024
    assert [p.name for p in (tmp_path / "templates").iterdir()] == [MADE_OF.key]


def test_only_root_may_read_a_copy(tmp_path: Path) -> None:
    place = kept(tmp_path)
    assert {path.stat().st_mode & 0o777 for path in place.iterdir()} == {0o600}
    assert place.stat().st_mode & 0o777 == place.parent.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("name", ["processor", "kernel", "qemu", "image", "agent", "memory_mib"])
def test_a_copy_of_other_ingredients_is_not_used(tmp_path: Path, name: str) -> None:
    kept(tmp_path)
    value = getattr(MADE_OF, name)
    other: Any = value + 1 if isinstance(value, int) else value + "'"
    changed = archived(tmp_path, replace(MADE_OF, **{name: other}))
    assert changed.restore() is None


@pytest.mark.parametrize("name", ["memory", "state", "kernel", "copy.json"])
@pytest.mark.parametrize("harm", ["lost", "changed"])
def test_a_damaged_copy_is_not_used(tmp_path: Path, name: str, harm: str) -> None:
    path = kept(tmp_path) / name
    content = path.read_bytes()
    path.unlink()
    if harm == "changed":
        path.write_bytes(content[:-2] + b"?" + content[-1:])
    assert archived(tmp_path).restore() is None
    assert list((tmp_path / "templates").iterdir()) == [], "nothing half restored"


def test_a_full_disk_leaves_the_copy_that_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = kept(tmp_path)
    made = make(tmp_path)

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        archived(tmp_path).keep_copy(made)
    monkeypatch.undo()
    assert [path for path in place.parent.iterdir()] == [place]
    rebooted(tmp_path)
    assert archived(tmp_path).restore() is not None


def test_copies_nobody_will_use_again_are_stale(tmp_path: Path) -> None:
    place = kept(tmp_path)
    copies = place.parent
    assert stale_copies(copies, replace(MADE_OF, memory_mib=0)) == []
    (copies / ".draft-abc").mkdir()
    assert stale_copies(copies, MADE_OF) == [copies / ".draft-abc"]
    assert place in stale_copies(copies, replace(MADE_OF, qemu="qemu 8"))
    assert stale_copies(tmp_path / "none", MADE_OF) == []


def test_the_processor_is_its_model_and_its_rounded_speed(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nmodel name\t: Some CPU\ncpu MHz\t: 1\n")
    first, again = processor(2_445_404, cpuinfo), processor(2_445_398, cpuinfo)
    assert first == again == "Some CPU, 2445 MHz"
    assert processor(2_600_000, cpuinfo) != first


@pytest.mark.parametrize(("kind", "matters"), [("kvm", True), ("tcg", False)])
def test_the_hosts_kernel_is_an_ingredient_where_it_runs_guests(
    tmp_path: Path, kind: str, matters: bool
) -> None:
    image = GuestImage(tmp_path, "image", "6.1", "3.11", 128, "ssh-ed25519 AAAA", tmp_path / "key")
    image.initrd.write_bytes(b"initramfs")
    made_of = Ingredients.gather(image, SampleAccelerator(kind=kind), BUNDLE, "qemu 7", 128)
    assert (made_of.kernel == platform.release()) is matters
