# SPDX-License-Identifier: Apache-2.0
"""Start the processes of `testing.contract.contenders` and let them begin together."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).parents[2]
TIMEOUT_S = 120


@contextmanager
def contender(
    action: str, address: str, *, name: str, count: int = 0
) -> Iterator["subprocess.Popen[str]"]:
    """Start a process that has opened the store and waits; it is ended with the block."""
    process = subprocess.Popen(
        [sys.executable, "-m", "testing.contract.contenders", action, address, name, str(count)],
        cwd=CHECKOUT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()


def contend(action: str, address: str, *, contenders: int, count: int) -> list[Any]:
    """Let several processes act at once; return what each of them printed."""
    with ExitStack() as stack:
        processes = [
            stack.enter_context(contender(action, address, name=f"p{number}", count=count))
            for number in range(contenders)
        ]
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        return [json.loads(process.communicate(timeout=TIMEOUT_S)[0]) for process in processes]
