"""HTTP over the unix socket of one orchestrator.

Owns: the client side of the local API. May import: errors. Standard library only: the CLI's start
time is its budget, and http.client starts ten times faster than a full HTTP library.
"""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from fabric.errors import NameUnknown, Unreachable

TIMEOUT = 10.0
"""Seconds for an answer; the slowest one asks agents inside guests."""


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout: float | None) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


class HostClient:
    """The API of the orchestrator of ``host`` at the unix socket ``path``."""

    def __init__(self, host: str, path: Path) -> None:
        self.host = host
        self.path = path

    def get(self, resource: str, *, timeout: float = TIMEOUT, **query: Any) -> Any:
        """A JSON document. Raises Unreachable, NameUnknown (404 and 409 carry the reason)."""
        return self._json("GET", resource, timeout, query)

    def post(self, resource: str, *, timeout: float = TIMEOUT, **query: Any) -> Any:
        """POST without a body; the JSON answer. Raises as :meth:`get`."""
        return self._json("POST", resource, timeout, query)

    def delete(self, resource: str, *, timeout: float = TIMEOUT) -> Any:
        """DELETE; the JSON answer. Raises as :meth:`get`."""
        return self._json("DELETE", resource, timeout, {})

    def lines(self, resource: str, *, timeout: float | None = None, **query: Any) -> Iterator[Any]:
        """A stream of JSON lines; ``timeout`` None waits for the next one for ever."""
        connection = _UnixConnection(self.path, timeout)
        try:
            response = self._send(connection, "GET", resource, query)
            for line in response:
                if line.strip():
                    yield json.loads(line)
        except (OSError, http.client.HTTPException, ValueError) as exc:
            raise self._unreachable(exc) from exc
        finally:
            connection.close()

    def _json(self, method: str, resource: str, timeout: float, query: dict[str, Any]) -> Any:
        connection = _UnixConnection(self.path, timeout)
        try:
            response = self._send(connection, method, resource, query)
            return json.loads(response.read() or b"null")
        except (OSError, http.client.HTTPException, ValueError) as exc:
            raise self._unreachable(exc) from exc
        finally:
            connection.close()

    def _send(
        self, connection: _UnixConnection, method: str, resource: str, query: dict[str, Any]
    ) -> http.client.HTTPResponse:
        given = {key: _plain(value) for key, value in query.items() if value is not None}
        connection.request(method, f"{resource}?{urlencode(given)}" if given else resource)
        response = connection.getresponse()
        if response.status >= 400:
            self._raise(response)
        return response

    def _raise(self, response: http.client.HTTPResponse) -> None:
        try:
            document = json.loads(response.read())
        except ValueError:
            document = {}
        reason = document.get("detail") or document.get("error") or response.reason
        if response.status in (404, 409):
            raise NameUnknown(f"host {self.host}: {reason}")
        raise Unreachable(
            f"host {self.host}: the orchestrator answered {response.status}: {reason}",
            cure=document.get("cure", ""),
        )

    def _unreachable(self, exc: Exception) -> Unreachable:
        return Unreachable(
            f"host {self.host}: the orchestrator does not answer at {self.path}: {exc}",
            cure="see its orchestrator.log in the same directory; `fabric up FILE` starts it again",
        )


def _plain(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
