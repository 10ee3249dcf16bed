"""The monitor commands of saving and loading, against a monitor that keeps a record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from fabric.errors import SpawnFailed
from fabric.host.vmm import migration


class Monitor:
    """Answers query-migrate with each of ``statuses`` in turn."""

    def __init__(self, *statuses: dict[str, Any]) -> None:
        self.statuses = list(statuses)
        self.asked: list[tuple[str, Any, list[int]]] = []

    def __call__(
        self, command: str, arguments: Mapping[str, Any] | None = None, files: Sequence[int] = ()
    ) -> Any:
        self.asked.append((command, arguments, list(files)))
        return self.statuses.pop(0) if command == "query-migrate" else {}

    def words(self) -> list[str]:
        return [command for command, _, _ in self.asked]


def test_memory_stays_out_of_both_streams() -> None:
    for transfer in (migration.save, migration.arm):
        monitor = Monitor({"status": "active"}, {"status": "completed"})
        transfer(monitor, 7)
        command, arguments, _ = monitor.asked[0]
        assert command == "migrate-set-capabilities"
        assert arguments["capabilities"] == [{"capability": "x-ignore-shared", "state": True}]
        assert ("getfd", {"fdname": "fabric-state"}, [7]) in monitor.asked


def test_saving_waits_for_the_end() -> None:
    monitor = Monitor({"status": "active"}, {"status": "completed"})
    migration.save(monitor, 7)
    assert not monitor.statuses


def test_a_guest_that_is_saved_still_runs() -> None:
    monitor = Monitor({"status": "completed"})
    migration.save(monitor, 7)
    assert "stop" not in monitor.words(), "its copies would wait to be told to go on, for ever"


def test_a_loaded_guest_does_not_announce_the_templates_mac() -> None:
    monitor = Monitor()
    migration.arm(monitor, 7)
    migration.load(monitor)
    silence: tuple[str, Any, list[int]] = ("migrate-set-parameters", {"announce-rounds": 0}, [])
    assert silence in monitor.asked
    assert monitor.asked.index(silence) < monitor.words().index("migrate-incoming")


def test_a_failure_says_why() -> None:
    monitor = Monitor({}, {"status": "failed", "error-desc": "no such device"})
    with pytest.raises(SpawnFailed, match="no such device"):
        migration.save(monitor, 7)


def test_a_transfer_that_never_ends_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(migration, "DEADLINE", 0.0)
    with pytest.raises(SpawnFailed, match="still active"):
        migration.save(Monitor(*[{"status": "active"}] * 5), 7)
