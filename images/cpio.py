"""A reproducible initramfs archive (cpio "newc").

Owns: the archive format, kernel documentation driver-api/early-userspace/buffer-format. Imports
nothing. Every entry belongs to root and carries the same time, so equal contents are equal bytes.
"""

from __future__ import annotations

S_IFDIR = 0o040000
S_IFREG = 0o100000
MAGIC = "070701"


class Archive:
    """Collects entries in order; :meth:`close` gives the bytes."""

    def __init__(self, mtime: int) -> None:
        self._mtime = mtime
        self._bytes = bytearray()
        self._inode = 0

    def directory(self, name: str, mode: int = 0o755) -> None:
        self._entry(name, S_IFDIR | mode, b"")

    def file(self, name: str, content: bytes, mode: int) -> None:
        self._entry(name, S_IFREG | mode, content)

    def close(self) -> bytes:
        """The whole archive, trailer included."""
        self._inode = -1
        self._entry("TRAILER!!!", 0, b"", mtime=0)
        return bytes(self._bytes)

    def _entry(self, name: str, mode: int, content: bytes, mtime: int | None = None) -> None:
        self._inode += 1
        links = 2 if mode & S_IFDIR else 1
        when = self._mtime if mtime is None else mtime
        # inode, mode, uid, gid, links, mtime, size, device (major, minor) twice, name size, check
        fields = (self._inode, mode, 0, 0, links, when, len(content), 0, 0, 0, 0, len(name) + 1, 0)
        header = MAGIC + "".join(f"{field:08x}" for field in fields)
        self._bytes += header.encode() + name.encode() + b"\0"
        self._pad()
        self._bytes += content
        self._pad()

    def _pad(self) -> None:
        self._bytes += bytes(-len(self._bytes) % 4)
