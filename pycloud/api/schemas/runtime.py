# SPDX-License-Identifier: Apache-2.0
"""Instances, Jobs and Events in JSON. Who owns something is told only to those who may know."""

from dataclasses import dataclass
from datetime import datetime

from pycloud.api.schemas import Json, optional_time, time_text
from pycloud.core.model.identifiers import Principal
from pycloud.core.model.runtime import Event, Failure, Instance, Job

_RESULTS = ("service_id", "service_vm_id", "instance_id", "package_id", "prepare_job", "memory")
"""What of a Job's result is for clients; the rest is notes between its steps."""


@dataclass(frozen=True, slots=True)
class Viewer:
    """For whom something is shown."""

    principal: Principal
    is_admin: bool

    def may_know(self, owner: Principal) -> bool:
        """Return whether the viewer may be told who `owner` is."""
        return self.is_admin or owner == self.principal


def instance_json(instance: Instance, viewer: Viewer) -> Json:
    """Show an Instance."""
    knows = viewer.may_know(instance.owner)
    return {
        "id": instance.id,
        "service_id": instance.service_id,
        "service_vm_id": instance.service_vm_id,
        "host_id": instance.host_id,
        "state": instance.state,
        "address": instance.address,
        "port": instance.published_port(),
        "ports": [
            {"guest_port": mapping.guest_port, "host_port": mapping.host_port}
            for mapping in instance.ports
        ],
        "vcpus": instance.vcpus,
        "memory_mib": instance.memory_mib,
        "users": instance.users,
        "sharing_limit": instance.sharing_limit,
        "owner": instance.owner if knows else None,
        "device_id": instance.device_id if knows else None,
        "start_method": instance.start_method,
        "timeline": [
            {"name": phase.name, "begin_ms": phase.begin_ms, "duration_ms": phase.duration_ms}
            for phase in instance.timeline
        ],
        "failure": _failure_json(instance.failure),
        "job_id": instance.job_id,
        "idle_at": optional_time(instance.idle_at),
        "expires_at": optional_time(instance.expires_at),
        "created_at": time_text(instance.created_at),
        "updated_at": time_text(instance.updated_at),
    }


def job_json(job: Job, viewer: Viewer, now: datetime) -> Json:
    """Show a Job as it is `now`."""
    return {
        "id": job.id,
        "kind": job.kind,
        "state": job.state,
        "stage": job.stage,
        "progress": {
            "done": job.progress.done,
            "total": job.progress.total,
            "unit": job.progress.unit,
        },
        "eta_s": job.left_s(now),
        "may_cancel": job.may_cancel and not job.is_final,
        "cancel_requested": job.cancel_requested,
        "resources": list(job.resources),
        "host_id": job.host_id,
        "created_by": job.created_by if viewer.may_know(job.created_by) else None,
        "result": {name: job.result[name] for name in _RESULTS if name in job.result},
        "error": _failure_json(job.failure),
        "created_at": time_text(job.created_at),
        "started_at": optional_time(job.started_at),
        "finished_at": optional_time(job.finished_at),
    }


def event_json(event: Event) -> Json:
    """Show an Event."""
    return {
        "sequence": event.sequence,
        "time": time_text(event.time),
        "kind": event.kind,
        "action": event.action,
        "resource": event.resource,
        "actor": event.actor,
        "data": dict(event.data),
    }


def _failure_json(failure: Failure | None) -> Json | None:
    return None if failure is None else {"code": failure.code, "message": failure.message}
