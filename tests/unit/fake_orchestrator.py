"""A stand-in for ``fabric.host.main`` that boots nothing: the API on its socket, from documents.

Run as ``python fake_orchestrator.py CONFIG`` it serves until SIGTERM or POST /v1/shutdown; tests
use :func:`serve` in a thread. The documents lie beside the configuration in ``documents.json``
(path → document), ``fail`` there makes it end at its start.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socketserver
import sys
import threading
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit


class _Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True
    documents: dict[str, Any]
    requests: list[str]


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        self.server.requests.append(self.path)
        path = urlsplit(self.path).path
        document = self.server.documents.get(path)
        if document is None:
            self._answer(404, {"detail": f"no {path.rpartition('/')[2]} here"})
        elif path == "/v1/events":
            lines = "".join(json.dumps(event) + "\n" for event in document)
            self._send(200, lines.encode())
        else:
            self._answer(200, document)

    def do_POST(self) -> None:
        self.server.requests.append(self.path)
        self._answer(202, self.server.documents.get(urlsplit(self.path).path, {}))
        if self.path == "/v1/shutdown":
            threading.Thread(target=self.server.shutdown).start()

    def _answer(self, status: int, document: Any) -> None:
        self._send(status, json.dumps(document).encode())

    def _send(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def address_string(self) -> str:
        return "unix"

    def log_message(self, format: str, *args: Any) -> None:
        return


def make_server(path: Path, documents: dict[str, Any]) -> _Server:
    path.parent.mkdir(parents=True, exist_ok=True)
    server = _Server(str(path), _Handler)
    server.documents = documents
    server.requests = []
    return server


@contextlib.contextmanager
def serve(path: Path, documents: dict[str, Any]) -> Any:
    """Serve in a thread; yields the server, whose ``requests`` lists what was asked."""
    server = make_server(path, documents)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
        path.unlink(missing_ok=True)


def main() -> None:
    config_path = Path(sys.argv[1])
    config = json.loads(config_path.read_text())
    if "refuse" in config["host"]:
        sys.exit("this host refuses to start")
    path = config_path.parent / "api.sock"
    # A socket left by a killed predecessor is in the way.
    path.unlink(missing_ok=True)
    status = {"lab": config["lab"], "host": config["host"], "pid": os.getpid(), "guests": 0}
    found = {"verb": "unlink", "what": "channel of g9", "why": "no guest has this slot"}
    reaped = [found] if "leaky" in config["host"] else []
    server = make_server(path, {"/v1/status": status, "/v1/reap": reaped})
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    server.serve_forever(poll_interval=0.05)
    path.unlink()


if __name__ == "__main__":
    main()
