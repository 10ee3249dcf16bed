"""Bringing a lab up and taking it down: desired parts against what is there.

Owns: the order of the parts, roll-back, proof of absence. May import: errors, host, lab. `up` makes
what is missing and nothing else, so a second `up` of the same file changes nothing and a damaged
lab is repaired; `down` removes what is there, however little that is.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fabric.errors import ConfigError, Conflict, EnvironmentFault, FabricError
from fabric.host.vmm.domains import Hypervisor
from fabric.lab import names, preflight, state
from fabric.lab.daemons import (
    LINK_WATCH,
    ORCHESTRATOR,
    Daemon,
    Emulator,
    LinkWatch,
    Orchestrator,
    Service,
)
from fabric.lab.links import BackToFile, Link
from fabric.lab.names import Owner
from fabric.lab.resources import ConfigFile, GuestBridge, HostsFile, Namespace, Resource
from fabric.lab.spec import LabSpec
from fabric.lab.state import LabState
from fabric.lab.templates import stale_templates
from fabric.lab.world import NETNS_FILES, World

Progress = Callable[[str], None]


def silent(_line: str) -> None:
    """A Progress for callers that show none."""


@dataclass(frozen=True)
class Machine:
    """What of this machine the builder depends on; tests put their own in its place."""

    open_hypervisor: Callable[[], Hypervisor]
    check: preflight.Preflight = preflight.require_machine
    orchestrator: tuple[str, ...] = ORCHESTRATOR
    link_watch: tuple[str, ...] = LINK_WATCH
    netns_files: Path = NETNS_FILES
    stale_templates: Callable[[], list[Path]] = list
    """What :mod:`fabric.lab.gc` may remove of the machine's templates."""

    @classmethod
    def real(cls, libvirt_uri: str) -> Machine:
        """This machine with its libvirt."""
        from fabric.host.vmm import libvirtd

        return cls(lambda: libvirtd.hypervisor(libvirt_uri), stale_templates=stale_templates)

    def world(self) -> World:
        return World(self.open_hypervisor, netns_files=self.netns_files)


@dataclass(frozen=True)
class Report:
    """What `up` or `down` did, or would do."""

    lab: str
    changed: tuple[str, ...]
    """Labels of the parts made or removed, in order."""
    mended: tuple[str, ...] = ()
    """Those of them that were there, and are again as the file has them."""

    @classmethod
    def of(cls, lab: str, parts: Sequence[Resource]) -> Report:
        mended = tuple(part.label for part in parts if isinstance(part, BackToFile))
        return cls(lab, tuple(part.label for part in parts), mended)


def parts(lab: LabState, machine: Machine) -> list[Resource]:
    """Everything the lab consists of, in the order of creation."""
    spec = lab.spec
    found: list[Resource] = [
        Namespace(names.namespace_name(spec.name, host.host), Owner(spec.name, host.host))
        for host in spec.hosts
    ]
    if spec.links:
        owner = Owner(spec.name, names.LINKS_HOST)
        found.append(Namespace(names.emulator_namespace(spec.name), owner))
    found += [GuestBridge(host, spec.bridge_mtu(host.host)) for host in spec.hosts]
    found += [Link(lab, link) for link in spec.links]
    found += [HostsFile(spec, host, machine.netns_files) for host in spec.hosts]
    found += [ConfigFile(host) for host in spec.hosts]
    if spec.impaired_links or names.LINKS_HOST in lab.processes:
        found.append(Emulator(lab, spec))
    watched = (host for host in spec.hosts if host.liveness.enabled)
    found += [LinkWatch(lab, host, machine.link_watch) for host in watched]
    found += [Orchestrator(lab, host, machine.orchestrator) for host in spec.hosts]
    found += [Service(lab, service) for service in spec.services]
    return found


def plan(spec: LabSpec, machine: Machine) -> Report:
    """What `up` would make. Changes nothing, beyond starting libvirt. Raises as :func:`up`."""
    run_dir = Path(spec.hosts[0].run_dir)
    preflight.require_no_conflict(spec, run_dir)
    machine.check(spec)
    lab = state.load(run_dir, spec.name) or LabState(spec)
    with machine.world() as world:
        return Report.of(spec.name, _missing(lab, machine, world))


