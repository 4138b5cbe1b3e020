# SPDX-License-Identifier: Apache-2.0
"""The tree of errors that pycloud raises on purpose.

Every class carries a stable `code` that clients and scripts may rely on, a
message that a person can act on, and its data as attributes. HTTP statuses
and exit codes are chosen elsewhere (`web/errors.py`, `cli/`), never here.
"""

from typing import ClassVar


class CloudletError(Exception):
    """Stand at the root of every error that pycloud raises on purpose."""

    code: ClassVar[str] = "internal"

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


# -- what the caller sent ------------------------------------------------------


class InvalidInput(CloudletError):
    """Say that a value from outside is not acceptable.

    `pointer` is an RFC 6901 JSON pointer, or the bare name of the parameter.
    """

    code = "invalid_input"

    def __init__(self, message: str, *, pointer: str = "") -> None:
        super().__init__(message)
        self.pointer = pointer


class InvalidSettings(CloudletError):
    """Say which setting is wrong, what it holds and what is allowed."""

    code = "invalid_settings"

    def __init__(self, key: str, value: str, *, allowed: str) -> None:
        super().__init__(f"setting {key} = {value!r} is not acceptable: {allowed}")
        self.key = key
        self.value = value
        self.allowed = allowed


class NotFound(CloudletError):
    """Say that nothing of this kind has this id."""

    code = "not_found"

    def __init__(self, kind: str, identifier: str) -> None:
        super().__init__(f"there is no {kind} {identifier!r}")
        self.kind = kind
        self.identifier = identifier


class Unauthenticated(CloudletError):
    """Say that the caller has to prove who it is."""

    code = "unauthenticated"


class PermissionDenied(CloudletError):
    """Say that the caller is known but may not do this."""

    code = "permission_denied"


class TooManyRequests(CloudletError):
    """Ask the caller to come back after `retry_after_s` seconds."""

    code = "too_many_requests"

    def __init__(self, message: str, *, retry_after_s: int) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


# -- what the state of the cloudlet forbids -------------------------------------


class Conflict(CloudletError):
    """Say that the present state forbids what was asked."""

    code = "conflict"


class DuplicateRecord(Conflict):
    """Say that a record with this id exists already."""

    code = "already_exists"

    def __init__(self, kind: str, identifier: str) -> None:
        super().__init__(f"a {kind} {identifier!r} exists already; choose another id")
        self.kind = kind
        self.identifier = identifier


class StaleRecord(Conflict):
    """Say that somebody else changed the record since it was read."""

    code = "stale_record"

    def __init__(self, kind: str, identifier: str) -> None:
        super().__init__(f"the {kind} {identifier!r} was changed meanwhile; read it again")
        self.kind = kind
        self.identifier = identifier


class IllegalTransition(Conflict):
    """Say that a record in state `state` cannot go to `wanted`."""

    code = "illegal_transition"

    def __init__(self, kind: str, identifier: str, *, state: str, wanted: str) -> None:
        super().__init__(f"the {kind} {identifier!r} is {state} and cannot become {wanted}")
        self.kind = kind
        self.identifier = identifier
        self.state = state
        self.wanted = wanted


class OnAnotherHost(Conflict):
    """Refuse what only a server of another Host of this cloudlet can do."""

    code = "on_another_host"

    def __init__(self, kind: str, identifier: str, *, host_id: str) -> None:
        super().__init__(
            f"the {kind} {identifier!r} is on host {host_id!r} of this cloudlet; ask its server"
        )
        self.kind = kind
        self.identifier = identifier
        self.host_id = host_id


class ServiceInUse(Conflict):
    """Refuse to change a Service of which Instances run."""

    code = "service_in_use"

    def __init__(self, service_id: str, *, instances: int) -> None:
        super().__init__(
            f"{instances} instance(s) of service {service_id!r} are running; stop them first"
            " or ask for them to be stopped"
        )
        self.service_id = service_id
        self.instances = instances


class CapacityExceeded(CloudletError):
    """Refuse a start for which the Host has no room; nothing was changed."""

    code = "capacity_exceeded"


class NoFreePort(CapacityExceeded):
    """Refuse a start because every port of the configured range is leased."""

    code = "no_free_port"


class PortInUse(CloudletError):
    """Say that a leased port is held by a process that is not ours."""

    code = "port_in_use"

    def __init__(self, port: int) -> None:
        super().__init__(f"port {port} is in use by another program on this host")
        self.port = port


