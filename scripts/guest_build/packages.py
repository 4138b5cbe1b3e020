# SPDX-License-Identifier: Apache-2.0
"""Fetch the distribution's packages once and unpack them, as an ordinary user.

Packages are downloaded, never installed: the kernel, busybox and the boot loader's tools are used
from where they are unpacked. A folder that holds them makes later builds independent of the
network. It must not change the system's package state.
"""

import hashlib
import json
import os
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from guest_build.errors import BuildError, find_tool, run_tool

# Beside the kernel, everything that the image or its making needs.
SUPPORT_PACKAGES = ("busybox-static", "mtools", "syslinux", "syslinux-common")
KERNEL_META_PACKAGES = {"debian": "linux-image-cloud-amd64", "ubuntu": "linux-image-virtual"}
KERNEL_DEPENDENCY = re.compile(r"\blinux-image-(?:unsigned-)?(\d[A-Za-z0-9.+~-]*)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Distribution:
    """A distribution whose packages we know how to use."""

    family: str
    release: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Packages:
    """The package files of one build, all present and checked."""

    files: tuple[Path, ...]
    from_cache: bool


def read_distribution(os_release: Path = Path("/etc/os-release")) -> Distribution:
    """Tell which distribution this machine runs.

    Raises: BuildError where neither Debian's nor Ubuntu's packages can be expected.
    """
    try:
        lines = os_release.read_text(encoding="utf-8").splitlines()
    except OSError as exc:
        raise BuildError(f"cannot read {os_release}: {exc}") from exc
    pairs = (line.split("=", 1) for line in lines if "=" in line)
    fields = {key: value.strip("\"'") for key, value in pairs}
    for family in (fields.get("ID", ""), *fields.get("ID_LIKE", "").split()):
        if family in KERNEL_META_PACKAGES:
            release = fields.get("VERSION_ID") or fields.get("VERSION_CODENAME", "rolling")
            return Distribution(family=family, release=f"{fields.get('ID', family)}-{release}")
    raise BuildError("the demo guest is made from Debian or Ubuntu packages; build it there")


def provide_packages(cache: Path, distribution: Distribution) -> Packages:
    """Return the packages from the cache folder, or download them into it first.

    Raises: BuildError when they are neither cached nor to be had.
    """
    manifest = cache / f"packages-{distribution.release}.json"
    cached = _read_manifest(manifest)
    if cached is not None:
        return Packages(files=cached, from_cache=True)
    try:
        cache.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise BuildError(f"cannot make the cache folder {cache}: {exc.strerror}") from exc
    with tempfile.TemporaryDirectory(prefix=".download-", dir=cache) as scratch:
        _download(Path(scratch), _package_names(distribution))
        files = []
        for package in sorted(Path(scratch).glob("*.deb")):
            files.append(cache / package.name)
            package.replace(files[-1])
    _write_manifest(manifest, files)
    return Packages(files=tuple(files), from_cache=False)


def forget_packages(cache: Path, distribution: Distribution) -> None:
    """Make the next build download the newest packages. Idempotent."""
    (cache / f"packages-{distribution.release}.json").unlink(missing_ok=True)


def unpack(packages: Packages, target: Path) -> None:
    """Lay the packages' files under one folder.

    Raises: BuildError when dpkg-deb fails.
    """
    dpkg_deb = find_tool("dpkg-deb", package="dpkg")
    for package in packages.files:
        run_tool([dpkg_deb, "--extract", package, target])


def _package_names(distribution: Distribution) -> tuple[str, ...]:
    architecture = run_tool([find_tool("dpkg", package="dpkg"), "--print-architecture"])
    if architecture.strip() != b"amd64":
        raise BuildError("the demo guest is an amd64 machine; build it on amd64")
    meta_package = KERNEL_META_PACKAGES[distribution.family]
    apt_cache = find_tool("apt-cache", package="apt")
    try:
        record = run_tool([apt_cache, "show", "--no-all-versions", "--", meta_package]).decode()
    except BuildError as exc:
        raise BuildError(_update_hint(f"apt does not know {meta_package}")) from exc
    depends = [line for line in record.splitlines() if line.startswith("Depends:")]
    release = KERNEL_DEPENDENCY.search(" ".join(depends))
    if release is None:
        raise BuildError(f"{meta_package} depends on no kernel image that this builder knows")
    names = [f"linux-image-{release[1]}", *SUPPORT_PACKAGES]
    if distribution.family == "ubuntu":
        names.append(f"linux-modules-{release[1]}")
    return tuple(names)


def _download(folder: Path, names: tuple[str, ...]) -> None:
    apt_get = find_tool("apt-get", package="apt")
    # As root, apt would drop to a user who may not write to this folder.
    sandbox = ["-o", "APT::Sandbox::User=root"] if os.geteuid() == 0 else []
    try:
        run_tool([apt_get, "-q", *sandbox, "download", "--", *names], cwd=folder)
    except BuildError as exc:
        raise BuildError(_update_hint(f"the packages cannot be downloaded ({exc})")) from exc
    found = {path.name.split("_", 1)[0] for path in folder.glob("*.deb")}
    missing = sorted(set(names) - found)
    if missing:
        raise BuildError(_update_hint(f"apt-get downloaded no {', '.join(missing)}"))


def _update_hint(problem: str) -> str:
    return f"{problem}; run: sudo apt-get update, and see that the network is there the first time"


def _read_manifest(manifest: Path) -> tuple[Path, ...] | None:
    # Anything wrong with the cache means a fresh download, which repairs it.
    try:
        digests = json.loads(manifest.read_text(encoding="utf-8"))["sha256"]
        names = [str(name) for name in digests]
        if any("/" in name for name in names):
            return None
        files = tuple(manifest.parent / name for name in names)
        intact = all(_digest(path) == digests[path.name] for path in files)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return files if intact and files else None


def _write_manifest(manifest: Path, files: list[Path]) -> None:
    document = {"sha256": {path.name: _digest(path) for path in files}}
    part = manifest.with_name(f".{manifest.name}.{os.getpid()}")
    with part.open("w", encoding="utf-8") as stream:
        json.dump(document, stream, indent=2)
        stream.flush()
        os.fsync(stream.fileno())
    part.replace(manifest)


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def default_cache() -> Path:
    """Return the folder in which this user's packages are kept."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "pycloud" / "guest-packages"


def free_space_mib(folder: Path) -> int:
    """Return the free space of the file system a folder is on."""
    return shutil.disk_usage(folder).free // (1 << 20)
