"""Another program's process, known by more than its number.

Owns: telling whether a process that was seen earlier still lives, and which boot this is. May
import: nothing of fabric. Process ids are reused; a process is the pair (pid, start time), see
proc(5) field 22.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Self

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True)
class Process:
    """A process at the moment it was found."""

    pid: int
    start_ticks: int

    @classmethod
    def find(cls, pid: int | None, argument: str) -> Self | None:
        """The process ``pid`` if it lives and ``argument`` occurs in its command line."""
        if pid is None or (ticks := _start_ticks(pid)) is None:
            return None
        try:
            line = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            return None
        return cls(pid, ticks) if argument.encode() in line else None

    @classmethod
    def of_child(cls, pid: int) -> Self:
        """A child that nobody has waited for; it may have ended, and is then not alive.

        Raises ProcessLookupError when there is no such child.
        """
        fields = _stat(pid)
        if fields is None:
            raise ProcessLookupError(pid)
        return cls(pid, int(fields[19]))

    def is_alive(self) -> bool:
        """Whether that very process still exists; a zombie has released everything it held."""
        return _start_ticks(self.pid) == self.start_ticks


def boot_id() -> str:
    """Names the machine's current boot: what was noted in another one is of nothing that runs."""
    return _BOOT_ID.read_text().strip()


def _start_ticks(pid: int) -> int | None:
    fields = _stat(pid)
    return None if fields is None or fields[0] in "ZX" else int(fields[19])


def _stat(pid: int) -> list[str] | None:
    """What proc(5) says of a process, from its state on."""
    try:
        # The command name may contain anything, so count from its closing parenthesis.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
