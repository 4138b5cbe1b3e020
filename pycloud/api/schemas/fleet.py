# SPDX-License-Identifier: Apache-2.0
"""This cloudlet, its Host, and the Peers it sees, in JSON."""

from pycloud.api.schemas import Json, time_text
from pycloud.core.facade import Core
from pycloud.core.model.fleet import Cloudlet, Host, HypervisorFacts, Peer
from pycloud.errors import HypervisorError


def system_json(core: Core) -> Json:
    """Show everything about this cloudlet; a hypervisor that is away is null."""
    metadata = core.system.metadata()
    storage = core.system.storage()
    return {
        "cloudlet": _cloudlet_json(core.cloudlet),
        "host": _host_json(core.system.host()),
        "memory": {
            "max_bytes": metadata.memory.max_bytes,
            "free_bytes": metadata.memory.free_bytes,
        },
        "cpu": {
            "max_cores": metadata.cpu.max_cores,
            "usage_percent": metadata.cpu.usage_percent,
            "speed_mhz": metadata.cpu.speed_mhz,
            "cache_kib": metadata.cpu.cache_kib,
        },
        "storage": {"total_bytes": storage.total_bytes, "free_bytes": storage.free_bytes},
        "hypervisor": _hypervisor_json(core),
        "discovery_problem": core.system.discovery.problem(),
    }


def peer_json(peer: Peer) -> Json:
    """Show a Peer."""
    return {
        "name": peer.name,
        "addresses": list(peer.addresses),
        "port": peer.port,
        "encryption": peer.encryption,
        "api_version": peer.api_version,
        "tls": peer.tls,
        "load_percent": peer.load_percent,
        "services": list(peer.services),
        "seen_at": time_text(peer.seen_at),
    }


def _cloudlet_json(cloudlet: Cloudlet) -> Json:
    return {
        "name": cloudlet.name,
        "fqdn": cloudlet.fqdn,
        "address": cloudlet.address,
        "port": cloudlet.port,
        "version": cloudlet.version,
    }


def _host_json(host: Host) -> Json:
    return {
        "id": host.id,
        "vcpus": host.vcpus,
        "memory_mib": host.memory_mib,
        "disk_gib": host.disk_gib,
        "max_instances": host.max_instances,
        "instances": len(host.claims),
        "claimed_vcpus": sum(claim.vcpus for claim in host.claims),
        "claimed_memory_mib": host.claimed_memory_mib,
    }


def _hypervisor_json(core: Core) -> Json | None:
    try:
        facts: HypervisorFacts = core.hypervisor_facts()
    except HypervisorError:
        return None
    return {
        "libvirt_version": facts.libvirt_version,
        "emulator_version": facts.emulator_version,
        "architecture": facts.architecture,
        "accelerator": facts.accelerator,
        "accelerator_reason": facts.accelerator_reason,
        "machine": facts.machine,
        "cpu_model": facts.cpu_model,
        "instant_start": facts.instant_start,
    }
