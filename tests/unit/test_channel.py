"""The control channel: whole messages out of any pieces, and no trust in the other side."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from fabric.errors import AgentLost
from fabric.host.guest.channel import MAX_MALFORMED, Channel
from fabric.wire.control import AgentEvent, Hello, Message, Query, encode

HELLO = Hello("digest", "3.11.2", 7)


def run(
    path: Path, agent: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
) -> list[Message]:
    """What the host hears from an agent that behaves like ``agent`` and then hangs up."""

    async def scenario() -> list[Message]:
        async def served(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await agent(reader, writer)
            writer.close()

        server = await asyncio.start_unix_server(served, path)
        async with server, asyncio.timeout(10):
            channel = await Channel.connect(path, 1)
            try:
                channel.send(Query("counters"))
                return [message async for message in channel.messages()]
            finally:
                await channel.close()

    return asyncio.run(scenario())


def test_messages_survive_any_cut(tmp_path: Path) -> None:
    async def agent(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for byte in encode(HELLO) * 2:
            writer.write(bytes([byte]))
            await writer.drain()

    assert run(tmp_path / "c", agent) == [HELLO, HELLO]


def test_what_the_host_says_arrives(tmp_path: Path) -> None:
    heard: list[bytes] = []

    async def agent(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        heard.append(await reader.readline())

    run(tmp_path / "c", agent)
    assert heard == [encode(Query("counters"))]


def test_nonsense_is_passed_over(tmp_path: Path) -> None:
    event = AgentEvent("x", {}, 1)

    async def agent(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        junk = b'\xff\xfe\n{"type": "Nonsense"}\n{"type": "Hello"}\n'
        writer.write(encode(HELLO) + junk + encode(event))

    assert run(tmp_path / "c", agent) == [HELLO, event]


def test_a_guest_that_talks_only_nonsense_is_given_up(tmp_path: Path) -> None:
    async def agent(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"nonsense\n" * (MAX_MALFORMED + 1))

    with pytest.raises(AgentLost, match="malformed"):
        run(tmp_path / "c", agent)


def test_a_socket_that_never_appears_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(AgentLost, match="control channel"):
        asyncio.run(Channel.connect(tmp_path / "none", 0.05))


def test_a_socket_may_appear_late(tmp_path: Path) -> None:
    async def scenario() -> None:
        path = tmp_path / "late"
        connecting = asyncio.create_task(Channel.connect(path, 5))
        await asyncio.sleep(0.05)
        server = await asyncio.start_unix_server(lambda _r, w: w.close(), path)
        async with server:
            await (await connecting).close()

    asyncio.run(scenario())


def test_a_closed_channel_takes_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        path = tmp_path / "c"
        async with await asyncio.start_unix_server(lambda _r, w: w.close(), path):
            channel = await Channel.connect(path, 1)
            await channel.close()
            with pytest.raises(AgentLost, match="closed"):
                channel.send(Query("counters"))

    asyncio.run(scenario())
