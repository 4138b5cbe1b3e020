# SPDX-License-Identifier: Apache-2.0
"""Run something in several threads that begin at the same moment."""

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

R = TypeVar("R")


def at_once(actions: Sequence[Callable[[], R]]) -> list[R | Exception]:
    """Return what each action returned or raised, in order."""
    barrier = threading.Barrier(len(actions))

    def run(action: Callable[[], R]) -> R | Exception:
        barrier.wait()
        try:
            return action()
        except Exception as exc:  # noqa: BLE001  # the test judges it
            return exc

    with ThreadPoolExecutor(len(actions)) as pool:
        return list(pool.map(run, actions))


def later(action: Callable[[], R]) -> "Future[R]":
    """Begin an action in another thread."""
    pool = ThreadPoolExecutor(1)
    future = pool.submit(action)
    pool.shutdown(wait=False)
    return future


def wait_until(condition: Callable[[], bool]) -> None:
    """Return when the condition holds; fail if that takes seconds."""
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)
