"""Pushing the agent over SSH, against a server in this process."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import paramiko
import pytest

from fabric.errors import ProvisionFailed
from fabric.host.guest import provision
from fabric.host.guest.provision import (
    AGENT_PATH,
    GONE_AFTER,
    SshKeys,
    SshProvisioner,
    connect,
    push_agent,
)

BUNDLE = os.urandom(200_000)


@dataclass
class Server(paramiko.ServerInterface):  # type: ignore[misc]  # paramiko has no types
    """Takes one client key; runs nothing, but notes the command and swallows its input."""

    client: paramiko.PKey
    status: int = 0
    complaint: bytes = b""
    command: bytes = b""
    received: bytes = b""
    refused: list[str] = field(default_factory=list)
    finished: threading.Event = field(default_factory=threading.Event)

    def get_allowed_auths(self, username: str) -> str:
        return "publickey"

    def check_auth_publickey(self, username: str, key: paramiko.PKey) -> int:
        if username == "root" and key == self.client:
            return int(paramiko.AUTH_SUCCESSFUL)
        self.refused.append(username)
        return int(paramiko.AUTH_FAILED)

    def check_channel_request(self, kind: str, chanid: int) -> int:
        return int(paramiko.OPEN_SUCCEEDED)

    def check_channel_exec_request(self, channel: Any, command: bytes) -> bool:
        self.command = command
        threading.Thread(target=self._swallow, args=(channel,), daemon=True).start()
        return True

    def _swallow(self, channel: Any) -> None:
        self.received = b"".join(iter(lambda: channel.recv(65536), b""))
        channel.sendall_stderr(self.complaint)
        channel.send_exit_status(self.status)
        # By now the client has all it wants, and may be gone before we have said goodbye.
        with contextlib.suppress(EOFError, OSError):
            channel.close()
        self.finished.set()


@dataclass
class Guest:
    server: Server
    keys: SshKeys
    host_key: paramiko.PKey

    def push(self) -> None:
        ours, theirs = socket.socketpair()
        transport = paramiko.Transport(theirs)
        transport.add_server_key(self.host_key)
        transport.start_server(event=threading.Event(), server=self.server)
        try:
            push_agent(ours, self.keys, BUNDLE, 10)
        finally:
            transport.close()


def make_key(path: Path) -> tuple[paramiko.PKey, str]:
    argv = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "test", "-f", str(path)]
    subprocess.run(argv, check=True, timeout=10)
    public = path.with_suffix(".pub").read_text()
    return paramiko.Ed25519Key.from_private_key_file(str(path)), public


@pytest.fixture
def guest(tmp_path: Path) -> Iterator[Guest]:
    host_key, public = make_key(tmp_path / "host")
    client_key, _ = make_key(tmp_path / "client")
    yield Guest(Server(client_key), SshKeys(public, tmp_path / "client"), host_key)


def test_the_agent_arrives_whole_and_is_started(guest: Guest) -> None:
    guest.push()
    assert guest.server.finished.wait(5)
    assert guest.server.received == BUNDLE
    assert AGENT_PATH.encode() in guest.server.command
    assert b"python3 -I -S" in guest.server.command


def test_another_host_key_is_refused_before_anything_is_sent(guest: Guest, tmp_path: Path) -> None:
    _, other = make_key(tmp_path / "other")
    guest.keys = replace(guest.keys, host_public_key=other)
    with pytest.raises(ProvisionFailed, match="another host key"):
        guest.push()
    assert guest.server.command == b""
    assert guest.server.refused == []


def test_a_guest_that_does_not_know_us_is_an_error(guest: Guest, tmp_path: Path) -> None:
    make_key(tmp_path / "stranger")
    guest.keys = replace(guest.keys, client_key=tmp_path / "stranger")
    with pytest.raises(ProvisionFailed, match="SSH"):
        guest.push()
    assert guest.server.command == b""


def test_the_guests_own_complaint_is_quoted(guest: Guest) -> None:
    guest.server.status, guest.server.complaint = 1, b"cat: no space left\n"
    with pytest.raises(ProvisionFailed, match=r"status 1 .*no space left"):
        guest.push()


def test_something_that_is_no_ssh_server_is_an_error(guest: Guest) -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        theirs.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        theirs.shutdown(socket.SHUT_WR)
        with pytest.raises(ProvisionFailed):
            push_agent(ours, guest.keys, BUNDLE, 2)


def test_an_image_without_a_host_key_is_named(guest: Guest) -> None:
    guest.keys = replace(guest.keys, host_public_key="nonsense")
    with pytest.raises(ProvisionFailed, match="make image"):
        guest.push()


def test_nobody_there_is_an_error_with_a_cure() -> None:
    with pytest.raises(ProvisionFailed, match="no SSH server") as caught:
        connect("127.254.254.254", 0.1)
    assert "console" in caught.value.cure


@pytest.mark.parametrize("way", ["connect", "reach"])
def test_the_silence_of_a_guest_that_is_gone_is_noticed(
    way: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """With everything sent acknowledged only the kernel's own probes can notice (tcp(7))."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr(provision, "SSH_PORT", server.getsockname()[1])
        if way == "connect":
            link = connect("127.0.0.1", 5)
        else:
            keys = SshKeys("", tmp_path)
            with ThreadPoolExecutor(1) as executor:
                reaching = SshProvisioner(keys, b"", executor).reach("127.0.0.1", 5)
                link = asyncio.run(reaching)
        with link:
            assert link.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            options = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_USER_TIMEOUT)
            idle, interval, limit = (link.getsockopt(socket.IPPROTO_TCP, x) for x in options)
            assert idle + interval <= GONE_AFTER
            assert limit == GONE_AFTER * 1000
