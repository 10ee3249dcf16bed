"""The libvirt domain XML of one guest.

Owns: rendering ``templates/domain.xml.j2``, and reading our own mark back out of a domain. The only
importer of jinja2. May import: errors, host.identity. Pure but for reading the template.

The mark: every domain carries an element of the namespace ``urn:fabric:owner:1`` with lab, host,
index and connection. What has no such element is not ours, whatever its name is.
"""

from __future__ import annotations

import functools
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from fabric.errors import EnvironmentFault, UserError
from fabric.host.identity import CHANNEL_NAME, GuestIdentity

if TYPE_CHECKING:
    import jinja2

OWNER_NAMESPACE = "urn:fabric:owner:1"

VIRTIO_MMIO_DEVICES = 8
"""QEMU's microvm has eight virtio-mmio slots; the template uses three."""

DomainType = Literal["kvm", "qemu", "test"]
Machine = Literal["microvm", "q35"]

_PACKAGE = Path(__file__).resolve().parents[2]
_TEMPLATE_DIRECTORIES = (_PACKAGE.parent / "templates", _PACKAGE / "_templates")
"""Beside the package in a working copy; inside it when installed from a wheel."""


CLONE_TRANSLATION_MIB = 64
"""Translated code a clone may keep, MiB: QEMU's own limit is a share of the host's memory. An agent
that forwards settles at a quarter of this."""


@dataclass(frozen=True)
class MemoryFile:
    """A guest's memory as a file, for templates."""

    path: Path
    shared: bool
    """True: what the guest writes is in the file, a template in the making. False: the guest is a
    copy on write of the file and waits for its devices' state
    (:mod:`fabric.host.vmm.migration`)."""


@dataclass(frozen=True)
class DomainSpec:
    """Everything the template needs to know."""

    identity: GuestIdentity
    connection: int
    created_us: int
    """Unix microseconds; in the mark, so that any process can tell a domain's age."""
    domain_type: DomainType
    machine: Machine
    memory_mib: int
    mtu: int
    """MTU of the guest's interface, bytes."""
    kernel: Path
    initrd: Path
    rootfs: Path
    root_format: str = "raw"
    kernel_arguments: tuple[str, ...] = ()
    """The image's and accelerator's arguments; the guest's own are added by :func:`render`."""
    memory_file: MemoryFile | None = None
    """None: memory of its own, and a cold boot."""

    @property
    def clone(self) -> bool:
        """Whether it is a copy of a template."""
        return self.memory_file is not None and not self.memory_file.shared


@dataclass(frozen=True)
class OwnerMark:
    """What the mark of one of our domains says."""

    lab: str
    host: str
    index: int
    connection: int
    created_us: int


def render(spec: DomainSpec) -> str:
    """The domain XML of ``spec``. Raises EnvironmentFault when the template is not installed."""
    own = spec.identity.kernel_arguments(spec.mtu)
    return _template().render(
        spec=spec,
        guest=spec.identity,
        connection=f"{spec.connection:016x}",
        owner_namespace=OWNER_NAMESPACE,
        channel_name=CHANNEL_NAME,
        translation_mib=CLONE_TRANSLATION_MIB,
        command_line=" ".join((*spec.kernel_arguments, *own)),
    )


def mark_element(mark: OwnerMark) -> str:
    """The mark as an XML element, for :meth:`Hypervisor.assign`. Names are validated elsewhere."""
    return (
        f"<guest lab='{mark.lab}' host='{mark.host}' index='{mark.index}' "
        f"connection='{mark.connection:016x}' created-us='{mark.created_us}'/>"
    )


def read_mark(xml: str) -> OwnerMark | None:
    """Our mark in a domain's XML; None when the domain is not ours.

    A damaged mark counts as none: we never touch what we cannot prove to be ours.
    """
    try:
        found = next(ET.fromstring(xml).iter(f"{{{OWNER_NAMESPACE}}}guest"), None)
    except ET.ParseError:
        return None
    return None if found is None else _mark(found)


def read_mark_element(xml: str) -> OwnerMark | None:
    """Like :func:`read_mark`, for the element alone as libvirt gives it when asked for our
    namespace: it takes the namespace off, having been told it."""
    try:
        return _mark(ET.fromstring(xml))
    except ET.ParseError:
        return None


def _mark(element: ET.Element) -> OwnerMark | None:
    try:
        return OwnerMark(
            lab=element.attrib["lab"],
            host=element.attrib["host"],
            index=int(element.attrib["index"]),
            connection=int(element.attrib["connection"], 16),
            created_us=int(element.attrib["created-us"]),
        )
    except (KeyError, ValueError):
        return None


def domain_name_of(xml: str) -> str:
    """The name in a domain XML. Raises UserError when there is none."""
    name = ET.fromstring(xml).findtext("name")
    if not name:
        raise UserError("domain XML without a name")
    return name


def template_text() -> str:
    """The template itself: what changes in it may change a guest's devices, and then saved states
    do not fit any more. Raises EnvironmentFault."""
    return Path(str(_template().filename)).read_text()


@functools.cache
def _template() -> jinja2.Template:
    import jinja2  # 40 ms: not paid by commands that render nothing

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATE_DIRECTORIES),
        undefined=jinja2.StrictUndefined,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    try:
        return environment.get_template("domain.xml.j2")
    except jinja2.TemplateNotFound as exc:
        places = " or ".join(str(place) for place in _TEMPLATE_DIRECTORIES)
        raise EnvironmentFault(
            f"domain.xml.j2 is neither in {places}", cure="install the package again"
        ) from exc
