#!/usr/bin/env python3
"""A web server for labs: web_server.py PORT [DIRECTORY].

Without a directory it makes two files of random bytes, 1MiB and 16MiB, and serves those: as a
service of a topology file, which has a directory of its own. Uses the standard library only.
"""

from __future__ import annotations

import os
import sys
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

SIZES = {"1MiB": 1 << 20, "16MiB": 16 << 20}


class Server(ThreadingHTTPServer):
    """Takes connections as they come in a lab: many in one instant, when their guests are there."""

    # The standard library's five are soon full on a busy machine. The kernel then drops the end of
    # a handshake and the request behind it, and a client that waited seconds for its guest takes
    # that for the round-trip time: it asks again only after three times as long.
    request_queue_size = 128


def main() -> None:
    port = int(sys.argv[1])
    if len(sys.argv) > 2:
        directory = Path(sys.argv[2])
    else:
        directory = Path(os.environ["FABRIC_SERVICE_DIR"])
        for name, size in SIZES.items():
            (directory / name).write_bytes(os.urandom(size))
    with Server(("", port), partial(SimpleHTTPRequestHandler, directory=str(directory))) as server:
        server.serve_forever()


if __name__ == "__main__":
    main()
