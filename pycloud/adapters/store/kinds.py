# SPDX-License-Identifier: Apache-2.0
"""The kinds of records that a store holds, and the fields by which each can be found.

This is the one list from which every store makes its tables, collections and indices.
A new kind, or a new indexed field, needs a migration in each store (see SCHEMA_VERSION).
"""

from collections.abc import Mapping
from dataclasses import Field, dataclass
from datetime import datetime
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from pycloud.adapters.store.documents import checked_text
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
from pycloud.errors import InvalidInput

SCHEMA_VERSION = 2
"""Raised with every change of a record's fields, of what an enumeration allows, of the kinds
or of their indices. What is stored under each version stands in testing/golden/stored_records.

2: Jobs, ServiceVMs, Apps, Uploads and Packages say on which Host they are; a Job that is
running and has a failure is being undone."""


class Record(Protocol):
    """What every stored dataclass has."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]  # Any: a field of any type

    @property
    def id(self) -> str:
        """The name of the record among those of its kind."""
        ...

    @property
    def created_at(self) -> datetime:
        """Its place in the order of its kind; never changes."""
        ...

    @property
    def generation(self) -> int:
        """How often it was written."""
        ...


D = TypeVar("D", bound=Record)


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind(Generic[D]):
    """One kind: its name (also that of its table), its class, its indexed fields.

    Indexed fields hold text or None, and are top-level fields of the class.
    """

    name: str
    record_class: type[D]
    indexed: tuple[str, ...] = ()

    def checked_filter(self, where: Mapping[str, str] | None) -> dict[str, str]:
        """Return the conditions in a fixed order. Raises InvalidInput for other fields."""
        if not where:
            return {}
        for name in where:
            if name not in self.indexed:
                allowed = ", ".join(self.indexed) or "no field"
                raise InvalidInput(
                    f"a {self.name} cannot be looked up by {name!r}, only by {allowed}",
                    pointer=name,
                )
        return {
            name: checked_text(where[name], pointer=name) for name in self.indexed if name in where
        }


SERVICES = Kind(name="service", record_class=Service)
SERVICE_VMS = Kind(name="service_vm", record_class=ServiceVM, indexed=("service_id",))
APPS = Kind(name="app", record_class=App, indexed=("service_id", "os_name"))
UPLOADS = Kind(name="upload", record_class=Upload, indexed=("created_by",))
PACKAGES = Kind(name="package", record_class=Package, indexed=("service_id",))
INSTANCES = Kind(
    name="instance",
    record_class=Instance,
    indexed=("state", "service_id", "device_id", "owner", "job_id"),
)
JOBS = Kind(name="job", record_class=Job, indexed=("state", "kind", "lease_owner"))
PORT_LEASES = Kind(name="port_lease", record_class=PortLease, indexed=("holder", "host_id"))
WARM_DOMAINS = Kind(
    name="warm_domain", record_class=WarmDomain, indexed=("service_id", "service_vm_id")
)
HOSTS = Kind(name="host", record_class=Host)
MESSAGES = Kind(name="message", record_class=Message, indexed=("device_id", "service_id"))
IDEMPOTENT_REPLIES = Kind(name="idempotent_reply", record_class=IdempotentReply)

KINDS: tuple[Kind[Any], ...] = (  # Any: each kind has its own class
    SERVICES,
    SERVICE_VMS,
    APPS,
    UPLOADS,
    PACKAGES,
    INSTANCES,
    JOBS,
    PORT_LEASES,
    WARM_DOMAINS,
    HOSTS,
    MESSAGES,
    IDEMPOTENT_REPLIES,
)
