"""One simulation from question to figures.

Owns: the order of things: probes, streams, failures, the last packets. May import: errors, routing,
sim. What the figures mean is in :mod:`fabric.sim.report`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from random import Random
from typing import Any

from fabric.errors import UserError
from fabric.routing.topology import Topology
from fabric.sim.failures import Failure
from fabric.sim.hosts import Ends
from fabric.sim.network import Network
from fabric.sim.report import Course, report
from fabric.sim.settings import Settings
from fabric.sim.streams import Stream, optimum

Progress = Callable[[str, float], None]
"""(what is being done, part of it that is done: 0 … 1)"""


def simulate(
    topology: Topology,
    settings: Settings,
    failures: Sequence[Failure] = (),
    progress: Progress = lambda _what, _part: None,
) -> dict[str, Any]:
    """Run it; the figures as plain data. Equal questions have equal answers.

    Raises UserError when there is nobody to talk to.
    """
    if len(topology.nodes) < 2:
        raise UserError("a simulation needs at least two hosts")
    rng = Random(settings.seed)
    network = Network(topology, settings, rng)
    streams = _streams(topology, settings, rng)
    progress("first packets", 0.0)
    for at, stream in enumerate(streams):
        network.send(stream)
        progress("first packets", at / len(streams))
    network.clock.run()
    course = Course(network, settings, streams, tuple(failures))
    course.before = course.look(network.maps.whole)
    if failures:
        course.origin_us = network.clock.now_us  # the first packets took their time
        _go_on(network, settings, streams, failures, progress)
        _last_packets(network, streams, progress)
        course.after = course.look(network.maps.without(network.control.down))
    progress("table sizes", 0.0)
    return report(course)


def _streams(topology: Topology, settings: Settings, rng: Random) -> list[Stream]:
    nodes = [node.id for node in topology.nodes]
    every = len(nodes) * (len(nodes) - 1)
    if settings.pairs >= every:
        pairs = [(a, b) for a in nodes for b in nodes if a != b]
    else:
        chosen: dict[tuple[int, int], None] = {}
        while len(chosen) < settings.pairs:
            a, b = rng.sample(nodes, 2)
            chosen[a, b] = None
        pairs = list(chosen)
    found: list[Stream] = []
    for definition in settings.protocols:
        for a, b in pairs:
            found.append(Stream(Ends(len(found) + 1, a, b, definition.id), definition))
    return found


def _go_on(
    network: Network,
    settings: Settings,
    streams: Sequence[Stream],
    failures: Sequence[Failure],
    progress: Progress,
) -> None:
    """From a little before the first change until the last one has settled."""
    clock, control = network.clock, network.control
    moments = [moment for failure in failures for moment in failure.moments]
    origin = clock.now_us
    begin = origin + max(0, min(moments) - settings.lead_us)
    end = origin + max(moments) + settings.settle_us

    def beat(stream: Stream) -> None:
        network.send(stream)
        if clock.now_us + settings.interval_us <= end:
            clock.after(settings.interval_us, partial(beat, stream))

    for at, stream in enumerate(streams):
        # Not all in one moment, and none in the very moment something fails.
        offset = settings.interval_us * (2 * at + 1) // (2 * len(streams))
        clock.at(begin + offset, partial(beat, stream))
    for failure in failures:
        control.plan(failure, origin)
    control.on_change = lambda: _mark_unreachable(network, streams)
    span = end - begin
    clock.run(lambda now: progress("packets", (now - begin) / span))


def _mark_unreachable(network: Network, streams: Sequence[Stream]) -> None:
    """Streams nothing could have helped: their losses are no blackout."""
    known = network.maps.without(network.control.down)
    for stream in streams:
        ends = stream.ends
        if not stream.out_of_reach:
            best = optimum(stream.definition, known, ends.source, ends.destination)
            stream.out_of_reach = best is None


def _last_packets(network: Network, streams: Sequence[Stream], progress: Progress) -> None:
    progress("last packets", 0.0)
    for stream in streams:
        network.send(stream)
    network.clock.run()
