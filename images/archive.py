"""The package archive: which packages the image is made of, and fetching them.

Owns: every call of apt. May import: errors, images.steps. apt verifies signatures and digests. The
guest is Debian 12 whatever the build machine is: where the machine's own sources are another
distribution's, a source list for Debian 12 is given, and apt uses it and lists of its own.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from fabric.errors import EnvironmentFault
from images.steps import listed, run, say

RELEASE = "Debian 12 (bookworm)"


@dataclass(frozen=True)
class Package:
    """One .deb: where apt would get it and what it must hash to."""

    file: str
    digest: str
    name: str


@dataclass(frozen=True)
class PackageArchive:
    """What apt reaches with the machine's sources, or with the source list ``sources``."""

    sources: Path | None = None
    lists: Path = field(default=Path("/var/lib/apt/lists"))
    """Where apt keeps what it knows of ``sources``."""

    def _options(self) -> list[str]:
        if self.sources is None:
            return []
        settings = {
            "Dir::Etc::SourceList": self.sources.resolve(),
            "Dir::Etc::SourceParts": "/dev/null",
            "Dir::State::Lists": self.lists.resolve(),
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
        say("refreshing apt's package lists")
        if self.sources is not None:
            self.lists.mkdir(parents=True, exist_ok=True)
        run(["apt-get", *self._options(), "update", "-qq"])
        try:
            return self.resolve()
        except EnvironmentFault as exc:
            cure = f"the sources must offer {RELEASE}; elsewhere give --sources FILE"
            raise EnvironmentFault(exc.message, cure=cure) from exc

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
