"""What every hypervisor promises, asked of the fake and of libvirt's own test driver."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from fabric.errors import Conflict, SpawnFailed
from fabric.host.identity import GuestIdentity
from fabric.host.vmm.domain_xml import OwnerMark, mark_element, render
from fabric.host.vmm.domains import DomainEvent, Hypervisor
from fabric.host.vmm.hypervisor import LibvirtHypervisor
from fabric.host.vmm.hypervisor_fake import FakeHypervisor
from tests.unit.guest_samples import CONFIG, spec

NAMES = ("fake", "libvirt")


@pytest.fixture(params=NAMES)
def hypervisor(request: pytest.FixtureRequest) -> Iterator[Hypervisor]:
    made: Hypervisor
    made = FakeHypervisor() if request.param == "fake" else LibvirtHypervisor("test:///default")
    try:
        yield made
    finally:
        # The test driver's default connection outlives ours within one process.
        for owned in made.list_owned():
            made.destroy(owned.name)
        made.close()


def xml(index: int = 1, machine: str = "microvm", host: str = "h1") -> str:
    guest = spec("test", machine, index)
    identity = GuestIdentity.derive(replace(CONFIG, host=host), index)
    return render(replace(guest, identity=identity))


@pytest.mark.parametrize("machine", ["microvm", "q35"])
def test_our_xml_is_accepted(hypervisor: Hypervisor, machine: str) -> None:
    handle = hypervisor.create(xml(machine=machine))
    assert handle.name == "fabric-demo-h1-g1"
    assert handle.uuid
    assert handle.started_at == pytest.approx(time.time(), abs=60)


def test_a_created_domain_is_listed_as_ours(hypervisor: Hypervisor) -> None:
    handle = hypervisor.create(xml(1))
    hypervisor.create(xml(2))
    hypervisor.create(xml(1, host="h2"))
    mine = hypervisor.list_owned("demo", "h1")
    assert [(d.name, d.index) for d in mine] == [("fabric-demo-h1-g1", 1), ("fabric-demo-h1-g2", 2)]
    assert all(d.active and d.connection == 0x1_0000_002A for d in mine)
    assert mine[0].started_at == 1_700_000_000.0
    assert mine[0].uuid == handle.uuid
    assert len(hypervisor.list_owned("demo")) == 3
    assert len(hypervisor.list_owned()) == 3
    assert hypervisor.list_owned("other") == []


def test_a_name_can_be_taken_once(hypervisor: Hypervisor) -> None:
    hypervisor.create(xml())
    with pytest.raises(Conflict):
        hypervisor.create(xml())
    assert len(hypervisor.list_owned()) == 1


def test_a_destroyed_domain_is_absent_and_its_name_free(hypervisor: Hypervisor) -> None:
    hypervisor.create(xml())
    hypervisor.destroy("fabric-demo-h1-g1")
    assert hypervisor.list_owned() == []
    hypervisor.create(xml())


def test_destroying_what_is_absent_is_fine(hypervisor: Hypervisor) -> None:
    hypervisor.destroy("fabric-demo-h1-g1")
    hypervisor.create(xml())
    for _ in range(2):
        hypervisor.destroy("fabric-demo-h1-g1")


def test_starts_and_stops_are_reported_in_order(hypervisor: Hypervisor) -> None:
    seen: list[tuple[DomainEvent, str, str]] = []
    told = threading.Condition()

    def watcher(event: DomainEvent, name: str, identifier: str) -> None:
        with told:
            seen.append((event, name, identifier))
            told.notify()

    hypervisor.watch(watcher)
    name = "fabric-demo-h1-g1"
    uuid = hypervisor.create(xml()).uuid
    hypervisor.destroy(name)
    with told:
        assert told.wait_for(lambda: (DomainEvent.STOPPED, name, uuid) in seen, timeout=5)
    # The test driver is one for the whole process: ends of earlier tests' domains may still come.
    ours = [event for event, _, identifier in seen if identifier == uuid]
    assert ours == [DomainEvent.STARTED, DomainEvent.STOPPED]


def test_calls_may_come_from_many_threads(hypervisor: Hypervisor) -> None:
    threads = [
        threading.Thread(target=lambda i=index: hypervisor.create(xml(i))) for index in range(1, 9)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert [d.index for d in hypervisor.list_owned("demo", "h1")] == list(range(1, 9))


def test_what_is_absent_cannot_be_resumed_saved_or_loaded(
    hypervisor: Hypervisor, tmp_path: Path
) -> None:
    state = tmp_path / "state"
    with pytest.raises(SpawnFailed):
        hypervisor.resume("fabric-demo-h1-g1")
    with pytest.raises(SpawnFailed):
        hypervisor.save_state("fabric-demo-h1-g1", state)
    assert not state.exists()
    state.touch()
    with pytest.raises(SpawnFailed):
        hypervisor.arm("fabric-demo-h1-g1", state)
    with pytest.raises(SpawnFailed):
        hypervisor.wake("fabric-demo-h1-g1")


def test_a_domain_can_be_given_another_mark(hypervisor: Hypervisor) -> None:
    hypervisor.create(xml())
    hypervisor.assign("fabric-demo-h1-g1", mark_element(OwnerMark("demo", "h1", 1, 77, 5)))
    (owned,) = hypervisor.list_owned("demo", "h1")
    assert (owned.connection, owned.index) == (77, 1)


def test_a_hypervisor_says_whether_it_is_alive(hypervisor: Hypervisor) -> None:
    assert hypervisor.is_alive()


class Dead:
    """A libvirt connection whose daemon was killed."""

    def isAlive(self) -> bool:  # noqa: N802 - libvirt's name
        return False

    def __init__(self, hypervisor: LibvirtHypervisor) -> None:
        self._tell = threading.Thread(target=hypervisor._on_close, args=(None, 0, None))
        self.closed = threading.Event()
        self.told = False

    def unregisterCloseCallback(self) -> None:  # noqa: N802 - libvirt's name
        """As libvirt does it: it is being told of its end, and that is waited for."""
        self._tell.start()
        self._tell.join(10)
        self.told = not self._tell.is_alive()

    def close(self) -> None:
        self.closed.set()


def test_a_daemon_that_came_back_is_told_once_whoever_noticed_first() -> None:
    hypervisor = LibvirtHypervisor("test:///default")
    told: list[DomainEvent] = []
    back = threading.Event()

    def watcher(event: DomainEvent, _name: str, _uuid: str) -> None:
        told.append(event)
        back.set()

    hypervisor.watch(watcher)
    try:
        assert told == [], "the first connection is no return"
        dead = hypervisor._connection = Dead(hypervisor)
        assert hypervisor.is_alive(), "a call found it dead, and connected again"
        assert back.wait(10)
        assert dead.closed.wait(20)
        assert dead.told, "libvirt's callback waited for whoever closed the connection"
        assert hypervisor.is_alive()
        time.sleep(0.2)
        assert told == [DomainEvent.RECONNECTED]
    finally:
        hypervisor.close()
