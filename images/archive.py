"""The package archive: which packages the image is made of, and fetching them.

Owns: every call of apt and mmdebstrap. May import: errors, images.steps. They verify signatures and
digests. The guest is Debian 12 whatever the build machine is, so that all machines run the same
guest: on Debian 12 its own apt is asked, elsewhere apt with a configuration and lists beside the
image, which mmdebstrap makes. It knows where Debian is to be had; a source list can say otherwise.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from fabric.errors import EnvironmentFault
from images.steps import listed, run, say

SUITE = "bookworm"
RELEASE = f"Debian 12 ({SUITE})"
OS_RELEASE = Path("/etc/os-release")
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
"""Whose signatures count; of the package debian-archive-keyring, which Ubuntu has too."""
_CONFIGURATION = "etc/apt/sources.list"


@dataclass(frozen=True)
class Package:
    """One .deb: where apt would get it and what it must hash to."""

    file: str
    digest: str
    name: str


@dataclass(frozen=True)
class PackageArchive:
    """What apt reaches: with the machine's own configuration, or with one under ``directory``."""

    directory: Path | None = None
    """A root that holds nothing but what apt needs; None: the machine's own apt is right."""
    sources: Path | None = None
    """A source list for ``directory``; None: mmdebstrap's own knowledge."""

    @classmethod
    def for_machine(cls, directory: Path, sources: Path | None, os_release: str) -> PackageArchive:
        """The machine's own apt where it is of the guest's release, unless a source list is given.

        ``os_release`` is the text of :data:`OS_RELEASE`.
        """
        own = re.search(rf'^VERSION_CODENAME="?{SUITE}"?$', os_release, re.MULTILINE)
        return cls() if own and sources is None else cls(directory, sources)

    def _options(self) -> list[str]:
        if self.directory is None:
            return []
        root = self.directory.resolve()
        settings = {
            "Dir::Etc::SourceList": root / _CONFIGURATION,
            "Dir::Etc::SourceParts": root / f"{_CONFIGURATION}.d",
            "Dir::State::Lists": root / "var/lib/apt/lists",
            "Dir::State::status": "/dev/null",
            "Dir::Cache::pkgcache": "",
            "Dir::Cache::srcpkgcache": "",
        }
        return [word for key, value in settings.items() for word in ("-o", f"{key}={value}")]

    def resolve(self) -> list[Package]:
        """packages.txt as apt resolves it now. Raises EnvironmentFault."""
        names = []
        for word in listed("packages.txt"):
            if word.startswith("@"):
                shown = run(["apt-cache", *self._options(), "depends", word[1:]])
                found = re.search(r"Depends: (\S+)", shown)
                if found is None:
                    raise self._unknown(word[1:])
                names.append(found[1])
            else:
                names.append(word)
        packages = []
        uris = run(["apt-get", *self._options(), "--print-uris", "-qq", "download", *names])
        for line in uris.splitlines():
            _uri, file, _size, digest = line.split(maxsplit=3)
            packages.append(Package(file, digest.strip(), file.split("_")[0]))
        if missing := sorted(set(names) - {p.name for p in packages}):
            raise self._unknown(", ".join(missing))
        return sorted(packages, key=lambda p: p.file)

    def refresh(self) -> list[Package]:
        """Ask the archive anew. Raises EnvironmentFault."""
        say(f"asking the package archive for {RELEASE}")
        if self.directory is None:
            run(["apt-get", "update", "-qq"])
        else:
            self._learn(self.directory)
        try:
            return self.resolve()
        except EnvironmentFault as exc:
            cure = f"the sources must offer {RELEASE}; give others with --sources FILE"
            raise EnvironmentFault(exc.message, cure=cure) from exc

    def _learn(self, directory: Path) -> None:
        """An empty root with apt's configuration and fresh lists, and no package in it."""
        directory.parent.mkdir(parents=True, exist_ok=True)
        nothing = ("--mode=root", "--variant=custom", "--format=directory")
        # The keyring is named, because mmdebstrap's guess asks gpg, which need not be there.
        options = (f"--keyring={KEYRING}", "--skip=cleanup/apt/lists")
        sources = [str(self.sources.resolve())] if self.sources else []
        # Made elsewhere first: lists that came in half would be taken for whole ones.
        with tempfile.TemporaryDirectory(prefix=".image-", dir=directory.parent) as work:
            made = Path(work) / directory.name
            run(["mmdebstrap", *nothing, *options, SUITE, str(made), *sources])
            shutil.rmtree(directory, ignore_errors=True)
            made.rename(directory)

    def obtain(self, packages: list[Package], work: Path) -> list[Package]:
        """Download and unpack; returns what was really obtained. Raises EnvironmentFault."""
        try:
            try:
                self._download(packages, work)
            except EnvironmentFault:
                # Lists older than the archive name files that are gone: the usual state of a
                # machine made from an image some weeks ago.
                packages = self.refresh()
                self._download(packages, work)
        except EnvironmentFault as exc:
            cure = "see that `apt-get update` works on this machine, then try again"
            raise EnvironmentFault(
                f"the package archive does not deliver: {exc}", cure=cure
            ) from exc
        for package in packages:
            target = work / ("kernel" if package.name.startswith("linux-image") else "root")
            run(["dpkg-deb", "-x", str(work / package.file), str(target)])
        return packages

    def _download(self, packages: list[Package], into: Path) -> None:
        say(f"downloading {len(packages)} packages")
        names = [p.name for p in packages]
        unsandboxed = ["-o", "APT::Sandbox::User=root"]
        run(["apt-get", "-q", *self._options(), *unsandboxed, "download", *names], cwd=into)

    def _unknown(self, name: str) -> EnvironmentFault:
        return EnvironmentFault(f"apt knows no {name}", cure="run apt-get update")
