"""Intentions survive the writer; torn lines do not hurt."""

from __future__ import annotations

from pathlib import Path

import pytest

from fabric.errors import EnvironmentFault
from fabric.host.journal import COMPACT_AFTER_LINES, Entry, Journal


def names(journal: Journal) -> list[str]:
    return [entry.name for entry in journal.open_entries()]


def test_an_intention_is_there_for_whoever_comes_later(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    first = Journal(path)
    first.open()
    first.intend("guest", "g1", connection="2a")
    first.intend("guest", "g2")
    first.done("guest", "g2")
    # No close: the writer died.
    with Journal(path) as second:
        assert second.open_entries() == (Entry("guest", "g1", {"connection": "2a"}),)


def test_a_torn_last_line_is_passed_over_and_not_appended_to(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    with Journal(path) as journal:
        journal.intend("guest", "g1")
    with path.open("ab") as file:
        file.write(b'{"intend": "guest", "na')
    with Journal(path) as journal:
        assert names(journal) == ["g1"]
        journal.intend("guest", "g2")
    with Journal(path) as journal:
        assert names(journal) == ["g1", "g2"]


@pytest.mark.parametrize("junk", [b"\x00\xff\n", b"[]\n", b'{"x": 1}\n', b"\n\n", b"7\n"])
def test_junk_is_passed_over(tmp_path: Path, junk: bytes) -> None:
    path = tmp_path / "journal"
    with Journal(path) as journal:
        journal.intend("guest", "g1")
    path.write_bytes(junk + path.read_bytes() + junk)
    with Journal(path) as journal:
        assert names(journal) == ["g1"]


def test_done_twice_or_for_a_stranger_is_harmless(tmp_path: Path) -> None:
    with Journal(tmp_path / "journal") as journal:
        journal.intend("guest", "g1")
        for _ in range(2):
            journal.done("guest", "g1")
        journal.done("guest", "never")
        journal.done("tap", "g1")
        assert names(journal) == []


def test_the_file_stays_small(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    with Journal(path) as journal:
        journal.intend("guest", "kept")
        for number in range(COMPACT_AFTER_LINES):
            journal.intend("guest", f"g{number}")
            journal.done("guest", f"g{number}")
        assert len(path.read_bytes().splitlines()) <= COMPACT_AFTER_LINES + 2
        assert names(journal) == ["kept"]
    with Journal(path) as journal:
        assert names(journal) == ["kept"]


def test_a_journal_that_is_not_open_says_so(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFault, match="not open"):
        Journal(tmp_path / "journal").intend("guest", "g1")


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(EnvironmentFault, match="file/journal"):
        Journal(tmp_path / "file" / "journal").open()
