"""``fabric store``: letting hosts into the store several machines share.

Owns: the sub-commands of ``store``. May import: errors, host.store, cli. They speak to etcd alone;
a lab's own store, a directory, needs none of it.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fabric.cli.output import Format, OutputOption, emit_json, emit_table, note, say
from fabric.errors import UserError

if TYPE_CHECKING:
    from fabric.host.store.etcd import Access

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Hosts of several machines and the etcd they share.",
)
EndpointOption = Annotated[
    list[str], typer.Option("--endpoint", help="URL of etcd; again for each member.")
]
PrefixOption = Annotated[str, typer.Option(help="Of all keys of this fabric.")]
AuthorityOption = Annotated[
    Path | None, typer.Option(help="PEM file of the authority that vouches for etcd.")
]
PasswordOption = Annotated[
    Path | None, typer.Option(help="File with the password of etcd's user root.")
]


def register(root: typer.Typer) -> None:
    """Add this module's commands."""
    root.add_typer(app, name="store")


@app.callback()
def store() -> None:
    """Hosts of several machines and the etcd they share."""


@app.command(
    epilog="Example: fabric store token h1 --endpoint https://10.0.0.5:2379 --authority ca.pem "
    "--root-password pw > h1.token"
)
def token(
    host: Annotated[str, typer.Argument(help="The host that is to join.")],
    endpoint: EndpointOption,
    authority: AuthorityOption = None,
    root_password: PasswordOption = None,
    prefix: PrefixOption = "fabric/",
) -> None:
    """Give a host its own etcd user, and print the word it joins with.

    The user can read and write below the prefix and nothing else. The word holds its password; a
    second word for the same host ends the first.
    """
    from fabric.host.store.admin import admit

    root = _root(endpoint, authority, root_password, prefix)
    if root.user:
        say(asyncio.run(admit(root, host)).to_token())
        return
    note("without --root-password etcd has no users: whoever reaches it can change everything")
    say(root.to_token())


@app.command(epilog="Example: fabric store expel h1 --endpoint https://10.0.0.5:2379 …")
def expel(
    host: Annotated[str, typer.Argument(help="The host that is to leave.")],
    endpoint: EndpointOption,
    authority: AuthorityOption = None,
    root_password: PasswordOption = None,
    prefix: PrefixOption = "fabric/",
) -> None:
    """Take a host's etcd user away: its word is worth nothing any more."""
    from fabric.host.store.admin import expel as expel_host

    asyncio.run(expel_host(_root(endpoint, authority, root_password, prefix), host))


@app.command(epilog="Example: fabric store members --token-file h1.token -o json")
def members(
    token_file: Annotated[Path, typer.Option(help="Any host's word.")],
    output: OutputOption = Format.TABLE,
) -> None:
    """Hosts that are in the store now, and what they say of their links."""
    import json

    from fabric.host.store.etcd import Access, EtcdStore

    async def look() -> dict[str, bytes]:
        session = EtcdStore(Access.from_token(_read(token_file)))
        async for state in session.watch():
            await session.close()
            if state is None:
                raise UserError("the store does not answer", cure="see the warning above")
            return dict(state)
        return {}

    reports = [
        json.loads(value)
        for key, value in sorted(asyncio.run(look()).items())
        if key.startswith("links/")
    ]
    if output is Format.JSON:
        emit_json(reports)
        return
    rows = [
        (
            each["node"],
            each["load"],
            len(each["links"]),
            sum(not link.get("up", True) for link in each["links"].values()),
        )
        for each in reports
    ]
    emit_table(("NODE", "LOAD", "LINKS", "DOWN"), rows, empty="nobody")


def _root(
    endpoints: list[str], authority: Path | None, password: Path | None, prefix: str
) -> Access:
    from fabric.host.store.etcd import Access

    return Access(
        tuple(endpoints),
        prefix,
        "root" if password else "",
        _read(password).strip() if password else "",
        _read(authority) if authority else "",
    )


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError as exc:
        raise UserError(f"{path}: {exc.strerror}") from exc
