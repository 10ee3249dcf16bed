"""The agent's process: its command line, its devices, its first word.

Owns: start. May import: the standard library, fabric.wire, fabric.agent.
"""

from __future__ import annotations

import sys
import time

from fabric.agent.agent import Agent
from fabric.agent.channel import Channel
from fabric.agent.clock import Clock
from fabric.agent.digest import own_digest
from fabric.agent.rtnl import prepare_guest
from fabric.agent.tun import Tun
from fabric.wire.control import Hello

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

CHANNEL = "/dev/vport0p1"
"""The virtio-serial port of the guest contract."""
UPLINK = "eth0"
TUN_NAME = "fab0"
RUN = "/run"
"""The only place in the guest that can be written to."""


def main(argv: Sequence[str] | None = None) -> int:
    """``agent [--control PATH] [--uplink NAME] [--tun NAME] [--run DIR] [--scrub yes|no]``; never
    returns unless it fails."""
    options = {
        "--control": CHANNEL,
        "--uplink": UPLINK,
        "--tun": TUN_NAME,
        "--run": RUN,
        "--scrub": "yes",
    }
    words = list(sys.argv[1:] if argv is None else argv)
    # argparse costs 60 ms to import under emulation; three options do not need it.
    for name, value in zip(words[::2], words[1::2], strict=False):
        if name not in options:
            sys.stderr.write(f"agent: unknown option {name}; known: {', '.join(options)}\n")
            return 2
        options[name] = value
    channel = Channel(options["--control"])
    clock = Clock()
    tun = Tun(options["--tun"])
    run, scrub = options["--run"], options["--scrub"] == "yes"
    agent = Agent(channel, tun, clock, options["--uplink"], run=run, scrub=scrub)
    agent.ipv6 = ipv6 = prepare_guest(options["--tun"], options["--uplink"])
    agent.digest = own_digest()
    channel.send(Hello(agent.digest, sys.version.split()[0], time.monotonic_ns() // 1000))
    if not ipv6:
        agent.event("ipv6-absent", uplink=options["--uplink"])
    agent.run()
    return 0
