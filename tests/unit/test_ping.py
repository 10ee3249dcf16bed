"""A guest's kernel answers, or it does not within the time given."""

from __future__ import annotations

import asyncio
import os

import pytest

from fabric.errors import AgentLost
from fabric.host.network.ping import ping

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="opens a raw socket"),
]


def test_who_is_there_answers() -> None:
    asyncio.run(ping("127.0.0.1", 5))


def test_many_at_once_do_not_take_each_others_answers() -> None:
    async def all_of_them() -> None:
        await asyncio.gather(*(ping(f"127.0.0.{n}", 5) for n in range(1, 20)))

    asyncio.run(all_of_them())


def test_who_is_not_there_is_lost() -> None:
    with pytest.raises(AgentLost, match=r"192\.0\.2\.77.*network"):
        asyncio.run(ping("192.0.2.77", 0.05))
