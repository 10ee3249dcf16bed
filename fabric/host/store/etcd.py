"""A store in etcd: for hosts on several machines.

Owns: sessions over etcd's JSON gateway (/v3, documented beside its gRPC API). May import: errors,
httpx, host.store. By httpx and not by a client library: those that live know neither asyncio nor
users, or lose a watch without a word.

All values of a session hang on one lease, renewed three times per lease. A session that lost the
store begins anew when it is back: own values first, then the whole state, then its changes.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import logging
import random
import ssl
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass
from typing import Any

import httpx

from fabric.errors import ConfigError, EnvironmentFault
from fabric.host.store.interface import State, checked

log = logging.getLogger(__name__)

LEASE = 10
"""Seconds; etcd takes whole ones, and not below two."""
CALL_TIMEOUT = 3.0
"""Seconds for anything but a watch."""
BACKOFF = (0.2, 5.0)
"""Seconds between attempts to reach a store that is lost: at first, and at most."""
_RENEWALS = 3
_UNAUTHENTICATED = 16
"""gRPC's code; etcd's tokens end after some minutes, or with its process."""


class StoreLost(EnvironmentFault):
    """The store does not answer, or not as it should."""


@dataclass(frozen=True)
class Access:
    """How to get at a store. What a join token says."""

    endpoints: tuple[str, ...]
    """URLs; any of them will do."""
    prefix: str = "fabric/"
    """Of all keys: one store can serve several fabrics."""
    user: str = ""
    password: str = ""
    authority: str = ""
    """PEM of the certificate authority; empty: the system's."""

    def to_token(self) -> str:
        """One word that lets a host join. It holds the password: keep it like one."""
        return base64.urlsafe_b64encode(json.dumps(self.__dict__).encode()).decode()

    @classmethod
    def from_token(cls, token: str) -> Access:
        """Raises ConfigError."""
        try:
            told = json.loads(base64.urlsafe_b64decode(token.strip()))
            return cls(**{**told, "endpoints": tuple(told["endpoints"])})
        except (ValueError, KeyError, TypeError) as exc:
            raise ConfigError(
                "that is no join token", cure="make one with `fabric store token`"
            ) from exc


