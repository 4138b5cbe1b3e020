# SPDX-License-Identifier: Apache-2.0
"""Ports for records: a repository for each kind, and the events in one order."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from pycloud.core.model.catalog import (
    App,
    Package,
    Service,
    ServiceVM,
    Upload,
)
from pycloud.core.model.fleet import (
    Host,
)
from pycloud.core.model.runtime import (
    Event,
    IdempotentReply,
    Instance,
    Job,
    Message,
    PortLease,
    WarmDomain,
)

R = TypeVar("R")


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice(Generic[R]):
    """One page of records and the cursor of the next page, None at the end."""

    items: tuple[R, ...]
    next_cursor: str | None


class Repository(Protocol[R]):
    """Records of one kind, each with an `id` and a `generation`.

    Every write is durable before the call returns. Records are ordered by
    (`created_at`, `id`). Raises StoreUnavailable when the store cannot be reached.
    """

    def add(self, record: R) -> R:
        """Store a new record, one generation higher than it says, and return it.

        New records say 0. Where ids are used again, who draws another number keeps the
        generations of the earlier record from coming back. Raises DuplicateRecord if the id
        is taken: adding is how ids are claimed.
        """
        ...

    def get(self, record_id: str) -> R:
        """Return the record. Raises NotFound."""
        ...

    def replace(self, record: R) -> R:
        """Write if the stored generation equals the record's; return it one higher.

        Raises StaleRecord if somebody was faster, NotFound if it is gone.
        """
        ...

    def remove(self, record_id: str, *, generation: int | None = None) -> None:
        """Remove the record; nothing happens if it is gone already.

        With `generation`: raises StaleRecord if the stored one differs, NotFound
        if the record is gone (so that exactly one of several callers succeeds).
        """
        ...

    def find(
        self,
        where: Mapping[str, str] | None = None,
        *,
        limit: int = 500,
        cursor: str | None = None,
    ) -> Slice[R]:
        """Return records whose indexed fields equal `where`, at most `limit` of them.

        Raises InvalidInput for a field that is not indexed or a broken cursor.
        """
        ...

    def count(self, where: Mapping[str, str] | None = None) -> int:
        """Count the records whose indexed fields equal `where`."""
        ...

    def revision(self) -> int:
        """Return a number that changes with every write to this kind, by any server."""
        ...


def every(repository: Repository[R], where: Mapping[str, str] | None = None) -> Iterator[R]:
    """Iterate over all records whose indexed fields equal `where`, page by page.

    Records that are added or changed meanwhile may be missed or come as they were.
    """
    cursor: str | None = None
    while True:
        page = repository.find(where, cursor=cursor)
        yield from page.items
        cursor = page.next_cursor
        if cursor is None:
            return


class EventLog(Protocol):
    """The events of this cloudlet in one durable order; old ones are dropped."""

    def append(self, event: Event) -> Event:
        """Store the event and return it with the next sequence number."""
        ...

    def after(self, sequence: int, *, limit: int, kinds: Sequence[str] = ()) -> tuple[Event, ...]:
        """Return events with a higher sequence number, oldest first."""
        ...

    def latest(self) -> int:
        """Return the highest sequence number given so far, 0 if none."""
        ...

    def trim(self, *, keep: int) -> None:
        """Drop all but the newest `keep` events."""
        ...


class Store(Protocol):
    """All records of a cloudlet. Several servers may share one store."""

    services: Repository[Service]
    service_vms: Repository[ServiceVM]
    apps: Repository[App]
    uploads: Repository[Upload]
    packages: Repository[Package]
    instances: Repository[Instance]
    jobs: Repository[Job]
    port_leases: Repository[PortLease]
    warm_domains: Repository[WarmDomain]
    hosts: Repository[Host]
    messages: Repository[Message]
    idempotent_replies: Repository[IdempotentReply]
    events: EventLog

    def ping(self) -> None:
        """Return if the store answers. Raises StoreUnavailable."""
        ...

    def close(self) -> None:
        """Release connections; idempotent."""
        ...
