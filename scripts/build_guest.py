#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Build the demo Service VM: a bootable qcow2 disk with a small HTTP service on it.

Works as an ordinary user on Debian and Ubuntu, from distribution packages that are fetched once
and kept; after that it needs no network. It must not need pycloud or its Python environment.
"""

import argparse
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from guest_build.disk import BootFiles, build_disk
from guest_build.errors import BuildError
from guest_build.initramfs import GuestOptions, Variant, build_initramfs
from guest_build.kernel_modules import pick_kernel
from guest_build.packages import (
    default_cache,
    forget_packages,
    free_space_mib,
    provide_packages,
    read_distribution,
    unpack,
)

GUEST_ROOT = Path(__file__).resolve().parent / "guest_root"
# The unpacked kernel package takes about 100 MiB on Debian and 250 MiB on Ubuntu.
SCRATCH_NEEDED_MIB = 600
SCRATCH_PREFIX = ".build-guest-"
ABANDONED_AFTER_S = 3600
# An overloaded host delays the timer interrupts of an emulated guest so much that the kernel's check
# of them can fail and stop the boot. Without its cryptographic self-tests it boots in 1.3 s of guest
# time instead of 1.5 s. Clearing freed pages (init_on_free) would cost 0.4 s and is left off.
KERNEL_OPTIONS = "console=ttyS0,115200 quiet no_timer_check cryptomgr.notests"
# Seconds until a panicked kernel restarts: soon, for a service; never and at once, for tests.
PANIC_TIMEOUT_S = {Variant.PANIC: 0, Variant.PANIC_LOOP: -1}
SERVICE_PANIC_TIMEOUT_S = 5


class Progress:
    """Prints one line per step with the time since the start."""

    def __init__(self) -> None:
        """Start the clock."""
        self._started_s = time.monotonic()

    def say(self, line: str) -> None:
        """Print a line."""
        print(f"[{time.monotonic() - self._started_s:5.1f} s] {line}", flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    chosen = _parse(arguments)
    # As on Ctrl-C: an exception, which lets the scratch folder go away.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        options = GuestOptions(
            name=chosen.name, port=chosen.port, variant=chosen.variant, late_s=chosen.late_s
        )
        if chosen.refresh:
            forget_packages(chosen.cache, read_distribution())
        build(options, cache=chosen.cache, output=chosen.output)
    except BuildError as exc:
        print(f"error: {exc}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; nothing was left behind", file=sys.stderr)
        return 130
    return 0


def build(options: GuestOptions, *, cache: Path, output: Path) -> None:
    """Build one image and put it in place of `output` in one step.

    Raises: BuildError; then `output` is as it was.
    """
    progress = Progress()
    with _scratch_folder(output.parent) as folder:
        scratch = Path(folder)
        progress.say("Looking for the packages")
        packages = provide_packages(cache, read_distribution())
        origin = "found in the cache" if packages.from_cache else "downloaded to"
        progress.say(f"Packages {origin} {cache}")
        tools = scratch / "tools"
        unpack(packages, tools)
        kernel = pick_kernel(tools)
        progress.say(f"Unpacked kernel {kernel.release}; {len(kernel.modules)} modules picked")
        initramfs = build_initramfs(
            tools, modules=kernel.modules, guest_root=GUEST_ROOT, options=options
        )
        progress.say(f"Packed the guest's files: {len(initramfs) >> 10} KiB")
        files = BootFiles(
            kernel=kernel.image.read_bytes(),
            initramfs=initramfs,
            command_line=_command_line(options.variant),
        )
        image = build_disk(files, tools=tools, scratch=scratch)
        _put_in_place(image, output)
    progress.say(f"Built {output} ({output.stat().st_size >> 20} MiB, variant {options.variant})")
    print(f"Service on port {options.port}; give it 128 MiB of memory or more, 256 MiB is ample.")


def _command_line(variant: Variant) -> str:
    panic_s = PANIC_TIMEOUT_S.get(variant, SERVICE_PANIC_TIMEOUT_S)
    return f"{KERNEL_OPTIONS} panic={panic_s}"


def _scratch_folder(parent: Path) -> tempfile.TemporaryDirectory[str]:
    try:
        parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(parent)
        if free_space_mib(parent) < SCRATCH_NEEDED_MIB:
            raise BuildError(f"{parent} has less than {SCRATCH_NEEDED_MIB} MiB of free space")
        # Beside the output, because only a rename within one file system is one step.
        return tempfile.TemporaryDirectory(prefix=SCRATCH_PREFIX, dir=parent)
    except OSError as exc:
        raise BuildError(f"cannot write to {parent}: {exc.strerror}") from exc


def _remove_abandoned(parent: Path) -> None:
    # A build that was killed could not clean up; one that runs is done within minutes.
    for folder in parent.glob(f"{SCRATCH_PREFIX}*"):
        if folder.is_dir() and time.time() - folder.stat().st_mtime > ABANDONED_AFTER_S:
            shutil.rmtree(folder, ignore_errors=True)


def _put_in_place(image: Path, output: Path) -> None:
    with image.open("rb+") as stream:
        os.fsync(stream.fileno())
    image.chmod(0o644)
    image.replace(output)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    defaults = GuestOptions()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--output", type=Path, required=True, help="the qcow2 file to make")
    parser.add_argument("--port", type=int, default=defaults.port, help="port of the service")
    parser.add_argument(
        "--variant",
        type=Variant,
        choices=list(Variant),
        default=defaults.variant,
        help="what the service does: start, start late, never start; or the kernel panics and"
        " stays so, or panics and restarts for ever",
    )
    parser.add_argument(
        "--late-s", type=int, default=defaults.late_s, help="seconds the late variant waits"
    )
    parser.add_argument("--name", default=defaults.name, help="host name of the guest")
    parser.add_argument(
        "--cache", type=Path, default=default_cache(), help="folder of fetched packages"
    )
    parser.add_argument(
        "--refresh", action="store_true", help="fetch the newest packages into the cache first"
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
