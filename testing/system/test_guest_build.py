# SPDX-License-Identifier: Apache-2.0
"""The demo guest builder's dealings with distributions: packages, their cache, kernel modules.

The distributions' own tools are replaced by small programs on PATH, so that Ubuntu's recipe is
tried on Debian and the other way round.
"""

import gzip
import importlib
import lzma
import subprocess
from pathlib import Path
from types import ModuleType

import pytest

from testing.guest import SCRIPTS

UBUNTU = 'NAME="Ubuntu"\nVERSION_ID="24.04"\nID=ubuntu\nID_LIKE=debian\n'
DEBIAN = 'NAME="Debian GNU/Linux"\nVERSION_ID="12"\nID=debian\n'
MINT = 'ID=linuxmint\nID_LIKE="ubuntu debian"\nVERSION_ID="22"\n'
FEDORA = "ID=fedora\nVERSION_ID=41\n"
# Ends the run if apt is called although the cache should do.
NO_APT = "echo apt was called >&2; exit 9"
FAKE_DOWNLOAD = """
for argument; do
    case $argument in -*|download|APT::*) ;; *) echo "$argument" >"${argument}_1_amd64.deb" ;; esac
done
"""


@pytest.fixture(autouse=True)
def builder_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is searched for programs first."""
    folder = tmp_path / "programs"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return folder


def part(name: str) -> ModuleType:
    """Import a module of the builder."""
    return importlib.import_module(f"guest_build.{name}")


def put_program(folder: Path, name: str, body: str) -> None:
    program = folder / name
    program.write_text(f"#!/bin/sh\n{body}\n")
    program.chmod(0o755)


def put_ubuntu(folder: Path) -> None:
    depends = "Depends: linux-image-6.8.0-31-generic"
    put_program(folder, "dpkg", "echo amd64")
    put_program(folder, "apt-cache", f'echo "Package: linux-image-virtual\n{depends}"')
    put_program(folder, "apt-get", FAKE_DOWNLOAD)


def put_module(folder: Path, name: str, depends: str = "") -> bytes:
    content = f"ELF\0license=GPL\0depends={depends}\0name=x\0".encode()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content)
    return content


def put_kernel(root: Path, built_in: str) -> Path:
    tree = root / "lib/modules/6.8.0-31-generic"
    tree.mkdir(parents=True)
    (root / "boot").mkdir()
    (root / "boot/vmlinuz-6.8.0-31-generic").write_bytes(b"kernel")
    (tree / "modules.builtin").write_text(built_in)
    return tree


@pytest.mark.parametrize(
    ("text", "family", "release"),
    [
        (UBUNTU, "ubuntu", "ubuntu-24.04"),
        (DEBIAN, "debian", "debian-12"),
        (MINT, "ubuntu", "linuxmint-22"),
    ],
)
def test_builder_knows_the_distribution(
    tmp_path: Path, text: str, family: str, release: str
) -> None:
    (tmp_path / "os-release").write_text(text)
    distribution = part("packages").read_distribution(tmp_path / "os-release")
    assert (distribution.family, distribution.release) == (family, release)


def test_builder_refuses_a_distribution_without_debian_packages(tmp_path: Path) -> None:
    (tmp_path / "os-release").write_text(FEDORA)
    with pytest.raises(part("errors").BuildError, match="Debian or Ubuntu"):
        part("packages").read_distribution(tmp_path / "os-release")


def test_builder_downloads_ubuntus_kernel_with_its_modules_package(
    programs: Path, tmp_path: Path
) -> None:
    put_ubuntu(programs)
    packages = part("packages")
    ubuntu = packages.Distribution(family="ubuntu", release="ubuntu-24.04")
    found = packages.provide_packages(tmp_path / "cache", ubuntu)
    assert not found.from_cache
    assert {path.name.removesuffix("_1_amd64.deb") for path in found.files} == {
        "busybox-static",
        "linux-image-6.8.0-31-generic",
        "linux-modules-6.8.0-31-generic",
        "mtools",
        "syslinux",
        "syslinux-common",
    }


def test_builder_needs_no_network_when_the_packages_are_cached(
    programs: Path, tmp_path: Path
) -> None:
    put_ubuntu(programs)
    packages = part("packages")
    ubuntu = packages.Distribution(family="ubuntu", release="ubuntu-24.04")
    first = packages.provide_packages(tmp_path / "cache", ubuntu)
    put_program(programs, "apt-get", NO_APT)
    put_program(programs, "apt-cache", NO_APT)
    second = packages.provide_packages(tmp_path / "cache", ubuntu)
    assert second.from_cache
    assert second.files == first.files


@pytest.mark.parametrize("damage", ["flip", "remove", "manifest", "forget"])
def test_builder_downloads_again_when_the_cache_is_damaged_or_to_be_refreshed(
    programs: Path, tmp_path: Path, damage: str
) -> None:
    put_ubuntu(programs)
    packages = part("packages")
    ubuntu = packages.Distribution(family="ubuntu", release="ubuntu-24.04")
    cache = tmp_path / "cache"
    first = packages.provide_packages(cache, ubuntu)
    if damage == "flip":
        first.files[0].write_bytes(b"other bytes")
    elif damage == "remove":
        first.files[0].unlink()
    elif damage == "manifest":
        (cache / "packages-ubuntu-24.04.json").write_text('{"sha256": ')
    else:
        packages.forget_packages(cache, ubuntu)
    second = packages.provide_packages(cache, ubuntu)
    assert not second.from_cache
    assert second.files == first.files


def test_builder_names_the_command_to_run_when_apt_has_no_lists(
    programs: Path, tmp_path: Path
) -> None:
    put_ubuntu(programs)
    put_program(programs, "apt-cache", "echo E: No packages found >&2; exit 100")
    packages = part("packages")
    ubuntu = packages.Distribution(family="ubuntu", release="ubuntu-24.04")
    with pytest.raises(part("errors").BuildError, match="sudo apt-get update"):
        packages.provide_packages(tmp_path / "cache", ubuntu)


def test_builder_refuses_another_architecture(programs: Path, tmp_path: Path) -> None:
    put_ubuntu(programs)
    put_program(programs, "dpkg", "echo arm64")
    packages = part("packages")
    ubuntu = packages.Distribution(family="ubuntu", release="ubuntu-24.04")
    with pytest.raises(part("errors").BuildError, match="amd64"):
        packages.provide_packages(tmp_path / "cache", ubuntu)


def test_modules_come_after_what_they_depend_on_and_without_what_is_built_in(
    tmp_path: Path,
) -> None:
    tree = put_kernel(tmp_path, "kernel/drivers/virtio/virtio_pci.ko\nkernel/fs/ext4/ext4.ko\n")
    put_module(tree / "net", "virtio_net.ko", "net_failover,virtio-pci")
    put_module(tree / "net", "net_failover.ko", "failover")
    put_module(tree / "net", "failover.ko")
    put_module(tree / "block", "virtio_blk.ko")
    put_module(tree / "acpi", "button.ko")
    put_module(tree / "input", "evdev.ko")
    put_module(tree / "char", "virtio-rng.ko")
    kernel = part("kernel_modules").pick_kernel(tmp_path)
    assert [module.file_name for module in kernel.modules] == [
        "failover.ko",
        "net_failover.ko",
        "virtio_net.ko",
        "virtio_blk.ko",
        "button.ko",
        "evdev.ko",
        "virtio_rng.ko",
    ]


def test_modules_are_unpacked_when_the_distribution_compresses_them(tmp_path: Path) -> None:
    built_in = "".join(f"kernel/{name}.ko\n" for name in ("virtio_pci", "virtio_net", "ext4"))
    tree = put_kernel(tmp_path, built_in + "kernel/evdev.ko\n")
    content = put_module(tree, "virtio_blk.ko")
    (tree / "button.ko.xz").write_bytes(lzma.compress(content))
    subprocess.run(["zstd", "-q", "--rm", str(tree / "virtio_blk.ko")], check=True, timeout=10)
    kernel = part("kernel_modules").pick_kernel(tmp_path)
    assert [(module.file_name, module.content) for module in kernel.modules] == [
        ("virtio_blk.ko", content),
        ("button.ko", content),
    ]


def test_kernel_without_a_needed_driver_is_refused(tmp_path: Path) -> None:
    put_kernel(tmp_path, "kernel/virtio_pci.ko\n")
    with pytest.raises(part("errors").BuildError, match="no module virtio_net"):
        part("kernel_modules").pick_kernel(tmp_path)


@pytest.mark.parametrize("folder", ["bin", "usr/bin"])
def test_busybox_is_found_where_each_release_has_it(tmp_path: Path, folder: str) -> None:
    initramfs = part("initramfs")
    applets = "\\n".join(sorted(initramfs.APPLETS_NEEDED))
    (tmp_path / folder).mkdir(parents=True)
    put_program(tmp_path / folder, "busybox", f"printf '{applets}\\n'")
    archive = gzip.decompress(
        initramfs.build_initramfs(
            tmp_path,
            modules=(),
            guest_root=SCRIPTS / "guest_root",
            options=initramfs.GuestOptions(),
        )
    )
    assert b"bin/busybox\0" in archive
    assert b"GUEST_PORT=8080\n" in archive


def test_busybox_without_a_needed_command_is_refused(tmp_path: Path) -> None:
    initramfs = part("initramfs")
    (tmp_path / "bin").mkdir()
    put_program(tmp_path / "bin", "busybox", "echo sh")
    with pytest.raises(part("errors").BuildError, match="lacks acpid, awk"):
        initramfs.build_initramfs(
            tmp_path,
            modules=(),
            guest_root=SCRIPTS / "guest_root",
            options=initramfs.GuestOptions(),
        )
