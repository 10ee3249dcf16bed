"""The store a host's configuration asks for.

Owns: open_store. May import: errors, host.config, host.store. Implementations are imported when
they are wanted.
"""

from __future__ import annotations

from pathlib import Path

from fabric.errors import ConfigError
from fabric.host.config import StoreConfig
from fabric.host.store.interface import Store


def open_store(config: StoreConfig) -> Store | None:
    """None when nothing is to be shared. Raises ConfigError."""
    if config.kind == "none":
        return None
    if config.kind == "file":
        from fabric.host.store.file import FileStore

        if not config.directory:
            raise ConfigError("store: kind file needs a directory")
        return FileStore(Path(config.directory), config.lease)
    if config.kind == "etcd":
        from fabric.host.store.etcd import Access, EtcdStore

        return EtcdStore(Access.from_token(_token(Path(config.token_file))), int(config.lease))
    raise ConfigError(f"store: kind {config.kind!r} is not known", cure="use none, file or etcd")


def _token(path: Path) -> str:
    try:
        return path.read_text()
    except OSError as exc:
        raise ConfigError(
            f"store: token_file {path}: {exc.strerror}", cure="make one with `fabric store token`"
        ) from exc
