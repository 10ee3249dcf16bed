"""Templates of guests that this machine will not use again.

Owns: finding out what the current ingredients of a template are. May import: errors, host.
"""

from __future__ import annotations

from pathlib import Path

from fabric.errors import FabricError
from fabric.host.config import TEMPLATE_DIR
from fabric.host.guest.template_archive import TEMPLATE_COPIES

STATE_DIR = Path("/var/lib/fabric")


def stale_templates(
    state_dir: Path = STATE_DIR, directory: Path = Path(TEMPLATE_DIR)
) -> list[Path]:
    """Templates of another image, agent, QEMU or accelerator, their copies on disk, and abandoned
    drafts.

    None where this machine's own image or accelerator is not known: nothing proves them stale.
    """
    copies = state_dir / TEMPLATE_COPIES
    if not directory.is_dir() and not copies.is_dir():
        return []
    # What building a bundle and an image's digest need is not paid where there are no templates.
    from fabric.host.guest.bundle import build_bundle, compiler_for
    from fabric.host.guest.ingredients import Ingredients
    from fabric.host.guest.template import stale, stale_copies
    from fabric.host.vmm.acceleration import QemuBooter, verdict
    from fabric.host.vmm.image import load_image

    try:
        image = load_image(state_dir)
        acceleration = verdict(image, state_dir)
        if acceleration is None:
            return []
        qemu = QemuBooter().version()
        bundle = build_bundle(compiler=compiler_for(image))
        current = Ingredients.gather(image, acceleration, bundle, qemu, memory=0)
    except (FabricError, OSError):
        return []
    return [*stale(directory, current), *stale_copies(copies, current)]
