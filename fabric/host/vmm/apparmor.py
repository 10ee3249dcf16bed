"""What AppArmor must let a guest's QEMU do beyond what libvirt knows of.

Owns: our lines in libvirt's AppArmor abstraction. May import: errors, host.config.

libvirt writes a profile per domain, from its XML: kernel, initramfs, disk, console and channel are
in it. It cannot see what is in ``<qemu:commandline>`` (the memory of a template and of its copies),
nor descriptors handed to QEMU's monitor (a template's state), which AppArmor checks as if QEMU had
opened the file itself. Those are allowed for all guests, in the file libvirt leaves to the site.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from fabric.errors import EnvironmentFault
from fabric.host.config import TEMPLATE_DIR

BEGIN = "# fabric: begin (made by `make setup`)"
END = "# fabric: end"
RULES = (f"{TEMPLATE_DIR}/*/{{memory,running-memory,state}} rw,",)
"""File permissions decide further: a copy's QEMU may only read what belongs to root."""

CURE = "run `make setup`"
_LOCAL_INCLUDE = re.compile(r"^\s*#?include .*<local/abstractions/libvirt-qemu>", re.MULTILINE)
_OURS = re.compile(rf"^{re.escape(BEGIN)}\n.*?^{re.escape(END)}\n", re.MULTILINE | re.DOTALL)
_SBIN = "/usr/sbin:/sbin:/usr/bin:/bin"
_PARSER_SECONDS = 30.0


@dataclass(frozen=True)
class AppArmor:
    """Where it is on this machine; tests say otherwise."""

    enabled: Path = Path("/sys/module/apparmor/parameters/enabled")
    profiles: Path = Path("/etc/apparmor.d")

    @property
    def local(self) -> Path:
        """The site's additions to what every guest may do. A conffile: upgrades leave it alone."""
        return self.profiles / "local/abstractions/libvirt-qemu"

    @property
    def confines_guests(self) -> bool:
        """Whether this kernel has AppArmor and this libvirt profiles for it."""
        try:
            return self.enabled.read_text().strip() == "Y" and self._abstraction.exists()
        except OSError:
            return False

    @property
    def _abstraction(self) -> Path:
        return self.profiles / "abstractions/libvirt-qemu"

    def problem(self) -> str:
        """What is missing, in words; empty where guests may do what they need."""
        if not self.confines_guests:
            return ""
        if not _LOCAL_INCLUDE.search(self._abstraction.read_text()):
            return f"{self._abstraction} does not include {self.local}"
        if _block() not in self._text():
            return f"{self.local} does not let guests use templates ({' '.join(RULES)})"
        return ""

    def ensure(self) -> bool:
        """Have our lines there; True if the file was changed. The next guest starts with them.

        Raises EnvironmentFault when they would not take effect.
        """
        if not self.problem():
            return False
        _check()
        text = _OURS.sub("", self._text())
        if text and not text.endswith("\n"):
            text += "\n"
        self.local.parent.mkdir(parents=True, exist_ok=True)
        new = self.local.with_name(f"{self.local.name}.fabric-new")
        new.write_text(text + _block())
        new.replace(self.local)
        if still := self.problem():
            raise EnvironmentFault(
                f"AppArmor: {still}", cure=f"add to the abstraction by hand: {' '.join(RULES)}"
            )
        return True

    def _text(self) -> str:
        return self.local.read_text() if self.local.exists() else ""


def _block() -> str:
    return "\n".join((BEGIN, *RULES, END)) + "\n"


def _check() -> None:
    """Have AppArmor's own parser read the rules, without loading them; nothing without a parser."""
    parser = shutil.which("apparmor_parser", path=_SBIN)
    if parser is None:
        return
    profile = "\n".join(("profile fabric-check {", *RULES, "}\n"))
    argv = [parser, "--skip-kernel-load", "--skip-cache"]
    done = subprocess.run(
        argv, input=profile, capture_output=True, text=True, timeout=_PARSER_SECONDS, check=False
    )
    if done.returncode != 0:
        raise EnvironmentFault(
            f"apparmor_parser does not accept our rules: {done.stderr.strip()}",
            cure="report this with the version of the package apparmor",
        )
