# SPDX-License-Identifier: Apache-2.0
"""For every JobKind: what makes such a Job run, and what has to hold when it is over.

A Job that was killed ends in one of two ways: its effect is there, whole, or
nothing of it is. Which one is right depends on the step, so both are accepted
here where both are sound; half an effect never is. Of a Job that was killed while it was
undone, nothing may be there.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from pycloud.core.facade import Core
from pycloud.core.instances import StartRequest
from pycloud.core.intake import ImportRequest
from pycloud.core.model.identifiers import InstanceId, ServiceId
from pycloud.core.model.runtime import InstanceState, Job, JobKind, JobState, StartMethod
from pycloud.core.removal import RunningInstances
from pycloud.errors import NotFound
from testing.system.crash.cloudlets import OPERATOR, SERVICE, WAIT_S, add_request, upload

NEW_SERVICE = ServiceId("newcomer")
IMAGE = "image.qcow2"
PACKAGE = "demo.csvm"
BROKEN = "the test broke it"
"""Why a Job fails that is to be undone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """How to provoke a Job in a cloudlet made from the template, and how to judge its end.

    `set_up` makes what has to be there before, in a server of its own. `provoke` returns
    when the Job is over, if it is allowed to live that long.
    """

    kind: JobKind
    provoke: Callable[[Core, Path], None]
    judge: Callable[[Core, Job], None]
    set_up: Callable[[Core], None] | None = None
    warm_total: int = 0


def _finish(core: Core, job: Job | None) -> None:
    assert job is not None
    core.jobs.wait(job.id, timeout_s=WAIT_S)


# -- what is there before -----------------------------------------------------------------


def _run_one(core: Core) -> None:
    _finish(core, core.instances.request_start(StartRequest(service_id=SERVICE), by=OPERATOR).job)


def _lose_the_memory(core: Core) -> None:
    _, service_vm = core.catalog.startable(SERVICE)
    core.background.store.service_vms.replace(replace(service_vm, memory=None))


def _let_one_wait(core: Core) -> None:
    # Popularity comes from a start; the pool is filled by the next round of reconciliation.
    _run_one(core)
    deadline = core.clock.monotonic() + WAIT_S
    while core.clock.monotonic() < deadline:
        core.clock.sleep(0.05)
        if core.background.store.warm_domains.count():
            return


# -- what makes the Job run ---------------------------------------------------------------


def _start(core: Core, _files: Path) -> None:
    _run_one(core)


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


def _fill(core: Core, _files: Path) -> None:
    _let_one_wait(core)


# -- judgements ------------------------------------------------------------------------


def _started_or_gone(core: Core, job: Job) -> None:
    instance = core.instances.instance(_instance_id(job))
    expected = InstanceState.RUNNING if job.state is JobState.SUCCEEDED else InstanceState.FAILED
    assert instance.state is expected


def _stopped(core: Core, job: Job) -> None:
    assert job.state is JobState.SUCCEEDED
    assert core.instances.instance(_instance_id(job)).state is InstanceState.STOPPED


def _started_by(method: StartMethod) -> Callable[[Core, Job], None]:
    def judge(core: Core, job: Job) -> None:
        _started_or_gone(core, job)
        found = core.instances.instance(_instance_id(job)).start_method
        assert found in {method, None}

    return judge


def _came_in(core: Core, job: Job) -> None:
    if job.failure is not None and job.failure.message == BROKEN:
        assert NEW_SERVICE not in {service.id for service in core.catalog.all_services()}
        return
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


SCENARIOS: Mapping[str, Scenario] = {
    "cold start": Scenario(
        kind=JobKind.INSTANCE_START,
        provoke=_start,
        judge=_started_by(StartMethod.COLD),
        set_up=_lose_the_memory,
    ),
    "clone": Scenario(
        kind=JobKind.INSTANCE_START, provoke=_start, judge=_started_by(StartMethod.CLONE)
    ),
    "waiting copy": Scenario(
        kind=JobKind.INSTANCE_START,
        provoke=_start,
        judge=_started_by(StartMethod.WARM),
        set_up=_let_one_wait,
        warm_total=1,
    ),
    "stop": Scenario(kind=JobKind.INSTANCE_STOP, provoke=_stop, judge=_stopped, set_up=_run_one),
    "add": Scenario(kind=JobKind.SERVICE_ADD, provoke=_add, judge=_came_in),
    "import": Scenario(kind=JobKind.SERVICE_IMPORT, provoke=_import, judge=_came_in),
    "prepare": Scenario(kind=JobKind.SERVICE_PREPARE, provoke=_prepare, judge=_prepared_or_not),
    "export": Scenario(kind=JobKind.SERVICE_EXPORT, provoke=_export, judge=_exported_or_not),
    "remove": Scenario(
        kind=JobKind.SERVICE_REMOVE, provoke=_remove, judge=_removed, set_up=_run_one
    ),
    "fill": Scenario(kind=JobKind.WARM_FILL, provoke=_fill, judge=_waiting_or_gone, warm_total=1),
}