class EtcdClient:
    """Single calls, to whichever endpoint answers."""

    def __init__(self, access: Access) -> None:
        """Raises ConfigError for a certificate that cannot be read."""
        self.access = access
        try:
            context = ssl.create_default_context(cadata=access.authority or None)
        except ssl.SSLError as exc:
            raise ConfigError(f"store: certificate authority: {exc}") from exc
        self._http = httpx.AsyncClient(verify=context, timeout=CALL_TIMEOUT)
        self._endpoint = 0
        self._token = ""

    async def call(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """Raises StoreLost."""
        if self.access.user and not self._token:
            await self._authenticate()
        told = await self._post(path, body)
        if told.get("code") == _UNAUTHENTICATED and self.access.user:
            await self._authenticate()
            told = await self._post(path, body)
        if "code" in told:
            raise _lost(told.get("message", told))
        return told

    async def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """The answer, which may be a refusal. Raises StoreLost when nobody answers."""
        problem = ""
        for _ in self.access.endpoints:
            url = self._url(path)
            try:
                answer = await self._http.post(url, json=body, headers=self._headers())
                told: dict[str, Any] = answer.json()
            except (httpx.HTTPError, ValueError) as exc:
                problem = f"{url}: {type(exc).__name__} {exc}".rstrip()
                self._endpoint += 1
            else:
                return told
        raise _lost(problem)

    @contextlib.asynccontextmanager
    async def stream(self, path: str, body: dict[str, Any]) -> AsyncIterator[AsyncIterator[str]]:
        """The lines of an endless answer. Raises StoreLost, also from within the lines."""
        url, headers = self._url(path), self._headers()
        try:
            async with self._http.stream(
                "POST",
                url,
                json=body,
                headers=headers,
                timeout=httpx.Timeout(CALL_TIMEOUT, read=None),
            ) as answer:
                yield answer.aiter_lines()
        except httpx.HTTPError as exc:
            raise _lost(f"{url}: {exc}") from exc

    async def close(self) -> None:
        await self._http.aclose()

    async def _authenticate(self) -> None:
        self._token = ""
        body = {"name": self.access.user, "password": self.access.password}
        told = await self._post("auth/authenticate", body)
        if "token" not in told:
            raise _lost(told.get("message", told))
        self._token = told["token"]

    def _url(self, path: str) -> str:
        endpoints = self.access.endpoints
        return f"{endpoints[self._endpoint % len(endpoints)].rstrip('/')}/v3/{path}"

    def _headers(self) -> dict[str, str]:
        return {"Authorization": self._token} if self._token else {}


def _lost(why: object) -> StoreLost:
    return StoreLost(f"store: {why}", cure="see that etcd runs, and whether the token still holds")


class EtcdStore:
    """Implements :class:`fabric.host.store.interface.Store`."""

    def __init__(self, access: Access, lease: int = LEASE) -> None:
        self._client = EtcdClient(access)
        self._prefix = access.prefix
        self._lease_seconds = lease
        self._lease = ""
        """Its id; empty: there is none."""
        self._own: dict[str, bytes] = {}
        self._state: dict[str, bytes] = {}

    async def put(self, key: str, value: bytes) -> None:
        checked(key, value)
        self._own[key] = value
        if self._lease:
            with contextlib.suppress(StoreLost):  # then it is put when the store is back
                await self._put(key, value)

    async def watch(self) -> AsyncIterator[State | None]:
        pause = BACKOFF[0]
        last: object = self  # equal to no state
        while True:
            try:
                async with contextlib.aclosing(self._states()) as states:
                    async for state in states:
                        pause = BACKOFF[0]
                        if state != last:
                            last = state
                            yield state
            except StoreLost as exc:
                if last is not None:
                    log.warning("%s", exc)
                    last = None
                    yield None
            await asyncio.sleep(pause * random.uniform(0.5, 1))
            pause = min(BACKOFF[1], pause * 2)

    async def close(self) -> None:
        if self._lease:
            with contextlib.suppress(StoreLost):
                await self._client.call("lease/revoke", {"ID": self._lease})
        await self._client.close()

    # -- one life of the connection ----------------------------------------------------------------

    async def _states(self) -> AsyncGenerator[State, None]:
        """Until the store is lost, or a watch ends. Raises StoreLost."""
        await self._begin()
        revision = await self._read()
        yield dict(self._state)
        lines: asyncio.Queue[str | None] = asyncio.Queue()
        tasks = [
            asyncio.create_task(work)
            for work in (self._read_changes(revision + 1, lines), self._renew())
        ]
        for task in tasks:
            task.add_done_callback(lambda _: lines.put_nowait(None))
        try:
            while (line := await lines.get()) is not None and self._take(line):
                yield dict(self._state)
        finally:
            for task in tasks:
                task.cancel()
            ends = await asyncio.gather(*tasks, return_exceptions=True)
        for end in ends:
            if isinstance(end, Exception):
                raise end

    async def _read_changes(self, revision: int, lines: asyncio.Queue[str | None]) -> None:
        """Every change from a revision on, until the watch ends. Raises StoreLost."""
        reach = {"key": text(self._prefix.encode()), "range_end": text(behind(self._prefix))}
        watch = {"create_request": {**reach, "start_revision": revision}}
        async with self._client.stream("watch", watch) as answer:
            async for line in answer:
                lines.put_nowait(line)

    async def _begin(self) -> None:
        """Have a lease, and own values on it."""
        if self._lease and not await self._renewed():
            self._lease = ""
        if not self._lease:
            granted = await self._client.call("lease/grant", {"TTL": self._lease_seconds})
            self._lease = granted["ID"]
        for key, value in self._own.items():
            await self._put(key, value)

    async def _read(self) -> int:
        """Read everything; the store's revision."""
        found = await self._client.call(
            "kv/range",
            {"key": text(self._prefix.encode()), "range_end": text(behind(self._prefix))},
        )
        self._state = {
            self._name(each["key"]): _bytes(each.get("value", "")) for each in found.get("kvs", ())
        }
        return int(found["header"]["revision"])

    def _take(self, line: str) -> bool:
        """Apply a line of the watch. False: it has ended, for example by compaction."""
        told = json.loads(line)
        result = told.get("result", {})
        if "error" in told or result.get("canceled"):
            return False
        for event in result.get("events", ()):
            key = self._name(event["kv"]["key"])
            if event.get("type") == "DELETE":
                self._state.pop(key, None)
            else:
                self._state[key] = _bytes(event["kv"].get("value", ""))
        return True

    async def _renew(self) -> None:
        """Keep the lease. Raises StoreLost when it cannot be kept."""
        while True:
            await asyncio.sleep(self._lease_seconds / _RENEWALS)
            if not await self._renewed():
                self._lease = ""
                raise StoreLost("store: the lease has ended")

    async def _renewed(self) -> bool:
        told = await self._client.call("lease/keepalive", {"ID": self._lease})
        return int(told.get("result", {}).get("TTL", 0)) > 0

    async def _put(self, key: str, value: bytes) -> None:
        name = text(f"{self._prefix}{key}".encode())
        await self._client.call("kv/put", {"key": name, "value": text(value), "lease": self._lease})

    def _name(self, key: str) -> str:
        return _bytes(key).decode().removeprefix(self._prefix)


def text(value: bytes) -> str:
    """Bytes as etcd's JSON has them."""
    return base64.b64encode(value).decode()


def _bytes(text: str) -> bytes:
    return base64.b64decode(text)


def behind(prefix: str) -> bytes:
    """The first key behind all that begin so."""
    raw = prefix.encode()
    return raw[:-1] + bytes([raw[-1] + 1])
