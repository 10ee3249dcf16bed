"""One lab's orchestrators, asked together.

Owns: merging the answers of several hosts. May import: errors, lab.client, lab.state. A host that
does not answer costs a warning, and an error only when none does.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from fabric.errors import FabricError, NameUnknown, Unreachable
from fabric.lab.client import HostClient
from fabric.lab.spec import LabSpec

T = TypeVar("T")

SHORTEST_ID = 16
"""Digits of a whole connection id; anything shorter is a prefix to look up."""


class LabClient:
    """The APIs of all hosts of a lab."""

    def __init__(self, spec: LabSpec, warn: Callable[[str], None]) -> None:
        self._warn = warn
        self.hosts = {host.host: HostClient(host.host, host.api_socket) for host in spec.hosts}

    def ask_all(self, ask: Callable[[HostClient], T]) -> dict[str, T]:
        """``ask`` on every host at once; answers by host, in the lab's order.

        Hosts that do not know the thing asked for are left out. Raises Unreachable when no host
        answers at all.
        """
        answers: dict[str, T] = {}
        errors: dict[str, FabricError] = {}

        def one(client: HostClient) -> None:
            try:
                answers[client.host] = ask(client)
            except FabricError as exc:
                errors[client.host] = exc

        threads = [threading.Thread(target=one, args=(c,)) for c in self.hosts.values()]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        silent = [exc for exc in errors.values() if isinstance(exc, Unreachable)]
        if silent and len(silent) == len(self.hosts):
            raise silent[0]
        for exc in silent:
            self._warn(f"warning: {exc.message}")
        return {host: answers[host] for host in self.hosts if host in answers}

    def connections(self, *, live: bool = False) -> list[dict[str, Any]]:
        """One entry per connection, newest first: as its ingress host sees it, with ``hosts``, the
        view of every host on its path."""
        answers = self.ask_all(lambda client: client.get("/v1/connections", live=live))
        merged: dict[str, list[dict[str, Any]]] = {}
        for host, views in answers.items():
            for view in views:
                merged.setdefault(view["id"], []).append({**view, "host": host})
        found = []
        for views in merged.values():
            views.sort(key=lambda view: (view.get("role") != "ingress", view["created_at"]))
            found.append({**views[0], "hosts": views})
        found.sort(key=lambda connection: connection["created_at"], reverse=True)
        return found

    def connection(self, label: str) -> dict[str, Any]:
        """The connection whose id starts with ``label``. Raises NameUnknown, also if ambiguous."""
        wanted = label.lower()
        every = self.connections()
        found = [each for each in every if each["id"].startswith(wanted)] if wanted else []
        if len(found) == 1:
            return found[0]
        if found:
            ids = ", ".join(each["id"] for each in found)
            raise NameUnknown(f"{len(found)} connections start with {label}: {ids}")
        raise NameUnknown(
            f"no connection {label!r}", cure="`fabric connections` lists all that are known"
        )

    def traces(self, connection: str, last: int) -> list[dict[str, Any]]:
        """Traces of packets delivered anywhere in the lab, newest last."""
        answers = self.ask_all(
            lambda client: client.get("/v1/traces", connection=connection, last=last)
        )
        every = [trace for traces in answers.values() for trace in traces]
        every.sort(key=_delivered_at)
        return every[-last:] if last else []

    def explain(self, connection: str) -> list[dict[str, Any]]:
        """Every host's reasons, in the order of the path."""
        answers = self.ask_all(lambda client: client.get(f"/v1/explain/{connection}"))
        return along_path(answers)

    def events(self) -> list[dict[str, Any]]:
        """All events so far, by time."""
        answers = self.ask_all(lambda client: list(client.lines("/v1/events", timeout=10.0)))
        every = [event for events in answers.values() for event in events]
        every.sort(key=lambda event: (event["at_us"], event["host"], event["seq"]))
        return every

    def follow(self, since: dict[str, int]) -> Iterator[dict[str, Any]]:
        """New events of all hosts as they come; ``since``: last number seen of each host. Ends when
        no host is left that sends any."""
        arriving: queue.Queue[dict[str, Any] | None] = queue.Queue()

        def read(client: HostClient) -> None:
            try:
                number = since.get(client.host, 0)
                for event in client.lines("/v1/events", since=number, follow=True):
                    arriving.put(event)
            except FabricError as exc:
                self._warn(f"warning: {exc.message}")
            finally:
                arriving.put(None)

        for client in self.hosts.values():
            # Daemon threads: they block on a socket, and end with the command.
            threading.Thread(target=read, args=(client,), daemon=True).start()
        reading = len(self.hosts)
        while reading:
            event = arriving.get()
            if event is None:
                reading -= 1
            else:
                yield event


def along_path(by_host: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Explanations from the ingress host along the next hops; what is off that path comes last."""
    rest = dict(by_host)
    host = next((name for name, each in rest.items() if each.get("role") == "ingress"), None)
    found = []
    while host in rest:
        each = rest.pop(host)
        found.append(each)
        host = (each.get("next_hop") or {}).get("host")
    return found + list(rest.values())


def _delivered_at(trace: dict[str, Any]) -> tuple[str, int]:
    """When the last host received it: ISO 8601 in UTC sorts as text."""
    hops = trace["hops"]
    return (hops[-1]["received_at"] if hops else "", trace["sequence"])
