# SPDX-License-Identifier: Apache-2.0
"""A store that tells a test about every write, after it was made."""

from collections.abc import Callable
from typing import Any

from pycloud.adapters.store.memory import MemoryEventLog, MemoryRepository, MemoryStore

WRITES = ("add", "replace", "remove", "append")
READS = ("get", "find", "count", "revision", "after", "latest")


class WatchedStore(MemoryStore):
    """MemoryStore that calls `on_write` after each write and counts all operations."""

    def __init__(self) -> None:
        super().__init__()
        self.on_write: Callable[[], None] | None = None
        self.operations: list[str] = []
        self._nested = False
        for name, repository in list(vars(self).items()):
            if not isinstance(repository, MemoryRepository | MemoryEventLog):
                continue
            for operation in (*WRITES, *READS):
                if hasattr(repository, operation):
                    self._watch(f"{name}.{operation}", repository, operation)

    def _watch(self, label: str, repository: Any, operation: str) -> None:
        inner = getattr(repository, operation)

        def watched(*arguments: Any, **options: Any) -> Any:
            result = inner(*arguments, **options)
            if not self._nested:
                self.operations.append(label)
                if operation in WRITES:
                    self._tell()
            return result

        setattr(repository, operation, watched)

    def _tell(self) -> None:
        if self.on_write is None:
            return
        self._nested = True
        try:
            self.on_write()
        finally:
            self._nested = False
