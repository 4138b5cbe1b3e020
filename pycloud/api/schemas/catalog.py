# SPDX-License-Identifier: Apache-2.0
"""Services, ServiceVMs, Apps, Uploads and Packages in JSON."""

from pycloud.api.schemas import Json, time_text
from pycloud.core.apps import AppChanges, AppDraft
from pycloud.core.catalog import ServiceChanges
from pycloud.core.intake import AddRequest, ImportRequest
from pycloud.core.model.catalog import (
    App,
    DiskFormat,
    MemoryState,
    OsType,
    Package,
    Readiness,
    Service,
    ServiceDraft,
    ServiceVM,
    Upload,
)
from pycloud.core.model.identifiers import ServiceId, UploadId


def service_json(service: Service) -> Json:
    """Show a Service."""
    return {
        "id": service.id,
        "version": service.version,
        "description": service.description,
        "tags": list(service.tags),
        "port": service.port,
        "sharing_limit": service.sharing_limit,
        "vcpus": service.vcpus,
        "min_memory_mib": service.min_memory_mib,
        "ideal_memory_mib": service.ideal_memory_mib,
        "os_type": service.os_type,
        "readiness": service.readiness,
        "warm_count": service.warm_count,
        "idle_timeout_s": service.idle_timeout_s,
        "max_lifetime_s": service.max_lifetime_s,
        "service_vm_id": service.service_vm_id,
        "created_at": time_text(service.created_at),
        "updated_at": time_text(service.updated_at),
    }


def service_vm_json(service_vm: ServiceVM) -> Json:
    """Show a ServiceVM."""
    machine = service_vm.machine
    return {
        "id": service_vm.id,
        "service_id": service_vm.service_id,
        "host_id": service_vm.host_id,
        "disk": {
            "sha256": service_vm.disk.blob.id,
            "size_bytes": service_vm.disk.blob.size_bytes,
            "virtual_size_bytes": service_vm.disk.virtual_size_bytes,
        },
        "machine": {
            "architecture": machine.architecture,
            "machine": machine.machine,
            "cpu_model": machine.cpu_model,
            "accelerator": machine.accelerator,
            "emulator_version": machine.emulator_version,
        },
        "memory": None if service_vm.memory is None else _memory_json(service_vm.memory),
        "source": service_vm.source,
        "created_at": time_text(service_vm.created_at),
    }


def _memory_json(memory: MemoryState) -> Json:
    return {
        "kind": memory.kind,
        "sha256": memory.memory.id,
        "size_bytes": memory.memory.size_bytes,
        "memory_mib": memory.memory_mib,
        "vcpus": memory.vcpus,
    }


def app_json(app: App) -> Json:
    """Show an App."""
    return {
        "id": app.id,
        "name": app.name,
        "service_id": app.service_id,
        "description": app.description,
        "package_name": app.package_name,
        "app_version": app.app_version,
        "os_name": app.os_name,
        "min_os_version": app.min_os_version,
        "tags": list(app.tags),
        "file_name": app.file_name,
        "sha256": app.blob.id,
        "md5sum": app.md5sum,
        "size_bytes": app.blob.size_bytes,
        "created_at": time_text(app.created_at),
        "updated_at": time_text(app.updated_at),
    }


def upload_json(upload: Upload) -> Json:
    """Show an Upload."""
    return {
        "id": upload.id,
        "file_name": upload.file_name,
        "size_bytes": upload.size_bytes,
        "offset_bytes": upload.offset_bytes,
        "created_at": time_text(upload.created_at),
        "expires_at": time_text(upload.expires_at),
    }


def package_json(package: Package) -> Json:
    """Show a Package."""
    return {
        "id": package.id,
        "service_id": package.service_id,
        "file_name": package.file_name,
        "sha256": package.blob.id,
        "size_bytes": package.blob.size_bytes,
        "job_id": package.job_id,
        "created_at": time_text(package.created_at),
        "expires_at": time_text(package.expires_at),
    }


def add_request(body: Json) -> AddRequest:
    """Read a `ServiceAddition`."""
    given = _typed(
        {name: body[name] for name in body if name not in {"upload_id", "format", "prepare"}}
    )
    return AddRequest(
        draft=ServiceDraft(**given),
        upload_id=UploadId(body["upload_id"]),
        declared=DiskFormat(body["format"]) if "format" in body else None,
        prepare=body.get("prepare", True),
    )


def import_request(body: Json) -> ImportRequest:
    """Read a `PackageImport`."""
    return ImportRequest(
        upload_id=UploadId(body["upload_id"]),
        service_id=ServiceId(body["service_id"]) if "service_id" in body else None,
        prepare=body.get("prepare", True),
    )


def service_changes(body: Json) -> ServiceChanges:
    """Read `ServiceChanges`."""
    return ServiceChanges(**_typed(body))


def app_draft(body: Json) -> AppDraft:
    """Read an `AppAddition`, all but its upload."""
    return AppDraft(**_typed({name: body[name] for name in body if name != "upload_id"}))


def app_changes(body: Json) -> AppChanges:
    """Read `AppChanges`."""
    return AppChanges(**_typed(body))


def _typed(body: Json) -> Json:
    """Give the values that are more than JSON knows their types."""
    readers = {"tags": tuple, "os_type": OsType, "readiness": Readiness}
    return {name: readers.get(name, _same)(value) for name, value in body.items()}


def _same(value: object) -> object:
    return value
