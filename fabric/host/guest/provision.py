"""Bringing the agent into a guest, and running commands there, over SSH.

Owns: SSH, and the only import of ``paramiko``. May import: errors, host.guest.bundle,
host.identity.

The guest's host key was made with the image, so it is known beforehand: any other key is refused.
One connection per guest, at making time only.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import errno
import io
import os
import select
import shlex
import socket
import time
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol

from fabric.errors import ProvisionFailed
from fabric.host.identity import SSH_PORT

if TYPE_CHECKING:
    import paramiko

PROBE_TIMEOUT = 0.1
"""Seconds one connection attempt may take. The kernel would repeat a lost SYN only after a second;
a guest that is up answers in about a millisecond."""

PROBE_PAUSE = 0.03
"""Seconds after a refused attempt: the guest's kernel is up, its SSH server is about to be."""

EXPLAIN_TIMEOUT = 5.0
"""Seconds for asking a guest why it failed: the answer is nice to have, the retry matters more."""

AGENT_PATH = "/run/fabric/agent.pyz"
AGENT_LOG = "/run/fabric/agent.log"

# Some heap ahead, and none given back (mallopt(3)): moving the heap's end is the kernel's longest
# way to do little, and a copy would walk it before its first packet.
_HEAP = "MALLOC_TOP_PAD_=262144 MALLOC_TRIM_THRESHOLD_=4194304"

# Arrives under another name first, so that a torn transfer is never started.
_START_AGENT = (
    f"cat > {AGENT_PATH}.new && mv {AGENT_PATH}.new {AGENT_PATH} && "
    f"{{ {_HEAP} setsid /usr/bin/python3 -I -S {AGENT_PATH} >{AGENT_LOG} 2>&1 </dev/null & }}"
)

# What dropbear and paramiko share that costs the fewest instructions under emulation.
_KEY_EXCHANGE = ("curve25519-sha256@libssh.org",)
_CIPHERS = ("aes128-ctr",)
_MACS = ("hmac-sha2-256",)
_HOST_KEYS = ("ssh-ed25519",)

_CHUNK = 32 * 1024


GONE_AFTER = 15
"""Seconds of silence after which a guest counts as gone. Its kernel answers for it even when
emulation is slow."""


@dataclass(frozen=True)
class SshKeys:
    """Whom to trust and who we are."""

    host_public_key: str
    """The guest's host key as one OpenSSH line: "ssh-ed25519 AAAA… [comment]"."""
    client_key: Path
    """Our private key, OpenSSH format, ed25519."""


class Provisioner(Protocol):
    """How :class:`fabric.host.guest.guests.GuestManager` gets the agent into a guest."""

    async def reach(self, address: str, timeout: float) -> socket.socket:
        """A connection to the guest's SSH server. Raises ProvisionFailed after ``timeout`` s."""

    async def push(self, link: socket.socket, timeout: float) -> None:
        """Push the agent over that connection and start it; closes the link.

        Raises ProvisionFailed."""

    async def explain(self, address: str, host_key: str) -> str:
        """The last words of an agent that says nothing; empty when there are none to be had.
        ``host_key``: the guest's own, one OpenSSH line; empty: the image's."""


class SshProvisioner:
    """:class:`Provisioner` over SSH; the blocking part runs in ``executor``."""

    def __init__(self, keys: SshKeys, bundle: bytes, executor: Executor) -> None:
        self._keys = keys
        self._bundle = bundle
        self._executor = executor

    async def reach(self, address: str, timeout: float) -> socket.socket:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        while True:
            link = _watched(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
            link.setblocking(False)
            try:
                async with asyncio.timeout(PROBE_TIMEOUT):
                    await loop.sock_connect(link, (address, SSH_PORT))
            except (OSError, TimeoutError) as exc:
                link.close()
                if loop.time() >= deadline:
                    raise _unreachable(address, timeout, exc) from exc
            except asyncio.CancelledError:
                link.close()
                raise
            else:
                return link
            await asyncio.sleep(PROBE_PAUSE)

    async def push(self, link: socket.socket, timeout: float) -> None:
        loop = asyncio.get_running_loop()
        work = loop.run_in_executor(
            self._executor, push_agent, link, self._keys, self._bundle, timeout
        )
        try:
            await work
        except asyncio.CancelledError:
            # Ends the thread's reads and writes at once; it then closes the socket itself.
            with contextlib.suppress(OSError):
                link.shutdown(socket.SHUT_RDWR)
            raise

    async def explain(self, address: str, host_key: str) -> str:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, self._last_words, address, host_key)

    def _last_words(self, address: str, host_key: str) -> str:
        words = io.BytesIO()
        keys = SshKeys(host_key or self._keys.host_public_key, self._keys.client_key)
        with contextlib.suppress(ProvisionFailed):
            run_command(
                address,
                keys,
                ["tail", "-n", "3", AGENT_LOG],
                stdout=words,
                stderr=io.BytesIO(),
                timeout=EXPLAIN_TIMEOUT,
            )
        return words.getvalue().decode(errors="replace").strip()


def connect(address: str, timeout: float) -> socket.socket:
    """Blocking form of :meth:`SshProvisioner.reach`. Raises ProvisionFailed after ``timeout`` s."""
    deadline = time.monotonic() + timeout
    while True:
        try:
            return _watched(
                socket.create_connection((address, SSH_PORT), timeout=PROBE_TIMEOUT * 10)
            )
        except OSError as exc:
            if time.monotonic() >= deadline or exc.errno == errno.ENETUNREACH:
                raise _unreachable(address, timeout, exc) from exc
        time.sleep(PROBE_PAUSE)


