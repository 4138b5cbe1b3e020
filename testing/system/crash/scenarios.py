# SPDX-License-Identifier: Apache-2.0
"""For every JobKind: what makes such a Job run, and what has to hold when it is over.

A Job that was killed ends in one of two ways: its effect is there, whole, or
nothing of it is. Which one is right depends on the step, so both are accepted
here where both are sound; half an effect never is.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pycloud.core.facade import Core
from pycloud.core.instances import StartRequest
from pycloud.core.intake import ImportRequest
from pycloud.core.model.identifiers import InstanceId, ServiceId
from pycloud.core.model.runtime import InstanceState, Job, JobKind, JobState
from pycloud.core.removal import RunningInstances
from pycloud.errors import NotFound
from testing.system.crash.cloudlets import OPERATOR, SERVICE, WAIT_S, add_request, upload

NEW_SERVICE = ServiceId("newcomer")
IMAGE = "image.qcow2"
PACKAGE = "demo.csvm"


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """How to provoke a Job in a cloudlet made from the template, and how to judge its end.

    `provoke` returns when the Job is over, if it is allowed to live that long. `running`
    says whether an Instance of the demo Service has to run before.
    """

    provoke: Callable[[Core, Path], None]
    judge: Callable[[Core, Job], None]
    running: bool = False
    warm_total: int = 0


def _finish(core: Core, job: Job | None) -> None:
    assert job is not None
    core.jobs.wait(job.id, timeout_s=WAIT_S)


def _start(core: Core, _files: Path) -> None:
    _finish(core, core.instances.request_start(StartRequest(service_id=SERVICE), by=OPERATOR).job)


def _stop(core: Core, _files: Path) -> None:
    instance = core.instances.instances({"state": InstanceState.RUNNING}).items[0]
    _finish(core, core.instances.request_stop(instance.id, by=OPERATOR))


def _add(core: Core, files: Path) -> None:
    request = add_request(upload(core, files / IMAGE), NEW_SERVICE)
    _finish(core, core.intake.request_add(request, by=OPERATOR))


def _import(core: Core, files: Path) -> None:
    request = ImportRequest(
        upload_id=upload(core, files / PACKAGE).id, service_id=NEW_SERVICE, prepare=False
    )
    _finish(core, core.intake.request_import(request, by=OPERATOR))


def _prepare(core: Core, _files: Path) -> None:
    _finish(core, core.templates.request_prepare(SERVICE, by=OPERATOR))


def _export(core: Core, _files: Path) -> None:
    _finish(core, core.exports.request_export(SERVICE, by=OPERATOR))


def _remove(core: Core, _files: Path) -> None:
    job = core.removal.request_remove(SERVICE, RunningInstances.STOP, generation=None, by=OPERATOR)
    _finish(core, job)


def _fill(core: Core, files: Path) -> None:
    # Popularity comes from a start; the pool is filled by the next round of reconciliation.
    _start(core, files)
    deadline = core.clock.monotonic() + WAIT_S
    while core.clock.monotonic() < deadline:
        core.clock.sleep(0.05)
        if core.background.store.warm_domains.count():
            return


# -- judgements ------------------------------------------------------------------------


def _started_or_gone(core: Core, job: Job) -> None:
    instance = core.instances.instance(_instance_id(job))
    expected = InstanceState.RUNNING if job.state is JobState.SUCCEEDED else InstanceState.FAILED
    assert instance.state is expected


def _stopped(core: Core, job: Job) -> None:
    assert job.state is JobState.SUCCEEDED
    assert core.instances.instance(_instance_id(job)).state is InstanceState.STOPPED


def _came_in(core: Core, job: Job) -> None:
    assert job.state is JobState.SUCCEEDED, job.failure
    _, service_vm = core.catalog.startable(NEW_SERVICE)
    core.intake.images.flatten(service_vm.disk, "judgement", "whole")
    core.background.reconciler.blobs.discard("judgement")


def _prepared_or_not(core: Core, job: Job) -> None:
    _, service_vm = core.catalog.startable(SERVICE)
    assert service_vm.memory is not None
    for blob in (service_vm.memory.memory, service_vm.memory.devices, service_vm.memory.disk.blob):
        assert blob is not None
        core.background.reconciler.blobs.verify(blob.id)
    assert job.state in {JobState.SUCCEEDED, JobState.FAILED}


def _exported_or_not(core: Core, job: Job) -> None:
    packages = core.exports.list_packages().items
    assert len(packages) == (1 if job.state is JobState.SUCCEEDED else 0)
    for package in packages:
        core.background.reconciler.blobs.verify(package.blob.id)


def _removed(core: Core, job: Job) -> None:
    assert job.state is JobState.SUCCEEDED
    try:
        core.catalog.service(SERVICE)
    except NotFound:
        return
    raise AssertionError("the service is still there")


def _waiting_or_gone(core: Core, job: Job) -> None:
    warm = {copy.id for copy in core.background.store.warm_domains.find().items}
    if job.state is JobState.SUCCEEDED:
        assert job.arguments["owner"] in warm
    else:
        assert job.arguments["owner"] not in warm


def _instance_id(job: Job) -> InstanceId:
    return InstanceId(job.arguments["instance_id"])


SCENARIOS: Mapping[JobKind, Scenario] = {
    JobKind.INSTANCE_START: Scenario(provoke=_start, judge=_started_or_gone),
    JobKind.INSTANCE_STOP: Scenario(provoke=_stop, judge=_stopped, running=True),
    JobKind.SERVICE_ADD: Scenario(provoke=_add, judge=_came_in),
    JobKind.SERVICE_IMPORT: Scenario(provoke=_import, judge=_came_in),
    JobKind.SERVICE_PREPARE: Scenario(provoke=_prepare, judge=_prepared_or_not),
    JobKind.SERVICE_EXPORT: Scenario(provoke=_export, judge=_exported_or_not),
    JobKind.SERVICE_REMOVE: Scenario(provoke=_remove, judge=_removed, running=True),
    JobKind.WARM_FILL: Scenario(provoke=_fill, judge=_waiting_or_gone, warm_total=1),
}
