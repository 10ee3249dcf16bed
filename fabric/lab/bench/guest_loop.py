"""Reference 2, inside a guest: receive a datagram, send it on; nothing else.

Runs in a guest as ``python3 -I -S - PORT ADDRESS PORT``. May import: the standard library. What it
reaches is what Python and two system calls per packet allow, without any fabric.
"""

from __future__ import annotations

import socket
import sys

SILENCE = 60.0
"""Seconds without a packet after which the program ends, whatever became of the benchmark."""
END = b"end"


def main(words: list[str]) -> int:
    """See the module docstring."""
    link = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    link.setsockopt(socket.SOL_SOCKET, 33, 4 << 20)  # SO_RCVBUFFORCE, as the agent has it
    link.bind(("0.0.0.0", int(words[0])))
    # Not even the poll that a timeout of Python's own would add to each call.
    link.setblocking(True)
    link.setsockopt(
        socket.SOL_SOCKET, socket.SO_RCVTIMEO, int(SILENCE).to_bytes(8, "little") + bytes(8)
    )
    target = (words[1], int(words[2]))
    buffer = bytearray(65536)
    view = memoryview(buffer)
    receive, send = link.recv_into, link.sendto
    try:
        while (size := receive(buffer)) != len(END):
            send(view[:size], target)
    except BlockingIOError:
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
