"""What must hold before a lab changes anything on this machine.

Owns: the order of the checks. May import: errors, host, lab. Each check raises the error that says
how to mend it; nothing of the lab has been made when one does.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from fabric.errors import Conflict, KernelLacks, NotRoot, ToolMissing
from fabric.host.identity import lab_tag
from fabric.lab import state
from fabric.lab.spec import LabSpec

TUN_DEVICE = Path("/dev/net/tun")

Preflight = Callable[[LabSpec], None]


def require_root() -> None:
    """Raises NotRoot."""
    if os.geteuid() != 0:
        raise NotRoot("this needs root: it makes namespaces and bridges", cure="use sudo")


def require_machine(spec: LabSpec) -> None:
    """Root, tools, TUN, guest image, a libvirt that answers (started when none does)."""
    require_root()
    if shutil.which("ip") is None:
        raise ToolMissing("`ip` is not installed", cure="install the Debian package iproute2")
    if not TUN_DEVICE.exists():
        raise KernelLacks(f"{TUN_DEVICE} does not exist", cure="load the module: modprobe tun")
    from fabric.host.vmm.image import load_image
    from fabric.host.vmm.libvirtd import ensure_libvirtd

    load_image(Path(spec.hosts[0].state_dir))
    ensure_libvirtd(spec.hosts[0].libvirt_uri)


def require_no_conflict(spec: LabSpec, run_dir: Path) -> None:
    """That no lab of another file has the name or the interface tag. Raises Conflict."""
    recorded = state.load(run_dir, spec.name)
    if recorded is not None:
        _require_same(spec, recorded.spec)
    for other in state.recorded_labs(run_dir):
        if other != spec.name and lab_tag(other) == lab_tag(spec.name):
            raise Conflict(
                f"labs {spec.name} and {other} have the same interface tag {lab_tag(other)}",
                cure=f"rename one of them, or take the other down: fabric down --lab {other}",
            )


def _require_same(spec: LabSpec, recorded: LabSpec) -> None:
    down = f"take it down first (fabric down --lab {spec.name}) or change `name:`"
    if spec.path != recorded.path:
        raise Conflict(f"lab {spec.name} is up from another file, {recorded.path}", cure=down)
    if spec.digest != recorded.digest:
        raise Conflict(
            f"lab {spec.name} is up from an earlier version of {recorded.path}, or with other "
            "options",
            cure=down,
        )
