# SPDX-License-Identifier: Apache-2.0
"""A real avahi-daemon and its tools for tests, without installing them.

To install avahi-daemon is to start it, now and at every boot, and to take mDNS away from
whoever had it on the developer's machine. So the distribution's packages are unpacked into
the test cache and used from there; what the machine has already is used as it is.
`python -m testing.avahi` fills the cache beforehand.
"""

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from testing.cache import cache_dir

PACKAGES = ("avahi-daemon", "avahi-utils", "dbus-daemon")
PROGRAMS = {"avahi-daemon": "--version", "avahi-browse": "--version", "dbus-daemon": "--version"}
TIMEOUT_S = 300


class AvahiUnavailable(Exception):
    """The packages could not be fetched, or do not work here."""


def environment() -> dict[str, str]:
    """Return variables under which the programs are found; fetch them first if need be.

    Raises AvahiUnavailable.
    """
    folder = cache_dir() / f"avahi-{_digest()}"
    if not _fails(_variables(folder)):
        return _variables(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="avahi-", dir=folder.parent) as scratch:
        _unpack(Path(scratch))
        if problem := _fails(_variables(Path(scratch) / "root")):
            raise AvahiUnavailable(problem)
        # What another run made of the same packages may be there, or what no longer works.
        shutil.rmtree(folder, ignore_errors=True)
        (Path(scratch) / "root").rename(folder)
    return _variables(folder)


def _digest() -> str:
    """Name what the unpacked files depend on: the packages, and the system they are for."""
    system = Path("/etc/os-release").read_bytes() + os.uname().machine.encode()
    return hashlib.sha256(" ".join(PACKAGES).encode() + system).hexdigest()[:16]


def _variables(folder: Path) -> dict[str, str]:
    libraries = [str(path) for path in sorted(folder.glob("usr/lib/*-linux-*"))]
    programs = [f"{folder}/usr/sbin", f"{folder}/usr/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"]
    return {"PATH": ":".join(programs), "LD_LIBRARY_PATH": ":".join(libraries)}


def _fails(variables: Mapping[str, str]) -> str | None:
    """Return what is wrong with the programs, None if all can be run."""
    for program, option in PROGRAMS.items():
        found = shutil.which(program, path=variables["PATH"])
        if found is None:
            return f"{program} is missing"
        try:
            _run([found, option], variables=variables)
        except AvahiUnavailable as exc:
            return str(exc)
    return None


def _unpack(scratch: Path) -> None:
    (scratch / "root").mkdir()
    # As root, apt would drop to a user who may not write here.
    sandbox = ["-o", "APT::Sandbox::User=root"] if os.geteuid() == 0 else []
    install = ["install", "--simulate", "--no-install-recommends", "--", *PACKAGES]
    plan = _run(["apt-get", *install]).splitlines()
    missing = [line.split()[1] for line in plan if line.startswith("Inst ")]
    if missing:
        _run(["apt-get", "-q", *sandbox, "download", "--", *missing], folder=scratch)
    for package in scratch.glob("*.deb"):
        _run(["dpkg-deb", "--extract", str(package), str(scratch / "root")])


def _run(
    argv: Sequence[str],
    *,
    folder: Path | None = None,
    variables: Mapping[str, str] | None = None,
) -> str:
    try:
        done = subprocess.run(
            argv,
            cwd=folder,
            env={**os.environ, "LC_ALL": "C", **(variables or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=True,
            timeout=TIMEOUT_S,
        )
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise AvahiUnavailable(f"{argv[0]} cannot be run: {exc}") from exc
    except subprocess.CalledProcessError as exc:
        raise AvahiUnavailable(f"{' '.join(argv)} failed:\n{exc.stdout[-4000:]}") from exc
    return done.stdout


if __name__ == "__main__":
    print(environment()["PATH"].partition(":")[0])
