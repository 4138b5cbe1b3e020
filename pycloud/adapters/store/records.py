# SPDX-License-Identifier: Apache-2.0
"""What every store is made of: one repository per kind, and an event log.

The databases differ in how a repository reads and writes; which repositories there
are, and how errors name records, is the same for all and stands here.
"""

import secrets
from typing import Protocol

from pycloud.adapters.store import kinds
from pycloud.adapters.store.kinds import D, Kind
from pycloud.core.model.catalog import App, Package, Service, ServiceVM, Upload
from pycloud.core.model.fleet import Host
from pycloud.core.model.runtime import (
    IdempotentReply,
    Instance,
    Job,
    Message,
    PortLease,
    WarmDomain,
)
from pycloud.core.ports import EventLog, Repository
from pycloud.errors import CloudletError, NotFound, StaleRecord


class RepositoryMaker(Protocol):
    """Makes the repository of one kind in a database."""

    def __call__(self, kind: Kind[D], /) -> Repository[D]:
        """Return the repository."""
        ...


class Records:
    """The repositories of a store, as `pycloud.core.ports.Store` names them."""

    def __init__(self, make: RepositoryMaker, events: EventLog) -> None:
        self.services: Repository[Service] = make(kinds.SERVICES)
        self.service_vms: Repository[ServiceVM] = make(kinds.SERVICE_VMS)
        self.apps: Repository[App] = make(kinds.APPS)
        self.uploads: Repository[Upload] = make(kinds.UPLOADS)
        self.packages: Repository[Package] = make(kinds.PACKAGES)
        self.instances: Repository[Instance] = make(kinds.INSTANCES)
        self.jobs: Repository[Job] = make(kinds.JOBS)
        self.port_leases: Repository[PortLease] = make(kinds.PORT_LEASES)
        self.warm_domains: Repository[WarmDomain] = make(kinds.WARM_DOMAINS)
        self.hosts: Repository[Host] = make(kinds.HOSTS)
        self.messages: Repository[Message] = make(kinds.MESSAGES)
        self.idempotent_replies: Repository[IdempotentReply] = make(kinds.IDEMPOTENT_REPLIES)
        self.events: EventLog = events


def lost_race(kind: str, record_id: str, *, found: object) -> CloudletError:
    """Return why a write on condition of a generation did nothing.

    `found` is what was read under the id afterwards, None if there is nothing.
    """
    return NotFound(kind, record_id) if found is None else StaleRecord(kind, record_id)


def first_revision() -> int:
    """Draw the number from which the writes to a new store are counted.

    Were it always the same, clients could take what they cached from a store that is
    gone for the content of this one. Exact as a double, like all its successors.
    """
    return secrets.randbelow(2**48)
