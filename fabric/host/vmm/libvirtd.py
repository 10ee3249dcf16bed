"""A running libvirt, where none is supervised.

Owns: starting ``libvirtd`` and ``virtlogd`` when nothing answers, on machines without an init
system that would, and starting them again when they died. May import: errors, host.vmm,
host.process. Stops no daemon but the one it started, and that only to start it anew.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pwd
import shutil
import signal
import socket
import stat
import subprocess
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from fabric.errors import HypervisorDown, ToolMissing
from fabric.host.process import Process, boot_id
from fabric.host.vmm import remains, stillborn
from fabric.host.vmm.hypervisor import LibvirtHypervisor

START_DEADLINE = 30.0
"""Seconds until a started libvirtd must answer."""

STOP_DEADLINE = 5.0
"""Seconds a libvirtd that is to be started anew has to end: by itself, and then by SIGKILL."""

_POLL = 0.1
_SBIN = "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin"
"""Where daemons live: not on every user's PATH."""

_VIRTLOGD_SOCKET = Path("/run/libvirt/virtlogd-sock")
_KVM = Path("/dev/kvm")
_QEMU_CONF = Path("/etc/libvirt/qemu.conf")
_OWN_DIRECTORY = Path("/run/fabric-libvirt")
"""What the daemon started here sees in place of the machine's, and a note that we started it; only
root may enter."""

_NOTE = _OWN_DIRECTORY / "started.json"
_PID_FILE = Path("/run/libvirtd.pid")

_QEMU_USERS = ("libvirt-qemu", "qemu")
"""Whom libvirt runs QEMU as: on Debian and Ubuntu, elsewhere."""


SYSTEM_URI = "qemu:///system"
"""The only libvirtd that is started when it does not answer: this machine's."""


def hypervisor(uri: str = SYSTEM_URI, *, patient: bool = False) -> LibvirtHypervisor:
    """The domains at ``uri``, with what this machine's libvirtd needs done for them. ``patient``:
    one that is not there is started again, or waited for."""
    if uri != SYSTEM_URI:
        return LibvirtHypervisor(uri)
    return LibvirtHypervisor(uri, revive=revive if patient else None, renew=renew)


def answers(uri: str = SYSTEM_URI) -> bool:
    """Whether libvirt answers at ``uri`` now."""
    with contextlib.closing(LibvirtHypervisor(uri)) as asked:
        return asked.is_alive()


def ensure_libvirtd(uri: str = SYSTEM_URI, deadline: float = START_DEADLINE) -> bool:
    """Have libvirt answer at ``uri`` within ``deadline`` seconds; True if it was started here.

    Raises ToolMissing when libvirtd is not installed, HypervisorDown when it does not answer.
    """
    # Even a libvirtd that answers cannot start a domain without virtlogd.
    if not _listens(_VIRTLOGD_SOCKET) and (virtlogd := _find("virtlogd")) is not None:
        _start([virtlogd, "-d"])
    if answers(uri):
        return False
    if uri != SYSTEM_URI:
        raise HypervisorDown(
            f"libvirt does not answer at {uri}",
            cure="start that libvirtd, or leave FABRIC_LIBVIRT_URI unset to use this machine's",
        )
    libvirtd = _find("libvirtd")
    if libvirtd is None:
        raise ToolMissing(
            "libvirtd is not installed",
            cure="install the Debian packages libvirt-daemon-system and qemu-system-x86",
        )
    stillborn.forget_all()
    _start(_with_consistent_kvm([libvirtd, "-d"]))
    _await_answer(deadline)
    _note()
    return True


def revive(deadline: float = START_DEADLINE) -> bool:
    """Start this machine's libvirtd again if it was started here and died; whether one answers now.

    Where an init system keeps it, or an administrator stopped it, that is theirs to do. Called by
    any number of orchestrators at once, one of which does it. Raises HypervisorDown when the new
    one does not answer, ToolMissing.
    """
    with _locked() as alone:
        if not alone:
            return False
        if answers():
            return True
        former = Former.read()
        return former is not None and not former.process.is_alive() and _again(former, deadline)


