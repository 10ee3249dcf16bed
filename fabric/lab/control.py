"""Changing a link while the lab runs.

Owns: the order of a change, its record. May import: errors, lab. What is to hold is recorded before
it holds, so `up`, `down` and `gc` find it whatever becomes of the command. A change of delay,
jitter or rate loses no frame and lets none overtake another.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from fabric.errors import Conflict, EnvironmentFault, NameUnknown, UserError
from fabric.lab import preflight, processes, state
from fabric.lab.daemons import Emulator
from fabric.lab.links_section import pairs_in
from fabric.lab.spec import LabSpec, LinkSpec
from fabric.lab.standing import UP, Standing
from fabric.lab.state import LabState
from fabric.lab.switch import Switch, drain, uses_emulator
from fabric.lab.world import World

Change = Callable[[Standing], Standing]


@dataclass(frozen=True)
class Changed:
    """What became of a link."""

    link: LinkSpec
    before: Standing
    now: Standing


def find_link(spec: LabSpec, text: str) -> LinkSpec:
    """The link ``A-B`` (or ``B-A``). Raises NameUnknown listing the links, UserError."""
    hosts = [host.host for host in spec.hosts]
    pairs = {frozenset(pair) for pair in pairs_in(text, hosts)}
    found = [link for link in spec.links if frozenset((link.a.host, link.b.host)) in pairs]
    if len(found) > 1:
        readings = " or ".join(f"{link.a.host} and {link.b.host}" for link in found)
        raise UserError(f"{text} can mean {readings}", cure="rename one of the hosts")
    if not found:
        known = ", ".join(link.label for link in spec.links) or "none"
        raise NameUnknown(f"lab {spec.name} has no link {text}", cure=f"its links are: {known}")
    return found[0]


class Control:
    """The links of one lab that is up, for as long as somebody changes them."""

    def __init__(self, run_dir: Path, lab: str, world: World) -> None:
        self._run_dir = run_dir
        self._lab = lab
        self.world = world

    def change(self, link: str, change: Change) -> Changed:
        """Have a link stand as ``change`` makes it of how it stands now.

        Raises NameUnknown (no such lab or link), NotRoot, EnvironmentFault (the lab is damaged).
        """
        preflight.require_root()
        with state.locked(self._run_dir):
            lab = state.require(self._run_dir, self._lab)
            found = find_link(lab.spec, link)
            self._require_whole(found)
            before = lab.standing(found)
            now = change(before)
            if now != before or found.number in lab.cuts:
                apply(self.world, lab, found, now)
            return Changed(found, before, now)

    @contextmanager
    def cut(self, link: str, to: str) -> Iterator[Callable[[], None]]:
        """Have a link ``down`` or ``silent`` from the call of what this yields to the end of the
        block, and then as it was before. Whoever dies in between is found by `gc`.

        Raises as :meth:`change`, and UserError when the link carries nothing anyway.
        """
        preflight.require_root()
        me = processes.identify(os.getpid())
        assert me is not None, "this process lives"
        with state.locked(self._run_dir):
            lab = state.require(self._run_dir, self._lab)
            found = find_link(lab.spec, link)
            self._require_whole(found)
            before = lab.standing(found)
            if before.state != UP:
                raise UserError(f"link {found.label} is {before.state} already")
            holder = lab.cuts.get(found.number)
            if holder is not None and holder.is_alive():
                raise Conflict(
                    f"link {found.label} is cut by process {holder.pid}", cure="wait for its end"
                )
            switch = Switch(self._lab, found)
            switch.ready(self.world)
            lab.cuts[found.number] = me
            lab.save()
        try:
            yield lambda: switch.cut(self.world, replace(before, state=to))
        finally:
            with state.locked(self._run_dir):
                again = state.load(self._run_dir, self._lab)
                if again is not None and found.number in again.cuts:
                    give_back(self.world, again, found)

    def _require_whole(self, link: LinkSpec) -> None:
        self.world.changed()
        if not Switch(self._lab, link).present(self.world):
            raise EnvironmentFault(f"link {link.label} is damaged", cure="fabric up FILE")


def apply(world: World, lab: LabState, link: LinkSpec, now: Standing) -> None:
    """Have ``link`` stand like that, and the record say so."""
    before = lab.standing(link)
    lab.cuts.pop(link.number, None)
    lab.standings[link.number] = now
    if now == link.standing:
        del lab.standings[link.number]
    lab.save()
    switch = Switch(lab.spec.name, link)
    if before.state == UP != now.state and replace(before, state=now.state) == now:
        switch.cut(world, now)
        return
    if (before.impaired or now.impaired) and uses_emulator(world, lab.spec.name):
        switch.prepare(world, now)
        Emulator(lab, lab.spec).change(world, link)
        if before.impaired and not now.impaired:
            drain(before)
    switch.set(world, now)


def give_back(world: World, lab: LabState, link: LinkSpec) -> None:
    """End a cut: the link stands as the record has it."""
    lab.cuts.pop(link.number, None)
    Switch(lab.spec.name, link).set(world, lab.standing(link))
    lab.save()


def abandoned(lab: LabState) -> list[LinkSpec]:
    """Links cut by a process that is no more."""
    by_number = {link.number: link for link in lab.spec.links}
    return [by_number[number] for number, holder in lab.cuts.items() if not holder.is_alive()]