def push_agent(link: socket.socket, keys: SshKeys, bundle: bytes, timeout: float) -> None:
    """Push ``bundle`` over a connected socket, start it detached, and close. Blocks.

    Raises ProvisionFailed: another host key, no login, the guest's own complaint, or ``timeout`` s
    over.
    """
    deadline = time.monotonic() + timeout
    with _session(link, keys, timeout) as transport:
        with _translated("pushing the agent"):
            channel = transport.open_session(timeout=timeout)
            channel.settimeout(max(0.1, deadline - time.monotonic()))
            channel.exec_command(_START_AGENT)
            channel.sendall(bundle)
            channel.shutdown_write()
            complaint = b"".join(iter(lambda: channel.recv_stderr(_CHUNK), b""))
            status = channel.recv_exit_status()
        if status != 0:
            text = complaint.decode(errors="replace").strip()
            raise ProvisionFailed(f"pushing the agent: status {status} in the guest: {text}")


def run_command(
    address: str,
    keys: SshKeys,
    argv: list[str],
    *,
    stdin: BinaryIO | None = None,
    stdout: BinaryIO,
    stderr: BinaryIO,
    terminal: tuple[str, int, int] | None = None,
    timeout: float = 10.0,
) -> int:
    """Run a command in a guest, pumping its streams; its exit status (255 if it has none).

    ``terminal`` is (TERM, columns, rows) for an interactive program; the caller puts its own
    terminal into raw mode. ``timeout`` (seconds) is for getting there, not for the command.
    ``stdin`` needs a file descriptor. Raises ProvisionFailed.
    """
    link = connect(address, timeout)
    with _session(link, keys, timeout) as transport, _translated("running a command"):
        channel = transport.open_session(timeout=timeout)
        if terminal is not None:
            channel.get_pty(*terminal)
        channel.exec_command(shlex.join(argv))
        return _pump(channel, stdin, stdout, stderr)


def _pump(
    channel: paramiko.Channel, stdin: BinaryIO | None, stdout: BinaryIO, stderr: BinaryIO
) -> int:
    source = stdin.fileno() if stdin is not None else -1
    if source < 0:
        channel.shutdown_write()
    ended = False
    while not ended:
        waiting: list[Any] = [channel] if source < 0 else [channel, source]
        readable, _, _ = select.select(waiting, [], [], 0.5)
        # The order matters: what was sent before the exit status is still to be read.
        ended = channel.exit_status_ready() and channel.eof_received
        while channel.recv_ready():
            _write(stdout, channel.recv(_CHUNK))
        while channel.recv_stderr_ready():
            _write(stderr, channel.recv_stderr(_CHUNK))
        if source in readable:
            if data := os.read(source, _CHUNK):
                channel.sendall(data)
            else:
                channel.shutdown_write()
                source = -1
        if channel.closed and not channel.recv_ready():
            break
    status = channel.recv_exit_status()
    return status if status >= 0 else 255


def _write(stream: BinaryIO, data: bytes) -> None:
    stream.write(data)
    stream.flush()


def _watched(link: socket.socket) -> socket.socket:
    """A guest may be destroyed under a session: nobody will ever say goodbye, or acknowledge."""
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, GONE_AFTER // 3)
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, GONE_AFTER // 3)
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, GONE_AFTER * 1000)
    return link


def _unreachable(address: str, timeout: float, cause: BaseException) -> ProvisionFailed:
    return ProvisionFailed(
        f"{address}: no SSH server within {timeout:g} s ({cause or type(cause).__name__})",
        cure="look at the guest's console: it did not boot, or has no link to this host",
    )


@contextlib.contextmanager
def _translated(doing: str) -> Any:
    import paramiko

    try:
        yield
    except (paramiko.SSHException, OSError, EOFError) as exc:
        raise ProvisionFailed(f"{doing}: {exc or type(exc).__name__}") from exc


@contextlib.contextmanager
def _session(link: socket.socket, keys: SshKeys, timeout: float) -> Any:
    """An authenticated transport over ``link``; both are closed at the end."""
    import paramiko

    with contextlib.closing(link), _translated("SSH"):
        link.setblocking(True)
        link.settimeout(timeout)
        transport = paramiko.Transport(link)
        try:
            transport.banner_timeout = transport.auth_timeout = timeout
            options = transport.get_security_options()
            options.kex, options.ciphers = _KEY_EXCHANGE, _CIPHERS
            options.digests, options.key_types = _MACS, _HOST_KEYS
            transport.start_client(timeout=timeout)
            shown = transport.get_remote_server_key()
            if shown.asbytes() != _pinned(keys.host_public_key):
                raise ProvisionFailed(
                    f"the guest shows another host key ({shown.fingerprint}) than the image's",
                    cure="something else answers at the guest's address, or run `make image`",
                )
            client = paramiko.Ed25519Key.from_private_key_file(str(keys.client_key))
            transport.auth_publickey("root", client)
            yield transport
        finally:
            transport.close()


def _pinned(line: str) -> bytes:
    fields = line.split()
    try:
        return base64.b64decode(fields[1], validate=True)
    except (IndexError, ValueError) as exc:
        raise ProvisionFailed(
            f"the image's host key is no OpenSSH key line: {line[:40]!r}", cure="run `make image`"
        ) from exc