def renew(unborn: str, deadline: float = START_DEADLINE) -> bool:
    """Rid this machine's libvirtd of a domain whose start it will never finish: stop it and start
    it again, if it was started here; whether it was.

    Guests run on, and whoever uses it connects again. Any number of orchestrators may want this at
    once, for domains that died together. Raises as :func:`revive`."""
    with _locked() as alone:
        former = Former.read()
        if alone and not stillborn.is_stillborn(unborn):
            return True  # somebody was faster
        if not alone or former is None or not former.process.is_alive():
            return False
        if former.door() is None or _find("libvirtd") is None:
            return False
        _stop(former.process)
        return _again(former, deadline)


def _stop(process: Process) -> None:
    """Raises HypervisorDown when it does not end."""
    for by in (signal.SIGTERM, signal.SIGKILL):
        remains.kill(process, by)
        end = time.monotonic() + STOP_DEADLINE
        while time.monotonic() < end:
            if not process.is_alive():
                return
            time.sleep(_POLL)
    raise HypervisorDown(
        f"libvirtd (process {process.pid}) does not end", cure=f"end process {process.pid} by hand"
    )


@contextlib.contextmanager
def _locked() -> Iterator[bool]:
    """One at a time, of all processes; False where nothing was ever started from here."""
    try:
        lock = (_OWN_DIRECTORY / "lock").open("w")
    except OSError:
        yield False
        return
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield True


def _again(former: Former, deadline: float) -> bool:
    """Start the successor of one that ended; False when there is no way to."""
    door = former.door()
    libvirtd, virtlogd = _find("libvirtd"), _find("virtlogd")
    if door is None or libvirtd is None:
        return False
    if virtlogd is not None and not _listens(_VIRTLOGD_SOCKET):
        _start([*door, virtlogd, "-d"])
    stillborn.forget_all()
    _start([*door, *_with_consistent_kvm([libvirtd, "-d"])])
    _await_answer(deadline)
    _note(former)
    return True


def _await_answer(deadline: float) -> None:
    end = time.monotonic() + deadline
    while not answers():
        if time.monotonic() > end:
            raise HypervisorDown(
                f"libvirtd was started but does not answer within {deadline:g} s",
                cure="run `libvirtd` in a terminal to see why; `fabric doctor` checks the rest",
            )
        time.sleep(_POLL)


@dataclass(frozen=True)
class Former:
    """The libvirtd that was started here last, and the namespaces it was started from. A lab's
    orchestrators stand in others: a libvirtd of theirs would look for bridges in the wrong place.
    """

    process: Process
    boot: str
    network: int
    mounts: int
    """Inode numbers of the namespaces."""

    @classmethod
    def read(cls) -> Former | None:
        try:
            noted = json.loads(_NOTE.read_text())
            former = cls(**{**noted, "process": Process(**noted["process"])})
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return former if former.boot == boot_id() else None

    def door(self) -> list[str] | None:
        """What to put before a command so that it runs in those namespaces; None: no way there."""
        wanted = (self.network, self.mounts)
        if namespaces("self") == wanted:
            return []
        for entry in Path("/proc").iterdir():
            # Any process that stands there will do.
            if entry.name.isdigit() and namespaces(entry.name) == wanted:
                return ["nsenter", "--target", entry.name, "--net", "--mount", "--"]
        return None


def _note(former: Former | None = None) -> None:
    """Remember that the libvirtd that answers now was started here. Without it, it is only not
    started again."""
    with contextlib.suppress(OSError, ValueError):
        process = Process.find(int(_PID_FILE.read_text()), "libvirtd")
        network, mounts = (
            (former.network, former.mounts) if former is not None else namespaces("self")
        )
        if process is not None:
            note = asdict(Former(process, boot_id(), network, mounts))
            _OWN_DIRECTORY.mkdir(mode=0o700, exist_ok=True)
            draft = _NOTE.with_suffix(".new")
            draft.write_text(json.dumps(note) + "\n")
            draft.rename(_NOTE)


