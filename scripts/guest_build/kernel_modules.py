# SPDX-License-Identifier: Apache-2.0
"""Pick the kernel modules the guest needs, with what they depend on, in loading order.

Debian ships the drivers as modules, Ubuntu builds most of them in; packages come without the
index that depmod would write, so the dependencies are read from the modules themselves. It must
not run anything of the kernel package.
"""

import lzma
import re
from dataclasses import dataclass
from pathlib import Path

from guest_build.errors import BuildError, find_tool, run_tool

REQUIRED = ("virtio_pci", "virtio_net", "virtio_blk", "ext4", "button", "evdev")
# A balloon and a panic notifier do nothing without their device; the entropy device speeds a boot.
OPTIONAL = ("virtio_balloon", "virtio_rng", "pvpanic_mmio", "pvpanic_pci")
DEPENDS = re.compile(rb"\0depends=([^\0]*)\0")


@dataclass(frozen=True, slots=True, kw_only=True)
class Module:
    """One module: its file name in the guest and its uncompressed bytes."""

    file_name: str
    content: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """A kernel image and the modules the guest loads, in that order."""

    release: str
    image: Path
    modules: tuple[Module, ...]


def pick_kernel(root: Path) -> Kernel:
    """Find the one kernel under an unpacked package tree and choose its modules.

    Raises: BuildError when there is none, several, or one that lacks a needed driver.
    """
    images = sorted((root / "boot").glob("vmlinuz-*"))
    if len(images) != 1:
        raise BuildError(f"expected one kernel in the packages, found {len(images)}")
    release = images[0].name.removeprefix("vmlinuz-")
    folders = (root / "lib/modules" / release, root / "usr/lib/modules" / release)
    tree = next((folder for folder in folders if folder.is_dir()), None)
    if tree is None:
        raise BuildError(f"the packages hold no modules for kernel {release}")
    return Kernel(release=release, image=images[0], modules=_select(tree))


def _select(tree: Path) -> tuple[Module, ...]:
    built_in = {
        _module_name(line) for line in (tree / "modules.builtin").read_text("ascii").split()
    }
    available = {_module_name(path.name): path for path in tree.rglob("*.ko*")}
    chosen: dict[str, Module] = {}

    def choose(name: str) -> None:
        if name in chosen or name in built_in:
            return
        if name not in available:
            raise BuildError(f"kernel {tree.name} has no module {name}")
        content = _read_module(available[name])
        found = DEPENDS.search(content)
        for dependency in (found[1].decode("ascii") if found else "").split(","):
            if dependency:
                choose(dependency.replace("-", "_"))
        chosen[name] = Module(file_name=f"{name}.ko", content=content)

    for name in (*REQUIRED, *(name for name in OPTIONAL if name in available)):
        choose(name)
    return tuple(chosen.values())


def _module_name(path: str) -> str:
    return path.rsplit("/", 1)[-1].split(".ko", 1)[0].replace("-", "_")


def _read_module(path: Path) -> bytes:
    # The guest's insmod knows no compression.
    if path.suffix == ".ko":
        return path.read_bytes()
    if path.suffix == ".xz":
        return lzma.decompress(path.read_bytes())
    if path.suffix == ".zst":
        return run_tool([find_tool("zstd", package="zstd"), "-dc", "--", path])
    raise BuildError(f"{path.name} is compressed in a way that this builder does not know")