class InsufficientStorage(CloudletError):
    """Say that the disk cannot hold what was sent; what was written is removed."""

    code = "insufficient_storage"

    def __init__(self, message: str, *, needed_bytes: int | None = None) -> None:
        super().__init__(message)
        self.needed_bytes = needed_bytes


class QuotaExceeded(CloudletError):
    """Say that something from outside is larger than the settings allow."""

    code = "quota_exceeded"

    def __init__(self, message: str, *, limit_bytes: int) -> None:
        super().__init__(message)
        self.limit_bytes = limit_bytes


class ImageRefused(CloudletError):
    """Refuse a disk image; `reason` is a stable word, the message explains it."""

    code = "image_refused"

    def __init__(self, message: str, *, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class PackageRefused(CloudletError):
    """Refuse a package (`.csvm`, APK) that is not what it claims to be."""

    code = "package_refused"

    def __init__(self, message: str, *, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


# -- what failed below us ---------------------------------------------------------


class StoreError(CloudletError):
    """Say that the store failed; the message says what to check."""

    code = "store_error"


class StoreUnavailable(StoreError):
    """Say that the store cannot be reached at present."""

    code = "store_unavailable"


class SchemaTooNew(StoreError):
    """Refuse to open a store that a newer pycloud wrote."""

    code = "schema_too_new"

    def __init__(self, *, found: int, supported: int) -> None:
        super().__init__(
            f"the store has schema version {found}, this pycloud knows up to {supported};"
            " install the newer pycloud again or restore the backup made before the upgrade"
        )
        self.found = found
        self.supported = supported


class BlobCorrupt(StoreError):
    """Say that stored content no longer matches its digest."""

    code = "blob_corrupt"

    def __init__(self, blob_id: str) -> None:
        super().__init__(f"the stored content {blob_id} no longer matches its digest")
        self.blob_id = blob_id


class HypervisorError(CloudletError):
    """Say that libvirt or QEMU refused or failed an operation."""

    code = "hypervisor_error"


class HypervisorUnavailable(HypervisorError):
    """Say that libvirt cannot be reached at present."""

    code = "hypervisor_unavailable"


class DomainNotFound(HypervisorError):
    """Say that the hypervisor knows no such domain of ours."""

    code = "domain_not_found"

    def __init__(self, domain_id: str) -> None:
        super().__init__(f"the hypervisor has no domain {domain_id}")
        self.domain_id = domain_id


class StateUnusable(HypervisorError):
    """Say that a saved memory state cannot be resumed here; cold boot instead."""

    code = "state_unusable"


class GuestFailed(HypervisorError):
    """Say that the guest stopped or panicked before its service answered."""

    code = "guest_failed"


class ServiceNotReady(CloudletError):
    """Say that the service port did not answer before the deadline."""

    code = "service_not_ready"

    def __init__(self, *, port: int, timeout_s: float) -> None:
        super().__init__(
            f"the service did not answer on port {port} within {timeout_s:g} s;"
            " look at the serial output of the instance"
        )
        self.port = port
        self.timeout_s = timeout_s


class AddressUnknown(CloudletError):
    """Say that a guest on a bridge got no address before the deadline, or none that is seen."""

    code = "address_unknown"

    def __init__(self, *, bridge: str, timeout_s: float) -> None:
        super().__init__(
            f"no IPv4 address of the guest was seen on {bridge} within {timeout_s:g} s; there has"
            " to be a DHCP server on the bridge, and this host needs an address on it in a network"
            " of at most 1024 addresses"
        )
        self.bridge = bridge
        self.timeout_s = timeout_s


class ToolFailed(CloudletError):
    """Say that a helper program (`qemu-img`, say) failed or ran too long."""

    code = "tool_failed"


class DiscoveryError(CloudletError):
    """Say that the cloudlet cannot be announced or others cannot be looked for."""

    code = "discovery_error"


class NameTaken(DiscoveryError):
    """Say that another cloudlet on the network announces our name."""

    code = "name_taken"

    def __init__(self, name: str) -> None:
        super().__init__(
            f"another cloudlet on this network is called {name!r}; choose another pycloud.name"
        )
        self.name = name


# -- jobs ---------------------------------------------------------------------------


class JobCancelled(CloudletError):
    """Stop the body of a Job whose cancellation was asked for."""

    code = "cancelled"


class JobInterrupted(CloudletError):
    """Record that the server running a Job died and its effects were undone."""

    code = "interrupted"


class JobFailed(CloudletError):
    """Carry the recorded error of a finished Job to somebody who waited for it."""

    code = "job_failed"

    def __init__(self, message: str, *, error_code: str) -> None:
        super().__init__(message)
        self.error_code = error_code
