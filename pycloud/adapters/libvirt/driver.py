# SPDX-License-Identifier: Apache-2.0
"""The Hypervisor port on libvirt: start, release, stop and list domains of this cloudlet.

Reads like the life of a domain; how each step is done stands in the modules beside it.
Must not know about records, leases or readiness.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from pycloud.adapters.libvirt.domain_plan import Role
from pycloud.adapters.libvirt.domains import CRASHED, PAUSED, RUNNING, STALLED, OwnDomain
from pycloud.adapters.libvirt.host import LibvirtHost
from pycloud.adapters.libvirt.monitor import LISTENING
from pycloud.core.model.catalog import MemoryKind
from pycloud.core.model.fleet import DomainInfo, HypervisorFacts
from pycloud.core.model.identifiers import DomainId, InstanceId
from pycloud.core.model.runtime import PortMapping
from pycloud.core.ports import DomainSpec, PhaseSink, UserNetwork
from pycloud.errors import CloudletError, DomainNotFound, HypervisorError, StateUnusable

_log = logging.getLogger(__name__)
_POWER_OFF_POLL_S = 0.1


class LibvirtHypervisor:
    """Domains of this cloudlet on one libvirt."""

    def __init__(self, host: LibvirtHost) -> None:
        self._host = host

    def facts(self) -> HypervisorFacts:
        """Return what libvirt and QEMU can do here; read once."""
        return self._host.facts()

    def start(self, spec: DomainSpec, *, on_phase: PhaseSink) -> None:
        """Make a domain, load its state, publish its ports and let it run."""
        present = self._present(spec)
        if present is not None and present.state == RUNNING:
            return
        with undone_on_failure(self._host, spec):
            self._clear(spec, present)
            tag = self._host.domains.tag(spec.owner)
            self._host.starter.load(spec, tag, on_phase=on_phase)
            self._host.publish(spec.domain_id, spec.owner, forwards_of(spec))
            on_phase("ports")
            self._host.domains.resume(spec.domain_id)
            on_phase("resume")

    def start_held(self, spec: DomainSpec) -> None:
        """Load a clone and leave it paused; one that is loaded already is left as it is."""
        if spec.memory is None or spec.memory.kind is not MemoryKind.TEMPLATE:
            raise StateUnusable("only a template's memory can wait")
        present = self._present(spec)
        if present is not None and present.tag.role is Role.HELD and present.state == RUNNING:
            return
        with undone_on_failure(self._host, spec):
            self._clear(spec, present)
            tag = self._host.domains.tag(spec.owner, role=Role.HELD)
            self._host.starter.load(spec, tag, on_phase=_ignore_phase)

    def release(
        self, domain_id: DomainId, forwards: Sequence[PortMapping], *, on_phase: PhaseSink
    ) -> None:
        """Publish a held domain's ports and let it run."""
        domain = self._host.domains.require(domain_id)
        if domain.tag.role is not Role.HELD:
            raise HypervisorError(f"domain {domain_id} does not wait to be released")
        if domain.state == CRASHED:
            raise HypervisorError(f"domain {domain_id} has crashed")
        self._host.publish(domain_id, domain.tag.owner, tuple(forwards))
        on_phase("ports")
        if domain.state != RUNNING:
            self._host.domains.resume(domain_id)
        on_phase("resume")

    def hold(self, domain_id: DomainId) -> None:
        """Let a domain that was released wait again; its forwards stay, for this host alone."""
        domain = self._executable(domain_id)
        if domain.tag.role is not Role.HELD:
            raise HypervisorError(f"domain {domain_id} was not made to wait")
        self._host.relay.withdraw(domain.tag.owner)
        if domain.state == RUNNING:
            self._host.domains.suspend(domain_id)

    def shut_down(self, domain_id: DomainId, *, timeout_s: float) -> bool:
        """Press the power button and wait; a paused guest cannot hear it."""
        domain = self._host.domains.find(domain_id)
        if domain is None:
            return True
        if domain.state != RUNNING:
            return False
        clock = self._host.clock
        deadline = clock.monotonic() + timeout_s
        try:
            self._host.domains.press_power_button(domain_id)
        except DomainNotFound:
            return True
        while self._host.domains.find(domain_id) is not None:
            remaining_s = deadline - clock.monotonic()
            if remaining_s <= 0:
                return False
            clock.sleep(min(_POWER_OFF_POLL_S, remaining_s))
        return True

    def destroy(self, domain_id: DomainId, owner: InstanceId) -> None:
        """End a domain at once and remove what it wrote."""
        domain = self._host.domains.find(domain_id)
        if domain is not None and domain.tag.owner != owner:
            raise HypervisorError(f"domain {domain_id} does not belong to {owner}")
        self._host.discard(domain_id, owner)

    def pause(self, domain_id: DomainId) -> None:
        """Stop the guest's processors unless they are stopped."""
        if self._executable(domain_id).state == RUNNING:
            self._host.domains.suspend(domain_id)

    def resume(self, domain_id: DomainId) -> None:
        """Let a guest go on unless it does; a held one has to be released first."""
        domain = self._executable(domain_id)
        if domain.state == RUNNING:
            return
        if domain.tag.role is Role.HELD and not self._has_forwards(domain_id):
            raise HypervisorError(f"domain {domain_id} has to be released first")
        self._host.domains.resume(domain_id)

    def domains(self) -> tuple[DomainInfo, ...]:
        """Return the domains that carry this cloudlet's tag.

        Asked for now and then by whoever compares records with reality, so this is also
        where endless serial output is cut back and a relay that died is replaced.
        """
        self._host.files.trim_serial_logs()
        self._host.ensure_relay()
        return tuple(
            DomainInfo(id=domain.id, owner=domain.tag.owner, state=domain.state)
            for domain in self._host.domains.all()
        )

    def disk_owners(self) -> tuple[InstanceId, ...]:
        """Return the owners of all directories of domains, complete or not."""
        return self._host.files.owners()

    def _present(self, spec: DomainSpec) -> OwnDomain | None:
        domain = self._host.domains.find(spec.domain_id)
        if domain is not None and domain.tag.owner != spec.owner:
            raise HypervisorError(f"domain {spec.domain_id} belongs to somebody else")
        return domain

    def _clear(self, spec: DomainSpec, present: OwnDomain | None) -> None:
        """Remove what an interrupted start left behind: nobody knows how far it came."""
        if present is not None:
            self._host.discard(spec.domain_id, spec.owner)

    def _executable(self, domain_id: DomainId) -> OwnDomain:
        domain = self._host.domains.require(domain_id)
        if domain.state not in {RUNNING, PAUSED, STALLED}:
            raise HypervisorError(f"domain {domain_id} has crashed")
        return domain

    def _has_forwards(self, domain_id: DomainId) -> bool:
        connections = self._host.monitor(domain_id).connections()
        return any(item.state == LISTENING for item in connections)


def forwards_of(spec: DomainSpec) -> tuple[PortMapping, ...]:
    """Return the ports to publish; on a bridge there are none."""
    return spec.network.forwards if isinstance(spec.network, UserNetwork) else ()


@contextmanager
def undone_on_failure(host: LibvirtHost, spec: DomainSpec) -> Iterator[None]:
    """Remove domain and disk if the block fails, whatever the reason, and let that pass."""
    try:
        yield
    except BaseException:
        try:
            host.discard(spec.domain_id, spec.owner)
        except CloudletError as exc:
            # What is left carries our tag and is found by the next comparison.
            _log.warning("undo_failed domain=%s reason=%s", spec.domain_id, exc)
        raise


def _ignore_phase(_name: str) -> None:
    """Take no note of a phase."""
