# SPDX-License-Identifier: Apache-2.0
"""Turn a ServiceVM into the description of one virtual machine to run.

Names are derived, never invented: the domain of an owner has the same id
whoever computes it, which is how recovery finds it again.
"""

from dataclasses import dataclass, replace
from uuid import UUID, uuid5

from pycloud.core.model.catalog import MemoryState, Service, ServiceVM
from pycloud.core.model.identifiers import DomainId, InstanceId
from pycloud.core.model.runtime import PortMapping
from pycloud.core.ports import BridgedNetwork, DomainSpec, UserNetwork

_DOMAINS = UUID("6f1d5a52-3d56-4a53-9a3e-6f3d1b5c2d10")
"""Namespace (RFC 9562, version 5) of the domain ids of pycloud."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkOptions:
    """How guests are attached; an empty `bridge` means user-mode networking."""

    bridge: str

    @property
    def is_bridged(self) -> bool:
        """Whether guests are stations on a bridge of the host."""
        return bool(self.bridge)


def domain_id_of(owner: InstanceId) -> DomainId:
    """Return the id of the one domain that `owner` may have."""
    return DomainId(str(uuid5(_DOMAINS, owner)))


def mac_address_of(owner: InstanceId) -> str:
    """Return a stable unicast MAC address in QEMU's range, 52:54:00, for `owner`."""
    tail = uuid5(_DOMAINS, f"mac/{owner}").bytes[:3]
    return "52:54:00:" + ":".join(f"{byte:02x}" for byte in tail)


def domain_spec(
    owner: InstanceId,
    service: Service,
    service_vm: ServiceVM,
    *,
    ports: tuple[PortMapping, ...],
    network: NetworkOptions,
) -> DomainSpec:
    """Describe a cold boot of the ServiceVM on its original disk."""
    attached: UserNetwork | BridgedNetwork
    if network.is_bridged:
        attached = BridgedNetwork(bridge=network.bridge, mac_address=mac_address_of(owner))
    else:
        attached = UserNetwork(forwards=ports)
    return DomainSpec(
        owner=owner,
        domain_id=domain_id_of(owner),
        machine=service_vm.machine,
        os_type=service.os_type,
        vcpus=service.vcpus,
        memory_mib=service.ideal_memory_mib,
        disk=service_vm.disk,
        network=attached,
    )


def resumed(spec: DomainSpec, memory: MemoryState) -> DomainSpec:
    """Describe the same VM resumed from `memory`, on the machine and disk it was made with."""
    return replace(spec, memory=memory, machine=memory.machine, disk=memory.disk)


def shape_of(service: Service) -> str:
    """Return what a guest looks like to itself, as text that changes whenever that does."""
    return f"{service.vcpus}/{service.ideal_memory_mib}/{service.os_type}/{service.port}"


def usable_memory(
    service: Service, service_vm: ServiceVM, network: NetworkOptions
) -> MemoryState | None:
    """Return the memory state to start from, None if it has to be a cold boot.

    A state fits only the size it was made with; and it carries the MAC address, so
    two copies on one bridge would collide.
    """
    memory = service_vm.memory
    if memory is None or network.is_bridged:
        return None
    fits = memory.memory_mib == service.ideal_memory_mib and memory.vcpus == service.vcpus
    return memory if fits else None
