# SPDX-License-Identifier: Apache-2.0
"""Whether records, domains, disks, ports, room and staging areas of a cloudlet agree."""

from pycloud.core.facade import Core
from pycloud.core.machines import domain_id_of
from pycloud.core.model.identifiers import BlobId
from pycloud.core.model.runtime import LIVE_STATES, InstanceState

AGREEMENT_S = 30.0
"""What is promised to operators: everything agrees this long after a restart."""
QUIET_ROUNDS = 3
_EXECUTING = frozenset({InstanceState.RUNNING, InstanceState.PAUSED})


def await_agreement(core: Core) -> None:
    """Return when no Job is active and everything agrees for some rounds in a row.

    Raises AssertionError that says what disagrees.
    """
    deadline = core.clock.monotonic() + AGREEMENT_S
    quiet, found = 0, "nothing was looked at"
    while core.clock.monotonic() < deadline:
        found = disagreement(core)
        quiet = 0 if found else quiet + 1
        if quiet >= QUIET_ROUNDS:
            return
        core.clock.sleep(core.settings.reconcile_s)
    raise AssertionError(f"after {AGREEMENT_S:g} s: {found}")


def _content_of_nobody(core: Core) -> set[BlobId]:
    needed = core.catalog.referenced_blobs() | core.apps.referenced_blobs()
    needed |= core.exports.referenced_blobs()
    return {blob.id for blob in core.background.reconciler.blobs.stored()} - needed


def disagreement(core: Core) -> str:
    """Say in which way records and reality disagree; empty if they agree."""
    store, guests = core.background.store, core.instances.guests
    instances = {
        item.id: item
        for item in core.instances.instances(limit=500).items
        if item.state in LIVE_STATES
    }
    copies = {copy.id for copy in store.warm_domains.find().items}
    owners = set(instances) | copies
    domains = {domain.owner: domain.id for domain in guests.hypervisor.domains()}
    executing = {item.id for item in instances.values() if item.state in _EXECUTING}
    uploads = {item.id for item in store.uploads.find().items}
    published = {mapping.host_port for item in instances.values() for mapping in item.ports}
    leases = [lease for lease in store.port_leases.find().items if lease.holder]
    leased = {lease.port for lease in leases if lease.holder not in copies}
    rehearsed = sorted(lease.holder for lease in leases if lease.holder in copies)
    pairs = {
        "active jobs": ({job.id for job in core.jobs.active()}, set()),
        "instances that run": (executing, set(instances)),
        "domains": (set(domains.items()), {(owner, domain_id_of(owner)) for owner in owners}),
        "disks": (set(guests.hypervisor.disk_owners()), owners),
        "room and ports": (set(guests.placement.holders()), owners),
        "leased ports": (leased, published),
        "ports of waiting copies": (rehearsed, sorted(copies)),
        "content of nobody": (_content_of_nobody(core), set()),
        "staging areas": (set(core.background.reconciler.blobs.areas()) - uploads, set()),
    }
    return "; ".join(
        f"{what}: {found}, not {wanted}"
        for what, (found, wanted) in pairs.items()
        if found != wanted
    )
