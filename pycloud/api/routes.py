# SPDX-License-Identifier: Apache-2.0
"""The whole URL space of the Cloudlet API on one screen, with who may call and send what.

Phones poll the first ones, and routes are tried in this order. In /api/v2 the
name of a view is the operationId in `openapi.yaml`; both must name the same ones.
"""

from pycloud.api import legacy
from pycloud.api.views import (
    apps,
    docs,
    instances,
    jobs,
    observe,
    packages,
    services,
    system,
    uploads,
)
from pycloud.web.application import Endpoint, Route
from pycloud.web.body_gate import BodySize
from pycloud.web.security import Permission

_PUBLIC, _ADMIN = Permission.PUBLIC, Permission.ADMIN
_CONTROL, _METRICS = Permission.INSTANCE_CONTROL, Permission.METRICS_READ

# fmt: off
LEGACY: tuple[Route, ...] = (
    Route("legacy.services", "/api/services", (Endpoint("GET", legacy.list_services, _PUBLIC),)),
    Route("legacy.get_messages", "/api/system/get_messages", (Endpoint("GET", legacy.get_messages, _PUBLIC),)),
    Route("legacy.system", "/api/system", (Endpoint("GET", legacy.get_system, _PUBLIC),)),
    Route("legacy.service", "/api/services/get", (Endpoint("GET", legacy.get_service, _PUBLIC),)),
    Route("legacy.start", "/api/servicevm/start", (Endpoint("GET", legacy.start_servicevm, _PUBLIC),)),
    Route("legacy.stop", "/api/servicevm/stop", (Endpoint("GET", legacy.stop_servicevm, _PUBLIC),)),
    Route("legacy.apps", "/api/apps", (Endpoint("GET", legacy.list_apps, _PUBLIC),)),
    Route("legacy.app", "/api/apps/get", (Endpoint("GET", legacy.get_app, _PUBLIC),)),
)

