"""Removing what labs left behind: everything that bears our mark and belongs to no live lab.

Owns: finding leftovers by their marks, without any record. May import: errors, host, lab. Marks
are: the metadata of a domain, the alias of an interface, the alias of a namespace's loopback, the
first line of a hosts file, the run directory itself, the manifest of a template. What bears none is
never touched, whatever it is called.

In a lab that lives, only its orchestrators know what has an owner: they are asked to compare now
(:mod:`fabric.host.upkeep.reaper`), as they do by themselves every minute.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from fabric.errors import FabricError, HypervisorDown
from fabric.host.guest import template
from fabric.host.vmm.remains import qemus
from fabric.lab import control, names, processes, resources, state
from fabric.lab.builder import Machine
from fabric.lab.client import HostClient
from fabric.lab.names import Owner
from fabric.lab.preflight import require_root
from fabric.lab.spec import LinkSpec
from fabric.lab.state import LabState
from fabric.lab.world import ROOT, World

REAP_TIMEOUT = 30.0
"""Seconds for an orchestrator to end what has no owner: libvirt takes 1.3 s for a guest."""


@dataclass(frozen=True)
class Leftover:
    """Something of a lab that does not run any more."""

    kind: str
    name: str
    lab: str
    remove: Callable[[], None]

    def to_json(self) -> dict[str, str]:
        return {"kind": self.kind, "name": self.name, "lab": self.lab}


def collect(
    run_dir: Path, machine: Machine, *, dry_run: bool = False, only: frozenset[str] = frozenset()
) -> list[Leftover]:
    """Find and, unless ``dry_run``, remove all leftovers; those that were found.

    ``only``: look no further than at these labs (all, when empty). Marks do not say which run
    directory a lab is recorded in: a lab recorded elsewhere looks dead from here. Raises NotRoot,
    and the first error that kept something from being removed, after removing the rest.
    """
    require_root()
    with state.locked(run_dir), machine.world() as world:
        reaped = _reaped(run_dir, only, dry_run=dry_run)
        every = [*find(run_dir, world), *_cuts(run_dir, world), *_templates(machine), *reaped]
        found = [x for x in every if not only or x.lab in only]
        first_error: FabricError | None = None
        for leftover in [] if dry_run else found:
            try:
                leftover.remove()
            except FabricError as exc:
                first_error = first_error or exc
        if first_error is not None:
            raise first_error
        return found


def find(run_dir: Path, world: World) -> Iterator[Leftover]:
    """All leftovers, in the order in which they can be removed."""
    live = live_labs(run_dir)
    yield from _domains(run_dir, world, live)
    yield from _namespaces(world, live)
    yield from _links(world, live)
    yield from _hosts_files(world, live)
    yield from _directories(run_dir, live)


def _reaped(run_dir: Path, only: frozenset[str], *, dry_run: bool) -> Iterator[Leftover]:
    """What the orchestrators of live labs do, or would do, about differences of their own."""
    for lab in sorted(x for x in live_labs(run_dir) if not only or x in only):
        recorded = state.load(run_dir, lab)
        for host in recorded.spec.hosts if recorded else ():
            client = HostClient(host.host, host.api_socket)
            with contextlib.suppress(FabricError):  # a dead one compares when it is started again
                for action in client.post("/v1/reap", timeout=REAP_TIMEOUT, dry_run=dry_run):
                    name = f"{host.host}: {action['what']} ({action['why']})"
                    yield Leftover(action["verb"], name, lab, _nothing)


def _cuts(run_dir: Path, world: World) -> Iterator[Leftover]:
    """Links of live labs that a check cut, and was killed before it gave them back."""
    for lab in sorted(live_labs(run_dir)):
        recorded = state.load(run_dir, lab)
        for link in control.abandoned(recorded) if recorded else ():

            def remove(recorded: LabState | None = recorded, link: LinkSpec = link) -> None:
                assert recorded is not None
                control.give_back(world, recorded, link)

            yield Leftover("cut", f"link {link.label}", lab, remove)


def _nothing() -> None:
    """Its orchestrator did it."""


def _templates(machine: Machine) -> Iterator[Leftover]:
    """No lab's: they serve all labs of the machine, and stay when those go."""
    for place in machine.stale_templates():

        def remove(place: Path = place) -> None:
            template.remove(place)

        yield Leftover("template", str(place), "", remove)