def up(spec: LabSpec, machine: Machine, progress: Progress = silent) -> Report:
    """Have the lab run when this returns.

    Raises Conflict (name or interface taken), EnvironmentFault and its kin (the machine lacks
    something). After an error, what this call made is gone again.
    """
    run_dir = Path(spec.hosts[0].run_dir)
    preflight.require_root()
    with state.locked(run_dir):
        preflight.require_no_conflict(spec, run_dir)
        progress("checking this machine")
        machine.check(spec)
        recorded = state.load(run_dir, spec.name)
        lab = recorded or LabState(spec)
        with machine.world() as world:
            missing = _missing(lab, machine, world)
            if not missing and lab.phase == state.UP:
                return Report(spec.name, ())
            lab.phase = state.BUILDING
            lab.save()
            try:
                _create(missing, world, progress)
            except BaseException:
                progress("failed: undoing what was made")
                _roll_back(lab, missing, world, keep_record=recorded is not None)
                raise
            lab.phase = state.UP
            lab.save()
        return Report.of(spec.name, missing)


def down(lab_name: str, run_dir: Path, machine: Machine, progress: Progress = silent) -> Report:
    """Have nothing of the lab left when this returns; fine when there was nothing.

    Raises EnvironmentFault naming what could not be removed, after removing the rest.
    """
    preflight.require_root()
    if not run_dir.exists():
        return Report(lab_name, ())
    with state.locked(run_dir):
        try:
            lab = state.load(run_dir, lab_name)
        except (EnvironmentFault, ConfigError) as exc:
            # Without its record the lab is found by its marks.
            raise EnvironmentFault(str(exc), cure="run `fabric gc`, which needs no record") from exc
        if lab is None:
            return Report(lab_name, ())
        with machine.world() as world:
            every = list(reversed(parts(lab, machine)))
            removed = _remove(every, world, progress)
            if left := _leftovers(every, world):
                _remove(every, world, progress)
                left = _leftovers(every, world)
        if left:
            raise EnvironmentFault(
                f"lab {lab_name}: still there: {'; '.join(left)}", cure="`fabric gc` tries again"
            )
        shutil.rmtree(lab.spec.run_dir, ignore_errors=True)
        return Report(lab_name, tuple(removed))


def _missing(lab: LabState, machine: Machine, world: World) -> list[Resource]:
    """Parts that are not there, in the order of creation.

    A daemon that runs on damaged wiring counts as missing: it holds sockets and neighbour entries
    of interfaces that are gone.
    """
    every = parts(lab, machine) + [BackToFile(lab, link) for link in lab.spec.links]
    absent = [part for part in every if not part.present(world)]
    if all(isinstance(part, Daemon | HostsFile | BackToFile) for part in absent):
        return absent
    return [part for part in every if part in absent or isinstance(part, Daemon)]


def _create(missing: list[Resource], world: World, progress: Progress) -> None:
    for part in missing:
        progress(part.label)
        part.create(world)
    progress("waiting until the orchestrators answer")
    for part in missing:
        part.settle(world)


def _roll_back(lab: LabState, made: list[Resource], world: World, *, keep_record: bool) -> None:
    """Remove what this call made; the error that led here is the one to report, not another."""
    for action in ("retire", "remove"):
        for part in reversed(made):
            world.changed()
            with contextlib.suppress(FabricError):
                getattr(part, action)(world)
    if keep_record:
        with contextlib.suppress(FabricError):
            lab.save()
    else:
        # The log was shown with the error; a directory left behind would look like a lab.
        shutil.rmtree(lab.spec.run_dir, ignore_errors=True)


def _remove(every: list[Resource], world: World, progress: Progress) -> list[str]:
    ours, removed = [], []
    for part in every:
        try:
            if part.present(world):
                removed.append(part.label)
        except FabricError:
            continue  # somebody else's: not to be touched
        ours.append(part)
    for part in ours:
        part.retire(world)
    for part in ours:
        progress(part.label)
        try:
            # Also when not "present": half of it may be.
            part.remove(world)
        except FabricError as exc:
            progress(f"{part.label}: {exc}")
    return removed


def _leftovers(every: list[Resource], world: World) -> list[str]:
    world.changed()
    found = []
    for part in every:
        try:
            if part.left(world):
                found.append(part.label)
        except Conflict:
            continue  # somebody else's
        except FabricError as exc:
            found.append(f"{part.label} ({exc.message})")
    return found
