"""Commands that run something: run, exec, console, capture.

Owns: these commands. May import: errors, host, lab, cli. Wherever it can, the command *becomes* the
program it runs: terminal, signals and exit code are then simply the program's own.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fabric.cli import context
from fabric.cli.context import HostArgument, LabOption, pick_host, pick_lab
from fabric.cli.output import note
from fabric.errors import NameUnknown, ToolMissing, Unreachable, UserError

if TYPE_CHECKING:
    from fabric.lab.state import LabState

NOT_FOUND = 127
"""Exit code of a command that does not exist, as shells have it."""

CommandArgument = Annotated[list[str], typer.Argument(help="Program and arguments, after `--`.")]
GuestArgument = Annotated[str, typer.Argument(metavar="CONNECTION@HOST", help="Which guest.")]


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command(epilog="Example: fabric run h1 --need low-latency -- curl http://h4:8000/")(run)
    app.command("exec", epilog="Example: fabric exec 00000001a3@h2 -- ps")(execute)
    app.command(epilog="Example: fabric console 00000001a3@h2")(console)
    app.command(epilog="Example: fabric capture h2 | tshark -r -")(capture)


def run(
    host: HostArgument,
    command: CommandArgument,
    need: Annotated[
        str | None,
        typer.Option(help="What the program needs.", autocompletion=context.complete_need),
    ] = None,
    protocol: Annotated[
        str | None,
        typer.Option(help="The protocol to use; wins.", autocompletion=context.complete_protocol),
    ] = None,
    lab: LabOption = None,
) -> None:
    """Run any program on a host, attached to this terminal; its exit code is passed on."""
    recorded = pick_lab(lab)
    namespace = _namespace(recorded, host)
    environment = {
        k: v for k, v in os.environ.items() if k not in ("FABRIC_NEED", "FABRIC_PROTOCOL")
    }
    if need is not None:
        from fabric.routing.needs import NEEDS

        if need not in NEEDS:
            raise NameUnknown(f"there is no need {need}", cure=f"needs are: {', '.join(NEEDS)}")
        environment["FABRIC_NEED"] = need
    if protocol is not None:
        from fabric.routing.definitions import by_name

        known = recorded.spec.topology().definitions
        environment["FABRIC_PROTOCOL"] = by_name(protocol, known).name
    program = shutil.which(command[0])
    if program is None:
        note(f"error: {command[0]}: command not found")
        raise typer.Exit(NOT_FOUND)
    # ip replaces itself by the program, after mounting the host's own /etc/hosts.
    _become(["ip", "netns", "exec", namespace, program, *command[1:]], environment)


def execute(guest: GuestArgument, command: CommandArgument, lab: LabOption = None) -> None:
    """Run a command inside a guest over SSH; its exit code is passed on."""
    recorded = pick_lab(lab)
    host, view = _guest(recorded, guest)
    from fabric.host.guest.provision import run_command
    from fabric.host.network.netns import enter_netns

    keys = _ssh_keys(view["guest_host_key"])
    # Only this host's namespace has a way to its guests. Nothing after this needs another one.
    enter_netns(_namespace(recorded, host))
    with _raw_terminal() as terminal:
        status = run_command(
            view["guest_address"],
            keys,
            command,
            stdin=sys.stdin.buffer,
            stdout=sys.stdout.buffer,
            stderr=sys.stderr.buffer,
            terminal=terminal,
        )
    raise typer.Exit(status)


def console(guest: GuestArgument, lab: LabOption = None) -> None:
    """Attach to a guest's serial console (leave with Ctrl+])."""
    _, view = _guest(pick_lab(lab), guest)
    _become(["virsh", "-c", context.libvirt_uri(), "console", view["guest"]], dict(os.environ))


def capture(
    host: HostArgument,
    connection: Annotated[
        str, typer.Argument(help="Only this connection's guest: what passes its tap.")
    ] = "",
    lab: LabOption = None,
) -> None:
    """Write a packet capture (pcap) to standard output: of a guest's tap, or of a host's links."""
    recorded = pick_lab(lab)
    namespace = _namespace(recorded, host)
    if sys.stdout.isatty():
        raise UserError("a capture is no text", cure="send it to a file or to `tshark -r -`")
    tcpdump = ["tcpdump", "-U", "-n", "-w", "-"]
    if connection:
        _, view = _guest(recorded, f"{connection}@{host}")
        _become([*tcpdump, "-i", view["tap"]], dict(os.environ))
    config = pick_host(recorded.spec, host)
    # `any` sees the guests' side too; there, one end of every packet is a guest's address.
    wanted = f"udp port {config.port} and not net {config.guest_subnet}"
    _become(["ip", "netns", "exec", namespace, *tcpdump, "-i", "any", wanted], dict(os.environ))


def _namespace(recorded: LabState, host: str) -> str:
    """The namespace of a host. Raises NameUnknown, Unreachable when it is gone, NotRoot."""
    from fabric.host.network.netns import NETNS_DIR
    from fabric.lab.names import namespace_name
    from fabric.lab.preflight import require_root

    name = namespace_name(recorded.spec.name, pick_host(recorded.spec, host).host)
    require_root()
    if not (NETNS_DIR / name).exists():
        raise Unreachable(f"namespace {name} is gone", cure=f"fabric up {recorded.spec.path}")
    return name


def _guest(recorded: LabState, where: str) -> tuple[str, dict[str, Any]]:
    """Host and that host's view of a connection which has a guest there.

    Raises UserError on a malformed ``where``, NameUnknown when there is no such guest.
    """
    from fabric.cli.client import LabClient

    label, separator, host = where.partition("@")
    if not separator or not label or not host:
        raise UserError(f"{where!r} is not CONNECTION@HOST", cure="e.g. 00000001a3@h2")
    name = pick_host(recorded.spec, host).host
    connection = LabClient(recorded.spec, note).connection(label)
    for view in connection["hosts"]:
        if view["host"] == name and view.get("guest"):
            return name, view
    raise NameUnknown(
        f"connection {connection['id']} has no guest on {name} ({connection['state']})",
        cure="`fabric connections` shows where it has guests",
    )


def _become(argv: Sequence[str], environment: dict[str, str]) -> None:
    """Replace this process. Raises ToolMissing."""
    if shutil.which(argv[0]) is None:
        raise ToolMissing(f"`{argv[0]}` is not installed", cure="run `fabric doctor`")
    sys.stdout.flush()
    sys.stderr.flush()
    os.execvpe(argv[0], list(argv), environment)


def _ssh_keys(host_key: str | None) -> Any:
    """``host_key``: the guest's own; None when it has the image's."""
    from fabric.host.guest.provision import SshKeys
    from fabric.host.vmm.image import load_image

    image = load_image(context.state_dir())
    return SshKeys(host_key or image.host_public_key, image.client_key)


class _raw_terminal:  # noqa: N801 - used as a function
    """While it lasts, keys go to the guest untouched; yields what the guest's pty must know."""

    def __init__(self) -> None:
        self._saved: list[Any] | None = None

    def __enter__(self) -> tuple[str, int, int] | None:
        if not (sys.stdin.isatty() and sys.stdout.isatty()):
            return None
        import termios
        import tty

        self._saved = termios.tcgetattr(sys.stdin)
        tty.setraw(sys.stdin)
        size = shutil.get_terminal_size()
        return (os.environ.get("TERM", "xterm"), size.columns, size.lines)

    def __exit__(self, *_exc: object) -> None:
        if self._saved is not None:
            import termios

            termios.tcsetattr(sys.stdin, termios.TCSADRAIN, self._saved)
