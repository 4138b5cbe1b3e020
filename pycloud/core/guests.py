# SPDX-License-Identifier: Apache-2.0
"""What every capability that runs guests does alike: attach, start, wait for the answer.

It keeps no records: whose guest it is and why it runs is the caller's business.
"""

from collections.abc import Callable
from dataclasses import dataclass

from pycloud.core.jobs import StepContext
from pycloud.core.machines import NetworkOptions, domain_id_of, domain_spec
from pycloud.core.model.catalog import Service, ServiceVM
from pycloud.core.model.identifiers import DomainId, InstanceId
from pycloud.core.model.runtime import PortMapping
from pycloud.core.placement import Placement
from pycloud.core.ports import (
    Clock,
    DomainSpec,
    GuestView,
    HostSensors,
    Hypervisor,
    MemoryCapture,
    Probe,
    ProbeTarget,
)
from pycloud.errors import AddressUnknown, GuestFailed

_ADDRESS_POLL_S = 0.1
_LOOPBACK = "127.0.0.1"


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestOptions:
    """How guests are attached and how long they may take; see the settings."""

    network: NetworkOptions
    start_timeout_s: float
    stop_timeout_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Guests:
    """The machinery of running guests on one Host. Safe to use from several threads."""

    hypervisor: Hypervisor
    capture: MemoryCapture
    view: GuestView
    probe: Probe
    sensors: HostSensors
    placement: Placement
    clock: Clock
    options: GuestOptions

    def with_ports(
        self,
        owner: InstanceId,
        service: Service,
        attempt: Callable[[tuple[PortMapping, ...]], None],
    ) -> tuple[PortMapping, ...]:
        """Call `attempt` with the published ports, none on a bridge. Raises NoFreePort."""
        if self.options.network.is_bridged:
            attempt(())
            return ()
        return self.placement.with_port(owner, service.port, attempt)

    def spec(
        self,
        owner: InstanceId,
        service: Service,
        service_vm: ServiceVM,
        ports: tuple[PortMapping, ...] = (),
    ) -> DomainSpec:
        """Describe a cold boot for `owner`."""
        return domain_spec(owner, service, service_vm, ports=ports, network=self.options.network)

    def await_answer(self, owner: InstanceId, service: Service, context: StepContext) -> str:
        """Wait for the first answer of the service port; return the clients' address.

        Raises ServiceNotReady, AddressUnknown, GuestFailed, JobCancelled.
        """
        domain_id = domain_id_of(owner)
        timeout_s = self.options.start_timeout_s
        if self.options.network.is_bridged:
            begin_s = self.clock.monotonic()
            public = self._await_address(domain_id, context)
            address, port = public, service.port
            timeout_s = round(timeout_s - (self.clock.monotonic() - begin_s), 1)
        else:
            public = self.sensors.published_address()
            # On loopback every published port listens, wherever else it does.
            address = _LOOPBACK
            port = self._published_port(owner, service)
        self.probe.wait(
            ProbeTarget(
                address=address, port=port, readiness=service.readiness, domain_id=domain_id
            ),
            timeout_s=timeout_s,
            is_alive=lambda: self._is_alive(domain_id, context),
        )
        return public

    def _published_port(self, owner: InstanceId, service: Service) -> int:
        ports = self.placement.ports_of(owner, service.port)
        if not ports:
            raise GuestFailed("the VM was stopped before its service answered")
        return ports[0].host_port

    def _is_alive(self, domain_id: DomainId, context: StepContext) -> bool:
        context.check()
        return self.view.is_alive(domain_id)

    def _await_address(self, domain_id: DomainId, context: StepContext) -> str:
        deadline = self.clock.monotonic() + self.options.start_timeout_s
        while self.clock.monotonic() < deadline:
            if not self._is_alive(domain_id, context):
                raise GuestFailed("the guest stopped before it had an address")
            address = self.view.address(domain_id)
            if address is not None:
                return address
            self.clock.sleep(_ADDRESS_POLL_S)
        raise AddressUnknown(
            bridge=self.options.network.bridge, timeout_s=self.options.start_timeout_s
        )