V2: tuple[Route, ...] = (
    Route("v2.services", "/api/v2/services", (
        Endpoint("GET", services.list_services, _PUBLIC),
        Endpoint("POST", services.add_service, _ADMIN))),
    Route("v2.service", "/api/v2/services/{service_id}", (
        Endpoint("GET", services.get_service, _PUBLIC),
        Endpoint("PATCH", services.change_service, _ADMIN),
        Endpoint("DELETE", services.remove_service, _ADMIN))),
    Route("v2.service.prepare", "/api/v2/services/{service_id}/prepare", (
        Endpoint("POST", services.prepare_service, _ADMIN),)),
    Route("v2.service.service_vms", "/api/v2/services/{service_id}/service-vms", (
        Endpoint("GET", services.list_service_vms, _PUBLIC),)),
    Route("v2.service_vm", "/api/v2/service-vms/{service_vm_id}", (
        Endpoint("GET", services.get_service_vm, _PUBLIC),)),
    Route("v2.instances", "/api/v2/instances", (
        Endpoint("GET", instances.list_instances, _PUBLIC),
        Endpoint("POST", instances.start_instance, _PUBLIC))),
    Route("v2.instance", "/api/v2/instances/{instance_id}", (
        Endpoint("GET", instances.get_instance, _PUBLIC),
        Endpoint("DELETE", instances.stop_instance, _CONTROL))),
    Route("v2.instance.leave", "/api/v2/instances/{instance_id}/leave", (
        Endpoint("POST", instances.leave_instance, _PUBLIC),)),
    Route("v2.instance.renew", "/api/v2/instances/{instance_id}/renew", (
        Endpoint("POST", instances.renew_instance, _CONTROL),)),
    Route("v2.instance.pause", "/api/v2/instances/{instance_id}/pause", (
        Endpoint("POST", instances.pause_instance, _CONTROL),)),
    Route("v2.instance.resume", "/api/v2/instances/{instance_id}/resume", (
        Endpoint("POST", instances.resume_instance, _CONTROL),)),
    Route("v2.instance.serial", "/api/v2/instances/{instance_id}/serial", (
        Endpoint("GET", instances.get_serial_output, _CONTROL),)),
    Route("v2.jobs", "/api/v2/jobs", (
        Endpoint("GET", jobs.list_jobs, _ADMIN),)),
    Route("v2.job", "/api/v2/jobs/{job_id}", (
        Endpoint("GET", jobs.get_job, _PUBLIC),
        Endpoint("DELETE", jobs.cancel_job, _ADMIN))),
    Route("v2.apps", "/api/v2/apps", (
        Endpoint("GET", apps.list_apps, _PUBLIC),
        Endpoint("POST", apps.add_app, _ADMIN))),
    Route("v2.app", "/api/v2/apps/{app_id}", (
        Endpoint("GET", apps.get_app, _PUBLIC),
        Endpoint("PATCH", apps.change_app, _ADMIN),
        Endpoint("DELETE", apps.remove_app, _ADMIN))),
    Route("v2.app.content", "/api/v2/apps/{app_id}/content", (
        Endpoint("GET", apps.download_app, _PUBLIC),)),
    Route("v2.uploads", "/api/v2/uploads", (
        Endpoint("OPTIONS", uploads.upload_features, _PUBLIC),
        Endpoint("GET", uploads.list_uploads, _ADMIN),
        Endpoint("POST", uploads.create_upload, _ADMIN))),
    Route("v2.upload", "/api/v2/uploads/{upload_id}", (
        Endpoint("GET", uploads.get_upload, _ADMIN),
        Endpoint("PATCH", uploads.append_upload, _ADMIN, BodySize.LARGE),
        Endpoint("DELETE", uploads.discard_upload, _ADMIN))),
    Route("v2.imports", "/api/v2/imports", (
        Endpoint("POST", packages.import_package, _ADMIN),)),
    Route("v2.packages", "/api/v2/packages", (
        Endpoint("GET", packages.list_packages, _ADMIN),
        Endpoint("POST", packages.export_package, _ADMIN))),
    Route("v2.package", "/api/v2/packages/{package_id}", (
        Endpoint("GET", packages.get_package, _ADMIN),
        Endpoint("DELETE", packages.remove_package, _ADMIN))),
    Route("v2.package.content", "/api/v2/packages/{package_id}/content", (
        Endpoint("GET", packages.download_package, _ADMIN),)),
    Route("v2.system", "/api/v2/system", (Endpoint("GET", system.get_system, _PUBLIC),)),
    Route("v2.peers", "/api/v2/peers", (Endpoint("GET", system.list_peers, _PUBLIC),)),
    Route("v2.events", "/api/v2/events", (Endpoint("GET", system.list_events, _ADMIN),)),
    Route("v2", "/api/v2", (Endpoint("GET", system.index, _PUBLIC),)),
    Route("v2.description_yaml", "/api/v2/openapi.yaml", (
        Endpoint("GET", system.description_yaml, _PUBLIC),)),
    Route("v2.description_json", "/api/v2/openapi.json", (
        Endpoint("GET", system.description_json, _PUBLIC),)),
)

OTHERS: tuple[Route, ...] = (
    Route("healthz", "/healthz", (Endpoint("GET", observe.healthz, _PUBLIC),)),
    Route("readyz", "/readyz", (Endpoint("GET", observe.readyz, _PUBLIC),)),
    Route("metrics", "/metrics", (Endpoint("GET", observe.metrics, _METRICS),)),
    Route("docs", "/docs/api", (Endpoint("GET", docs.explorer, _PUBLIC),)),
    Route("docs.file", "/docs/api/{file_name}", (Endpoint("GET", docs.explorer_file, _PUBLIC),)),
    Route("home", "/", (Endpoint("GET", docs.explorer, _PUBLIC),)),
)
# fmt: on
