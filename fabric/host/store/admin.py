"""Letting hosts into a fabric's etcd.

Owns: users and the role of a fabric. May import: errors, host.store. An operator's work, done with
root's password; hosts get a user that can do nothing but read and write below the fabric's prefix.
"""

from __future__ import annotations

import secrets
from dataclasses import replace

from fabric.host.store.etcd import Access, EtcdClient, StoreLost, behind, text

_PASSWORD_BYTES = 24


async def admit(root: Access, member: str) -> Access:
    """Give a host its own user; what it needs to know. A second time: a new password, the old one
    ends. Raises StoreLost, also when ``root`` may not do this.
    """
    client = EtcdClient(root)
    role = f"fabric:{root.prefix}"
    password = secrets.token_urlsafe(_PASSWORD_BYTES)
    try:
        await _add(client, "auth/role/add", {"name": role})
        reach = {"key": text(root.prefix.encode()), "range_end": text(behind(root.prefix))}
        permission = {**reach, "permType": "READWRITE"}
        await client.call("auth/role/grant", {"name": role, "perm": permission})
        user = {"name": member, "password": password}
        if not await _add(client, "auth/user/add", user):
            await client.call("auth/user/changepw", user)
        await client.call("auth/user/grant", {"user": member, "role": role})
    finally:
        await client.close()
    return replace(root, user=member, password=password)


async def expel(root: Access, member: str) -> None:
    """Take a host's user away; its sessions end. Raises StoreLost, also when there is none."""
    client = EtcdClient(root)
    try:
        await client.call("auth/user/delete", {"name": member})
    finally:
        await client.close()


async def _add(client: EtcdClient, path: str, what: dict[str, str]) -> bool:
    """False: it is there already."""
    try:
        await client.call(path, what)
    except StoreLost as exc:
        if "already exists" not in exc.message:
            raise
        return False
    return True