def namespaces(process: str) -> tuple[int, int]:
    """(network, mounts) of a process, as inode numbers; zeros when it may not be asked."""
    try:
        places = [Path("/proc") / process / "ns" / kind for kind in ("net", "mnt")]
        network, mounts = (place.stat().st_ino for place in places)
    except OSError:
        return 0, 0
    return network, mounts


def kvm_device_problem(device: Path = _KVM) -> str:
    """Why libvirt would distrust its own knowledge of KVM, in words; empty when it would not.

    libvirt asks QEMU as root whether KVM works, but then checks the device as the user guests run
    as. Where the two disagree, it throws its cached capabilities away at *every* look-up, and one
    start takes a minute. Without udev the device is 0600, and they disagree.
    """
    try:
        facts = device.stat()
    except OSError:
        return ""
    if not stat.S_ISCHR(facts.st_mode):
        return ""
    account = next((found for name in _QEMU_USERS if (found := _account(name))), None)
    if account is None:
        return ""
    groups = set(os.getgrouplist(account.pw_name, account.pw_gid))
    mode = facts.st_mode
    allowed = (
        mode & 0o006 == 0o006
        or (facts.st_gid in groups and mode & 0o060 == 0o060)
        or (facts.st_uid == account.pw_uid and mode & 0o600 == 0o600)
    )
    if allowed:
        return ""
    return (
        f"{device} has mode {stat.S_IMODE(facts.st_mode):04o}: {account.pw_name} may not use it, "
        "and libvirt probes QEMU anew at every step (a guest takes a minute to start)"
    )


def _with_consistent_kvm(argv: list[str]) -> list[str]:
    """``argv`` such that the daemon finds KVM unusable in both its ways of looking.

    Its guests could not use the device anyway, so nothing is lost; and nothing is granted: the
    machine's device and configuration stay as their owner set them. The daemon alone gets a mount
    namespace in which an empty file covers the device. libvirt 9.0 cannot carry such a file over
    into the private /dev it builds for each QEMU, so that is switched off for this daemon: QEMU
    sees the machine's /dev, with the rights of its unprivileged user.
    """
    if not kvm_device_problem():
        return argv
    no_kvm, configuration = _OWN_DIRECTORY / "no-kvm", _OWN_DIRECTORY / "qemu.conf"
    try:
        _OWN_DIRECTORY.mkdir(mode=0o700, exist_ok=True)
        no_kvm.touch(mode=0o000)
        configuration.write_text(f"{_QEMU_CONF.read_text()}\nnamespaces = []\n")
    except OSError:
        return argv  # slow, but it works
    covers = [str(path) for path in (no_kvm, _KVM, configuration, _QEMU_CONF)]
    # slave: mounts made later on the machine still arrive in the daemon's namespace.
    script = 'mount --bind "$1" "$2" && mount --bind "$3" "$4" && shift 4 && exec "$@"'
    unshare = ["unshare", "--mount", "--propagation", "slave"]
    return [*unshare, "/bin/sh", "-c", script, "sh", *covers, *argv]


def _account(name: str) -> pwd.struct_passwd | None:
    try:
        return pwd.getpwnam(name)
    except KeyError:
        return None


def _find(program: str) -> str | None:
    return shutil.which(program, path=_SBIN)


def _listens(path: Path) -> bool:
    """A socket file alone proves nothing: a daemon that was killed leaves its own behind."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
        return True


def _start(argv: list[str]) -> None:
    """Start a daemon that puts itself into the background."""
    try:
        result = subprocess.run(
            argv, capture_output=True, text=True, timeout=START_DEADLINE, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise HypervisorDown(f"{argv[-2]}: {exc}", cure=f"start {argv[-2]} by hand") from exc
    # A loser of a race against another starter fails on the pid file; the answer decides.
    if result.returncode != 0 and "pid file" not in result.stderr:
        raise HypervisorDown(
            f"{' '.join(argv)} ended with status {result.returncode}: {result.stderr.strip()}",
            cure="run it in a terminal to see why",
        )
