"""What every store promises: asked of the one in memory, of a directory, and of a real etcd."""

from __future__ import annotations

import asyncio
import contextlib
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from fabric.errors import ConfigError, UserError
from fabric.host.store.admin import admit, expel
from fabric.host.store.etcd import Access, EtcdClient, EtcdStore, StoreLost, text
from fabric.host.store.file import FileStore
from fabric.host.store.interface import MAX_VALUE, State, Store
from fabric.host.store.memory import MemoryStore, Place

LEASE = 1.5
"""Seconds."""
PATIENCE = 15.0
"""Seconds until what must happen has to have happened."""


@dataclass
class Kind:
    """One implementation: how sessions with one and the same store are made, and how it is lost."""

    open: Callable[[], Store]
    lose: Callable[[], Any]
    find: Callable[[], Any]
    argv: list[str] = field(default_factory=list)
    """A program that puts KEY VALUE and then sleeps; empty: sessions cannot be other processes."""


def _file(tmp_path: Path) -> Iterator[Kind]:
    directory = tmp_path / "store"

    def lose() -> None:
        # Where the directory should be made anew, there is a file.
        shutil.rmtree(directory)
        directory.write_text("")

    program = (
        "import asyncio, sys; from pathlib import Path; "
        "from fabric.host.store.file import FileStore\n"
        "async def main():\n"
        f"    store = FileStore(Path({str(directory)!r}), {LEASE})\n"
        "    await store.put(sys.argv[1], sys.argv[2].encode())\n"
        "    async for _ in store.watch(): pass\n"
        "asyncio.run(main())"
    )
    yield Kind(
        lambda: FileStore(directory, LEASE),
        lose,
        directory.unlink,
        [sys.executable, "-c", program],
    )


def _memory(_tmp_path: Path) -> Iterator[Kind]:
    place = Place()
    yield Kind(lambda: MemoryStore(place), place.lose, lambda: place.lose(False))


ETCD = Path(__file__).parents[2] / ".peers/usr/bin/etcd"
"""What `make setup-test` fetched."""
ROOT_PASSWORD = "root's own"
ETCD_LEASE = 2
"""Seconds: etcd's least."""


class Etcd:
    """A real etcd with TLS and users, on loopback."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._ports = free_ports(2)
        self.url = f"https://127.0.0.1:{self._ports[0]}"
        authority, self._certificate, self._key = certificates(directory)
        self.root = Access((self.url,), "fabric/t/", "root", ROOT_PASSWORD, authority)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        client, peer = self.url, f"http://127.0.0.1:{self._ports[1]}"
        argv = [
            str(ETCD if ETCD.exists() else "etcd"), "--log-level", "error",
            "--data-dir", str(self._directory / "data"),
            "--listen-client-urls", client, "--advertise-client-urls", client,
            "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer,
            "--initial-cluster", f"default={peer}",
            "--cert-file", str(self._certificate), "--key-file", str(self._key),
        ]  # fmt: skip
        with (self._directory / "log").open("ab") as log:
            self._process = subprocess.Popen(argv, stdout=log, stderr=log)
        asyncio.run(self._ready())

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def hang(self, hangs: bool) -> None:
        """As behind a network that lets nothing through: nobody refuses, and nobody answers."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP if hangs else signal.SIGCONT)

    def prepare(self) -> Access:
        """Turn users on; a host's own access."""
        return asyncio.run(self._prepare())

    async def _ready(self) -> None:
        client = EtcdClient(replace(self.root, user=""))
        async with asyncio.timeout(PATIENCE):
            while True:
                try:
                    await client.call("maintenance/status", {})
                    break
                except StoreLost:
                    await asyncio.sleep(0.05)
        await client.close()

    async def _prepare(self) -> Access:
        client = EtcdClient(replace(self.root, user=""))
        await client.call("auth/user/add", {"name": "root", "password": ROOT_PASSWORD})
        await client.call("auth/role/add", {"name": "root"})
        await client.call("auth/user/grant", {"user": "root", "role": "root"})
        await client.call("auth/enable", {})
        await client.close()
        return await admit(self.root, "h1")


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def certificates(directory: Path) -> tuple[str, Path, Path]:
    """An authority (PEM), and the certificate and key it gave 127.0.0.1."""
    now = datetime.now(UTC)

    def name(text: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])

    def builder(subject: str, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        made = x509.CertificateBuilder().subject_name(name(subject)).issuer_name(name("tests"))
        made = made.public_key(key.public_key()).serial_number(x509.random_serial_number())
        return made.not_valid_before(now - timedelta(1)).not_valid_after(now + timedelta(1))

    ca_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    is_ca = x509.BasicConstraints(ca=True, path_length=None)
    authority = builder("tests", ca_key).add_extension(is_ca, critical=True)
    here = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
    server = builder("etcd", key).add_extension(here, critical=False)
    pem = serialization.Encoding.PEM
    paths = directory / "server.crt", directory / "server.key"
    paths[0].write_bytes(server.sign(ca_key, hashes.SHA256()).public_bytes(pem))
    paths[1].write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return authority.sign(ca_key, hashes.SHA256()).public_bytes(pem).decode(), *paths


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Etcd, Access]]:
    server = Etcd(tmp_path_factory.mktemp("etcd"))
    server.start()
    try:
        yield server, server.prepare()
    finally:
        server.kill()


