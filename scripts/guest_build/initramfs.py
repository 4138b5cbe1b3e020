# SPDX-License-Identifier: Apache-2.0
"""Pack the guest's root file system: busybox, drivers, the files of guest_root and its settings.

The archive is the kernel's "newc" cpio format (Documentation/driver-api/early-userspace/
buffer-format.rst), written here because device nodes and root-owned files then need no
privileges. Equal inputs give equal bytes. It must not look at the machine it runs on.
"""

import gzip
import re
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from guest_build.errors import BuildError, run_tool
from guest_build.kernel_modules import Module

FOLDERS = ("bin", "data", "dev", "etc", "lib", "lib/modules", "proc", "root", "run", "srv", "sys")
# What the scripts in guest_root call.
APPLETS_NEEDED = frozenset(
    {
        "acpid",
        "awk",
        "cat",
        "date",
        "dd",
        "head",
        "hostname",
        "init",
        "insmod",
        "ip",
        "md5sum",
        "mkdir",
        "mount",
        "mv",
        "nc",
        "nproc",
        "od",
        "poweroff",
        "rm",
        "rmdir",
        "seq",
        "sh",
        "sha256sum",
        "sleep",
        "stat",
        "sync",
        "timeout",
        "tr",
        "udhcpc",
        "uname",
        "usleep",
        "wc",
    }
)
GUEST_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
PORT_MAX = 65535
LATE_MAX_S = 3600


class Variant(StrEnum):
    """What the guest's service does after boot."""

    NORMAL = "normal"
    LATE = "late"
    NEVER = "never"
    PANIC = "panic"
    PANIC_LOOP = "panic-loop"


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestOptions:
    """How one guest differs from another."""

    name: str = "pycloud-demo"
    port: int = 8080
    variant: Variant = Variant.NORMAL
    late_s: int = 8

    def __post_init__(self) -> None:
        """Refuse values that the guest could not use. Raises: BuildError."""
        if not GUEST_NAME.fullmatch(self.name):
            raise BuildError(f"name {self.name!r} is not a host name of a-z, 0-9 and -")
        if not 1 <= self.port <= PORT_MAX:
            raise BuildError(f"port {self.port} is not between 1 and {PORT_MAX}")
        if not 0 <= self.late_s <= LATE_MAX_S:
            raise BuildError(f"late-s {self.late_s} is not between 0 and {LATE_MAX_S}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One file, folder, link or device node of the archive."""

    path: str
    mode: int
    content: bytes = b""
    device: tuple[int, int] = (0, 0)


def build_initramfs(
    tools: Path, *, modules: Iterable[Module], guest_root: Path, options: GuestOptions
) -> bytes:
    """Return the compressed archive; `tools` is the unpacked package tree.

    Raises: BuildError when the busybox in it lacks a command that the guest uses.
    """
    busybox = _find_busybox(tools)
    entries = [
        Entry(path="dev/console", mode=stat.S_IFCHR | 0o600, device=(5, 1)),
        Entry(path="init", mode=stat.S_IFLNK | 0o777, content=b"bin/busybox"),
        Entry(path="bin/busybox", mode=stat.S_IFREG | 0o755, content=busybox.read_bytes()),
        _text("etc/guest.conf", _settings(options)),
        *_applet_links(busybox),
        *_module_files(modules),
        *_tree(guest_root),
    ]
    folders = {*FOLDERS, *(parent for entry in entries for parent in _parents(entry.path))}
    top = [Entry(path=path, mode=stat.S_IFDIR | 0o755) for path in sorted(folders)]
    # Level 6 is within 2 % of the best, and unpacking it costs the guest the same.
    return gzip.compress(_newc([*top, *entries]), 6, mtime=0)


def _find_busybox(tools: Path) -> Path:
    # Debian 12 has it in /bin, later releases and Ubuntu in /usr/bin.
    for folder in ("bin", "usr/bin"):
        if (tools / folder / "busybox").is_file():
            return tools / folder / "busybox"
    raise BuildError("the package busybox-static holds no busybox")


def _settings(options: GuestOptions) -> str:
    # All values match patterns without shell metacharacters.
    return (
        f"GUEST_NAME={options.name}\n"
        f"GUEST_PORT={options.port}\n"
        f"GUEST_VARIANT={options.variant}\n"
        f"GUEST_LATE_S={options.late_s}\n"
    )


def _applet_links(busybox: Path) -> list[Entry]:
    applets = run_tool([busybox, "--list"]).decode("ascii").split()
    missing = sorted(APPLETS_NEEDED.difference(applets))
    if missing:
        raise BuildError(f"busybox-static of this distribution lacks {', '.join(missing)}")
    return [
        Entry(path=f"bin/{applet}", mode=stat.S_IFLNK | 0o777, content=b"busybox")
        for applet in applets
        if applet != "busybox"
    ]


def _module_files(modules: Iterable[Module]) -> list[Entry]:
    listed = list(modules)
    order = "".join(f"{module.file_name}\n" for module in listed)
    return [
        _text("lib/modules/load-order", order),
        *(
            Entry(
                path=f"lib/modules/{module.file_name}",
                mode=stat.S_IFREG | 0o644,
                content=module.content,
            )
            for module in listed
        ),
    ]


def _tree(root: Path) -> list[Entry]:
    return [
        Entry(
            path=path.relative_to(root).as_posix(),
            mode=stat.S_IFREG | (0o755 if path.stat().st_mode & stat.S_IXUSR else 0o644),
            content=path.read_bytes(),
        )
        for path in sorted(root.rglob("*"))
        if path.is_file()
    ]


def _text(path: str, text: str) -> Entry:
    return Entry(path=path, mode=stat.S_IFREG | 0o644, content=text.encode("ascii"))


def _parents(path: str) -> list[str]:
    return [parent.as_posix() for parent in Path(path).parents if parent != Path()]


def _newc(entries: Iterable[Entry]) -> bytes:
    archive = bytearray()
    for inode, entry in enumerate([*entries, Entry(path="TRAILER!!!", mode=0)], start=1):
        name = entry.path.encode("ascii") + b"\0"
        fields = (
            inode,
            entry.mode,
            0,  # owner
            0,  # group
            1,  # links
            0,  # modification time
            len(entry.content),
            0,  # device of the file system, major and minor
            0,
            *entry.device,
            len(name),
            0,  # checksum, unused in this format
        )
        archive += b"070701" + b"".join(b"%08X" % field for field in fields) + name
        archive += bytes(-len(archive) % 4)
        archive += entry.content
        archive += bytes(-len(archive) % 4)
    return bytes(archive)
