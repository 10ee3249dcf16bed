"""Every error the fabric raises on purpose, in one tree.

Owns: the exception classes. May import: nothing.

FabricError
├── UserError           the caller asked for something that cannot be: mend the input
│   ├── ConfigError         a topology, policy or configuration file is wrong (lists all mistakes)
│   ├── NameUnknown         a host, connection, protocol or lab that does not exist
│   └── Conflict            the name, port or resource is already taken
├── EnvironmentFault    the machine lacks something: mend the machine
│   ├── NotRoot
│   ├── ImageMissing        no guest image where one is expected
│   ├── ImageInvalid        the guest image does not match its manifest
│   ├── NoSpace             a filesystem is full
│   ├── ToolMissing         a program or library is not installed
│   ├── KernelLacks         the kernel lacks a feature
│   └── HypervisorDown      libvirt does not answer
├── GuestFault          a guest misbehaved: the fabric replaces it
│   ├── SpawnFailed
│   ├── ProvisionFailed
│   └── AgentLost
├── CapacityExceeded    a configured limit was reached: raise it or wait
├── WireError           bytes from the network that cannot be accepted (see fabric.wire)
└── Unreachable         an orchestrator does not answer

A message says *what* happened and *where*; ``cure`` says how to mend it.
"""

from __future__ import annotations


class FabricError(Exception):
    """Root of all errors raised on purpose. ``exit_code`` is what the CLI returns for it."""

    exit_code = 1

    def __init__(self, message: str, *, cure: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.cure = cure

    def __str__(self) -> str:
        return f"{self.message} ({self.cure})" if self.cure else self.message


class UserError(FabricError):
    """The request itself is wrong; nothing was changed."""

    exit_code = 2


class ConfigError(UserError):
    """A file is wrong. ``problems`` lists every mistake found, one line each."""

    def __init__(self, message: str, problems: tuple[str, ...] = (), *, cure: str = "") -> None:
        super().__init__(message, cure=cure)
        self.problems = problems

    def __str__(self) -> str:
        return "\n".join((super().__str__(), *(f"  {line}" for line in self.problems)))


class NameUnknown(UserError):
    """A host, connection, protocol or lab that does not exist."""


class Conflict(UserError):
    """A name, port or resource that somebody else holds."""


class EnvironmentFault(FabricError):
    """The machine lacks something; ``fabric doctor`` explains it."""

    exit_code = 3


class NotRoot(EnvironmentFault):
    """The operation needs root."""


class ImageMissing(EnvironmentFault):
    """There is no guest image where one is expected."""


class ImageInvalid(EnvironmentFault):
    """The guest image does not match its manifest."""


class NoSpace(EnvironmentFault):
    """A filesystem is full."""


class ToolMissing(EnvironmentFault):
    """A program or library is not installed."""


class KernelLacks(EnvironmentFault):
    """The running kernel lacks a feature."""


class HypervisorDown(EnvironmentFault):
    """libvirt does not answer."""


class GuestFault(FabricError):
    """A guest misbehaved; the connection gets another one."""


class SpawnFailed(GuestFault):
    """The hypervisor could not create or start a guest."""


class ProvisionFailed(GuestFault):
    """The guest came up but the agent could not be pushed or started."""


class AgentLost(GuestFault):
    """The control channel to a running agent broke."""


class CapacityExceeded(FabricError):
    """A configured limit was reached. ``limit`` names it."""

    def __init__(self, message: str, *, limit: str, cure: str = "") -> None:
        super().__init__(message, cure=cure)
        self.limit = limit


class WireError(FabricError):
    """Bytes that cannot be accepted. Subclasses name the field, the expected and the actual."""


class Unreachable(FabricError):
    """An orchestrator does not answer on its API socket."""

    exit_code = 4
