# SPDX-License-Identifier: Apache-2.0
"""A program that runs root's session daemon and buries the emulators that it orphans.

libvirt asks whether an emulator has ended by its process id, which a dead process keeps
until its parent has taken notice. Emulators are detached, so that parent is process 1,
and in a container process 1 may be anything: some notice late (2 s were measured),
some never, and then no guest can be stopped. Run by file name, without the package:
it stays in memory as long as a guest runs, and must not cost more than it has to.
"""

import ctypes
import os
import sys

_PR_SET_CHILD_SUBREAPER = 36


def main(command: list[str]) -> int:
    """Run a command in the background until it and all its orphans have ended."""
    if os.fork() != 0:
        # Whoever called is not to be the parent of something that runs for days.
        return 0
    os.setsid()
    libc = ctypes.CDLL(None, use_errno=True)
    # Where this fails, process 1 remains responsible, as it would have been anyway.
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    if os.fork() == 0:
        os.execv(command[0], command)  # noqa: S606  # there is no shell to be wanted
    while True:
        try:
            os.wait()
        except ChildProcessError:
            return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