def live_labs(run_dir: Path) -> set[str]:
    """Labs of which a recorded process still runs. The lock keeps a lab that is just being
    brought up from being seen half-made."""
    live = set()
    for lab in state.recorded_labs(run_dir):
        with contextlib.suppress(FabricError):
            recorded = state.load(run_dir, lab)
            if recorded is not None and recorded.live:
                live.add(lab)
    return live


def _domains(run_dir: Path, world: World, live: set[str]) -> Iterator[Leftover]:
    """Domains, and QEMUs that libvirt does not know: their name and their directory are a mark."""
    try:
        owned = world.hypervisor.list_owned()
    except HypervisorDown:
        return  # it may come back and know them; and nothing could be ended cleanly
    strays = {
        name: place.parent.name
        for place in sorted(run_dir.glob("*/*/"))
        if place.parent.name not in live
        for name in qemus(f"{names.namespace_name(place.parent.name, place.name)}-g")
    }
    for name in strays.keys() - {domain.name for domain in owned}:

        def end(name: str = name) -> None:
            world.hypervisor.destroy(name)

        yield Leftover("process", name, strays[name], end)
    for domain in owned:
        if domain.lab not in live:

            def remove(name: str = domain.name) -> None:
                world.hypervisor.destroy(name)

            yield Leftover("domain", domain.name, domain.lab, remove)


def _namespaces(world: World, live: set[str]) -> Iterator[Leftover]:
    for name in sorted(world.namespaces()):
        # Both name and mark: a namespace of somebody else's would need to have copied both. What
        # has another name is not even looked into: its owner may be about to remove it.
        if not name.startswith(names.NAMESPACE_PREFIX):
            continue
        owner = world.owner_of_namespace(name)
        if owner is None or owner.lab in live:
            continue
        if name == names.namespace_name(owner.lab, owner.host):

            def remove(name: str = name) -> None:
                processes.end_inside(name)
                world.delete_namespace(name)

            yield Leftover("namespace", name, owner.lab, remove)


def _links(world: World, live: set[str]) -> Iterator[Leftover]:
    links = world.links()
    bridges: dict[str, str] = {}
    for name, link in links.items():
        owner = Owner.from_alias(link.alias)
        if owner is None or owner.lab in live:
            continue
        if link.kind == "bridge":
            bridges[name] = owner.lab
        yield _link(world, name, owner.lab)
    for name, link in links.items():
        # libvirt makes the taps, without a mark: a tap is ours by its name *and* its bridge.
        lab = bridges.get(link.master or "")
        if lab and names.tag_of_interface(name) and Owner.from_alias(link.alias) is None:
            yield _link(world, name, lab)


def _link(world: World, name: str, lab: str) -> Leftover:
    return Leftover("link", name, lab, lambda: resources.delete_if_there(world, ROOT, name))


def _hosts_files(world: World, live: set[str]) -> Iterator[Leftover]:
    for path in sorted(world.netns_files.glob(f"{names.NAMESPACE_PREFIX}*/hosts")):
        with contextlib.suppress(OSError):
            first = path.read_text().partition("\n")[0]
            lab = first.removeprefix(resources.FILE_MARK)
            if lab != first and lab not in live:

                def remove(path: Path = path) -> None:
                    resources.remove_marked_file(path, resources.FILE_MARK)

                yield Leftover("file", str(path), lab, remove)


def _directories(run_dir: Path, live: set[str]) -> Iterator[Leftover]:
    for path in sorted(run_dir.glob("*/")):
        if path.name not in live:

            def remove(path: Path = path) -> None:
                shutil.rmtree(path, ignore_errors=True)

            yield Leftover("directory", str(path), path.name, remove)