def _etcd(server: Etcd, access: Access) -> Iterator[Kind]:
    program = (
        "import asyncio, sys; from fabric.host.store.etcd import Access, EtcdStore\n"
        "async def main():\n"
        f"    store = EtcdStore(Access.from_token({access.to_token()!r}), {ETCD_LEASE})\n"
        "    await store.put(sys.argv[1], sys.argv[2].encode())\n"
        "    async for _ in store.watch(): pass\n"
        "asyncio.run(main())"
    )
    yield Kind(
        lambda: EtcdStore(access, ETCD_LEASE),
        server.kill,
        # Its start is waited for by a loop of its own.
        lambda: run_aside(server.start),
        [sys.executable, "-c", program],
    )


def run_aside(action: Callable[[], None]) -> None:
    thread = threading.Thread(target=action)
    thread.start()
    thread.join()


KINDS: dict[str, Callable[[Path], Iterator[Kind]]] = {"memory": _memory, "file": _file}


@pytest.fixture(params=[*KINDS, "etcd"])
def kind(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Kind]:
    if request.param == "etcd":
        yield from _etcd(*request.getfixturevalue("etcd"))
    else:
        yield from KINDS[request.param](tmp_path)


class Watcher:
    """Somebody who watches, and remembers."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.states: list[State | None] = []
        self._changed = asyncio.Event()
        self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        async for state in self.store.watch():
            self.states.append(state)
            self._changed.set()

    async def until(self, wanted: Callable[[State | None], bool]) -> None:
        async with asyncio.timeout(PATIENCE):
            while not (self.states and wanted(self.states[-1])):
                self._changed.clear()
                await self._changed.wait()

    async def sees(self, expected: State | None) -> None:
        try:
            await self.until(lambda state: state == expected)
        except TimeoutError:
            raise AssertionError(f"at last {self.states[-1:]}, not {expected}") from None

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await self.store.close()


@contextlib.asynccontextmanager
async def watchers(kind: Kind, count: int = 1) -> AsyncIterator[list[Watcher]]:
    made = [Watcher(kind.open()) for _ in range(count)]
    try:
        yield made
    finally:
        for each in made:
            await each.close()


def story(tell: Callable[[], Awaitable[None]]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(4 * PATIENCE):
            await tell()

    asyncio.run(limited())


def test_an_empty_store_has_a_state_too(kind: Kind) -> None:
    async def tell() -> None:
        async with watchers(kind) as (one,):
            await one.sees({})

    story(tell)


def test_what_is_put_is_seen_by_all_and_the_newest_value_counts(kind: Kind) -> None:
    async def tell() -> None:
        async with watchers(kind, 2) as (one, other):
            await one.store.put("links/1", b"old")
            await one.store.put("links/1", b"new")
            await other.store.put("links/2", b"\0\xff binary")
            expected = {"links/1": b"new", "links/2": b"\0\xff binary"}
            await one.sees(expected)
            await other.sees(expected)

    story(tell)


def test_who_comes_later_sees_what_is_there(kind: Kind) -> None:
    async def tell() -> None:
        async with watchers(kind) as (one,):
            await one.store.put("links/1", b"x")
            await one.sees({"links/1": b"x"})
            async with watchers(kind) as (late,):
                await late.sees({"links/1": b"x"})
                assert late.states[0] == {"links/1": b"x"}

    story(tell)


def test_who_leaves_takes_its_values_along_at_once(kind: Kind) -> None:
    async def tell() -> None:
        async with watchers(kind) as (stays,):
            await stays.store.put("links/1", b"mine")
            leaves = kind.open()
            watching = Watcher(leaves)
            await leaves.put("links/2", b"gone soon")
            await stays.sees({"links/1": b"mine", "links/2": b"gone soon"})
            await watching.close()
            await stays.sees({"links/1": b"mine"})

    story(tell)


def test_values_outlive_many_leases_as_long_as_their_session_lives(kind: Kind) -> None:
    async def tell() -> None:
        async with watchers(kind, 2) as (one, other):
            await one.store.put("links/1", b"x")
            await other.sees({"links/1": b"x"})
            await asyncio.sleep(2.5 * LEASE)
            assert other.states[-1] == {"links/1": b"x"}
            assert {} not in other.states[other.states.index({"links/1": b"x"}) :]

    story(tell)


def test_busy_neighbours_do_not_keep_a_session_from_renewing_its_lease(kind: Kind) -> None:
    async def tell() -> None:
        async with watchers(kind, 2) as (quiet, busy):
            await quiet.store.put("links/1", b"x")
            for number in range(int(2.5 * LEASE / 0.05)):
                await busy.store.put("links/2", b"%d" % number)
                await asyncio.sleep(0.05)
            await busy.until(lambda state: state is not None and state.get("links/1") == b"x")

    story(tell)


def test_a_lost_store_is_told_and_its_return_brings_the_whole_state(kind: Kind) -> None:
    async def tell() -> None:
        async with watchers(kind, 2) as (one, other):
            await one.store.put("links/1", b"before")
            await other.store.put("links/2", b"x")
            await one.sees({"links/1": b"before", "links/2": b"x"})
            kind.lose()
            await one.sees(None)
            await other.sees(None)
            with contextlib.suppress(Exception):  # it may say so; it must not forget
                await one.store.put("links/1", b"meanwhile")
            kind.find()
            await one.sees({"links/1": b"meanwhile", "links/2": b"x"})
            await other.sees({"links/1": b"meanwhile", "links/2": b"x"})

    story(tell)


def test_nothing_is_missed_when_many_write_at_once(kind: Kind) -> None:
    async def write(watcher: Watcher, number: int, rng: random.Random) -> None:
        for count in range(20):
            await watcher.store.put(f"links/{number}", b"%d" % count)
            await asyncio.sleep(rng.random() * 0.02)

    async def tell() -> None:
        async with watchers(kind, 4) as several:
            rng = random.Random(7)
            await asyncio.gather(*(write(w, n, rng) for n, w in enumerate(several)))
            for watcher in several:
                await watcher.sees({f"links/{n}": b"19" for n in range(4)})

    story(tell)


def test_what_no_store_takes_is_refused_and_changes_nothing(kind: Kind) -> None:
    async def tell() -> None:
        async with watchers(kind) as (one,):
            for key, value in (
                ("", b""),
                ("../x", b""),
                ("a/b/c", b""),
                ("A", b""),
                ("links/1+2", b""),
                ("links/1", bytes(MAX_VALUE + 1)),
            ):
                with pytest.raises(UserError):
                    await one.store.put(key, value)
            await one.store.put("links/1", bytes(MAX_VALUE))
            await one.sees({"links/1": bytes(MAX_VALUE)})

    story(tell)


def test_a_killed_process_is_gone_when_its_lease_ends(kind: Kind) -> None:
    if not kind.argv:
        pytest.skip("sessions with a store in memory are of one process")

    async def tell() -> None:
        async with watchers(kind) as (stays,):
            await stays.store.put("links/1", b"mine")
            with subprocess.Popen([*kind.argv, "links/2", "theirs"]) as process:
                await stays.sees({"links/1": b"mine", "links/2": b"theirs"})
                await asyncio.sleep(2 * LEASE)
                assert stays.states[-1] == {"links/1": b"mine", "links/2": b"theirs"}
                process.send_signal(signal.SIGKILL)
                process.wait()
            await stays.sees({"links/1": b"mine"})

    story(tell)


# -- etcd alone ------------------------------------------------------------------------------------


def test_a_host_can_do_nothing_beyond_the_prefix_of_its_fabric(etcd: tuple[Etcd, Access]) -> None:
    async def tell() -> None:
        client = EtcdClient(etcd[1])
        elsewhere = {"key": text(b"other/links/1")}
        with pytest.raises(StoreLost, match="permission denied"):
            await client.call("kv/range", elsewhere)
        with pytest.raises(StoreLost, match="permission denied"):
            await client.call("kv/put", {**elsewhere, "value": ""})
        with pytest.raises(StoreLost, match="permission denied"):
            await client.call("auth/user/add", {"name": "me", "password": "too"})
        await client.close()

    story(tell)


def test_a_wrong_password_is_a_lost_store_that_says_why(
    etcd: tuple[Etcd, Access], caplog: pytest.LogCaptureFixture
) -> None:
    async def tell() -> None:
        watcher = Watcher(EtcdStore(replace(etcd[1], password="guessed"), ETCD_LEASE))
        await watcher.sees(None)
        await watcher.close()
        assert "authentication failed" in caplog.text

    story(tell)


def test_a_strangers_certificate_is_not_believed(
    etcd: tuple[Etcd, Access], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def tell() -> None:
        authority, _, _ = certificates(tmp_path)
        watcher = Watcher(EtcdStore(replace(etcd[1], authority=authority), ETCD_LEASE))
        await watcher.sees(None)
        await watcher.close()
        assert "CERTIFICATE_VERIFY_FAILED" in caplog.text

    story(tell)


def test_a_store_behind_a_partition_is_lost_and_comes_back_whole(
    etcd: tuple[Etcd, Access],
) -> None:
    server, access = etcd
    (kind,) = _etcd(server, access)

    async def tell() -> None:
        async with watchers(kind, 2) as (one, other):
            await one.store.put("links/1", b"before")
            await other.sees({"links/1": b"before"})
            server.hang(True)
            try:
                await one.sees(None)
                await other.sees(None)
                await one.store.put("links/1", b"meanwhile")
            finally:
                server.hang(False)
            await one.sees({"links/1": b"meanwhile"})
            await other.sees({"links/1": b"meanwhile"})

    story(tell)


def test_compaction_costs_nothing(etcd: tuple[Etcd, Access]) -> None:
    async def tell() -> None:
        store = EtcdStore(etcd[1], ETCD_LEASE)
        watcher = Watcher(store)
        await watcher.sees({})
        for number in range(5):
            await store.put("links/1", b"%d" % number)
        await watcher.sees({"links/1": b"4"})
        root = EtcdClient(etcd[0].root)
        revision = (await root.call("kv/range", {"key": text(b"x")}))["header"]["revision"]
        await root.call("kv/compaction", {"revision": revision})
        await root.close()
        await store.put("links/1", b"after")
        await watcher.sees({"links/1": b"after"})
        await watcher.close()

    story(tell)


def test_who_was_expelled_is_out_and_a_second_token_ends_the_first(
    etcd: tuple[Etcd, Access],
) -> None:
    async def tell() -> None:
        root = etcd[0].root
        first = await admit(root, "h9")
        second = await admit(root, "h9")
        assert Access.from_token(second.to_token()) == second
        for access, welcome in ((first, False), (second, True)):
            watcher = Watcher(EtcdStore(access, ETCD_LEASE))
            await watcher.sees({} if welcome else None)
            await watcher.close()
        await expel(root, "h9")
        watcher = Watcher(EtcdStore(second, ETCD_LEASE))
        await watcher.sees(None)
        await watcher.close()

    story(tell)


def test_the_second_endpoint_serves_when_the_first_does_not(etcd: tuple[Etcd, Access]) -> None:
    async def tell() -> None:
        nobody = f"https://127.0.0.1:{free_ports(1)[0]}"
        access = replace(etcd[1], endpoints=(nobody, *etcd[1].endpoints))
        watcher = Watcher(EtcdStore(access, ETCD_LEASE))
        await watcher.sees({})
        await watcher.close()

    story(tell)


@pytest.mark.parametrize("token", ["", "x", "e30=", "not base64 at all!"])
def test_what_is_no_token_is_refused(token: str) -> None:
    with pytest.raises(ConfigError, match="join token"):
        Access.from_token(token)
