"""nftables in process: commands in, nft's own words out.

Owns: the ctypes binding of libnftables.so.1 (a transaction costs 0.2 ms; an ``nft`` process 5 ms).
May import: errors, host.network.netns, host.network.nft_counters.
"""

from __future__ import annotations

import ctypes
import json
import socket
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self

from fabric.errors import (
    Conflict,
    EnvironmentFault,
    FabricError,
    KernelLacks,
    NameUnknown,
    NotRoot,
    ToolMissing,
)
from fabric.host.network.netns import enter_netns, translate
from fabric.host.network.nft_counters import open_reader, read_counters

LIBRARY = "libnftables.so.1"

# <nftables/libnftables.h>
_OUTPUT_JSON = 1 << 4
_OUTPUT_NUMERIC_PROTOCOL = 1 << 7
_OUTPUT_NUMERIC_SYMBOL = 1 << 9
_NFT_CTX_DEFAULT = 0

# The phrases of strerror that nft prints; a transaction has no errno to look at.
_ERRORS: tuple[tuple[str, type[FabricError]], ...] = (
    ("Operation not permitted", NotRoot),
    ("File exists", Conflict),
    ("Device or resource busy", Conflict),
    ("No such file or directory", NameUnknown),
    ("Operation not supported", KernelLacks),
    ("Protocol error", KernelLacks),
)


class Nftables:
    """One libnftables context, bound to the network namespace the opening thread stands in.

    A context manager; not for several threads at once. Every :meth:`run` is one kernel
    transaction: all of its commands take effect, or none.
    """

    def __init__(self) -> None:
        self._library: Any = None
        self._context: int | None = None
        self._reader: socket.socket | None = None

    def __enter__(self) -> Self:
        try:
            library = ctypes.CDLL(LIBRARY)
        except OSError as exc:
            raise ToolMissing(LIBRARY, cure="apt-get install libnftables1 nftables") from exc
        pointer = ctypes.c_void_p
        library.nft_ctx_new.restype = pointer
        for name in ("nft_ctx_get_output_buffer", "nft_ctx_get_error_buffer"):
            getattr(library, name).restype = ctypes.c_char_p
            getattr(library, name).argtypes = [pointer]
        for name in ("nft_ctx_buffer_output", "nft_ctx_buffer_error", "nft_ctx_free"):
            getattr(library, name).argtypes = [pointer]
        library.nft_ctx_output_set_flags.argtypes = [pointer, ctypes.c_uint]
        library.nft_run_cmd_from_buffer.argtypes = [pointer, ctypes.c_char_p]
        context = library.nft_ctx_new(_NFT_CTX_DEFAULT)
        if not context:
            raise NotRoot("nftables: no netlink socket", cure="run as root")
        library.nft_ctx_buffer_output(context)
        library.nft_ctx_buffer_error(context)
        self._library, self._context = library, context
        self._reader = open_reader()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._context is not None:
            self._library.nft_ctx_free(self._context)
            self._context = None
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    def run(self, commands: str) -> str:
        """Execute ``commands`` (nft syntax) as one transaction and return what nft prints.

        Raises NotRoot, Conflict, NameUnknown, KernelLacks or EnvironmentFault with nft's message.
        """
        return self._execute(commands, 0)

    def list_map(self, family: str, table: str, name: str) -> list[tuple[list[Any], Any]]:
        """Elements of a map as (parts of the key, value), numbers as numbers.

        Raises NameUnknown when there is no such map.
        """
        flags = _OUTPUT_JSON | _OUTPUT_NUMERIC_PROTOCOL | _OUTPUT_NUMERIC_SYMBOL
        reply = json.loads(self._execute(f"list map {family} {table} {name}", flags))
        found = next(entry["map"] for entry in reply["nftables"] if "map" in entry)
        elements = found.get("elem", [])
        return [
            (key["concat"] if isinstance(key, dict) else [key], value) for key, value in elements
        ]

    def list_set(self, family: str, table: str, name: str) -> list[list[Any]]:
        """Elements of a set as parts of the key, numbers as numbers. Raises NameUnknown."""
        flags = _OUTPUT_JSON | _OUTPUT_NUMERIC_PROTOCOL | _OUTPUT_NUMERIC_SYMBOL
        reply = json.loads(self._execute(f"list set {family} {table} {name}", flags))
        found = next(entry["set"] for entry in reply["nftables"] if "set" in entry)
        return [key["concat"] if isinstance(key, dict) else [key] for key in found.get("elem", [])]

    def list_counters(self, table: str) -> dict[str, int]:
        """Packets of every named counter in the tables called ``table``, of any family."""
        assert self._reader is not None, "used outside its with-block"
        try:
            return read_counters(self._reader, table)
        except OSError as exc:
            raise translate(exc.errno or 0, f"nftables: counters of {table}") from exc

    def _execute(self, commands: str, flags: int) -> str:
        if self._context is None:
            raise RuntimeError("Nftables used outside its with-block")
        self._library.nft_ctx_output_set_flags(self._context, flags)
        failed = self._library.nft_run_cmd_from_buffer(self._context, commands.encode())
        output = self._library.nft_ctx_get_output_buffer(self._context) or b""
        # Read even after success: reading is what empties the buffer.
        message = self._library.nft_ctx_get_error_buffer(self._context) or b""
        if failed:
            raise _translate(bytes(message).decode(errors="replace").strip())
        return bytes(output).decode()


class NftablesIn(Nftables):
    """The same, bound to the named network namespace, whichever thread calls: libnftables looks
    interfaces up on the thread that runs it, so one that stands there does."""

    def __init__(self, netns: str) -> None:
        super().__init__()
        self._worker = ThreadPoolExecutor(1, initializer=enter_netns, initargs=(netns,))

    def __enter__(self) -> Self:
        try:
            self._worker.submit(super().__enter__).result()
        except BaseException:
            self._worker.shutdown()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._worker.submit(super().__exit__, kind, exc, trace).result()
        self._worker.shutdown()

    def _execute(self, commands: str, flags: int) -> str:
        return self._worker.submit(super()._execute, commands, flags).result()


def _translate(message: str) -> FabricError:
    for phrase, kind in _ERRORS:
        if phrase in message:
            cure = "run as root" if kind is NotRoot else ""
            return kind(f"nftables: {message}", cure=cure)
    return EnvironmentFault(f"nftables: {message or 'failed without a message'}")
