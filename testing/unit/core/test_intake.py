# SPDX-License-Identifier: Apache-2.0
"""Services from outside: through the gate, published whole or not at all."""

from functools import partial

import pytest

from pycloud.adapters.fakes import fake_qcow2, fake_raw, fake_save_image
from pycloud.core.access import ADMIN
from pycloud.core.intake import AddRequest, ImportRequest
from pycloud.core.model.catalog import DiskFormat, MemoryKind
from pycloud.core.model.identifiers import ServiceId
from pycloud.core.model.runtime import JobKind, JobState, StartMethod
from pycloud.errors import (
    Conflict,
    DuplicateRecord,
    HypervisorError,
    InsufficientStorage,
    InvalidInput,
    NotFound,
)
from testing.composed import a_core
from testing.factories import HISTOGRAM, a_service_draft
from testing.unit.core.races import at_once
from testing.unit.core.steps import a_package, crash, request_import


@pytest.fixture
def empty():
    return a_core()


def finished(composed, job):
    composed.run_jobs()
    return composed.core.jobs.job(job.id)


# -- add ------------------------------------------------------------------------------------


def test_added_service_can_be_started(empty):
    service = empty.add_service()

    service_vm = empty.core.catalog.startable(service.id)[1]
    assert (service_vm.source, service_vm.memory) == ("disk.qcow2", None)
    assert service_vm.machine.cpu_model == empty.hypervisor.facts().cpu_model
    assert empty.start(HISTOGRAM).state == "running"


def test_add_consumes_the_upload(empty):
    empty.add_service()

    assert (empty.store.uploads.count(), empty.blobs.areas()) == (0, ())


def test_add_prepares_a_memory_state_on_request(empty):
    empty.add_service(prepare=True)

    assert empty.core.catalog.startable(HISTOGRAM)[1].memory.kind is MemoryKind.TEMPLATE
    assert empty.start(HISTOGRAM).start_method is StartMethod.CLONE


def test_declared_raw_image_is_normalised(empty):
    upload = empty.upload(fake_raw(b"disk"))
    request = AddRequest(
        draft=a_service_draft(), upload_id=upload.id, declared=DiskFormat.RAW, prepare=False
    )

    job = finished(empty, empty.core.intake.request_add(request, by=ADMIN))

    assert (job.state, job.result["format"]) == (JobState.SUCCEEDED, "raw")


@pytest.mark.parametrize(
    ("content", "declared", "code"),
    [
        (b"not an image", None, "image_refused"),
        (fake_raw(), None, "image_refused"),
        (fake_qcow2(), DiskFormat.RAW, "image_refused"),
        (fake_qcow2(virtual_size_bytes=1 << 40), None, "quota_exceeded"),
    ],
)
def test_refused_image_keeps_the_upload_and_leaves_nothing_else(empty, content, declared, code):
    upload = empty.upload(content)
    request = AddRequest(draft=a_service_draft(), upload_id=upload.id, declared=declared)

    job = finished(empty, empty.core.intake.request_add(request, by=ADMIN))

    assert (job.state, job.failure.code) == (JobState.FAILED, code)
    assert empty.core.uploads.upload(upload.id).offset_bytes == len(content)
    assert (empty.store.services.count(), empty.store.service_vms.count()) == (0, 0)


def test_refused_upload_can_be_used_again_as_what_it_is(empty):
    upload = empty.upload(fake_raw(b"disk"))
    request = AddRequest(draft=a_service_draft(), upload_id=upload.id, prepare=False)
    finished(empty, empty.core.intake.request_add(request, by=ADMIN))
    again = AddRequest(
        draft=a_service_draft(), upload_id=upload.id, declared=DiskFormat.RAW, prepare=False
    )

    job = finished(empty, empty.core.intake.request_add(again, by=ADMIN))

    assert job.state is JobState.SUCCEEDED


def test_full_disk_fails_the_add_and_keeps_the_upload(empty):
    job = empty.request_service()
    empty.blobs.set_free_bytes(10)

    found = finished(empty, job)

    assert found.failure.code == InsufficientStorage.code
    assert (empty.store.uploads.count(), empty.store.service_vms.count()) == (1, 0)


def test_upload_serves_one_job_at_a_time(empty):
    upload = empty.upload()
    requests = [
        AddRequest(draft=a_service_draft(id=ServiceId(f"s{number}")), upload_id=upload.id)
        for number in range(6)
    ]

    results = at_once([partial(empty.core.intake.request_add, one, by=ADMIN) for one in requests])

    refused = [result for result in results if isinstance(result, Conflict)]
    assert len(refused) == 5
    assert len(empty.jobs(JobState.QUEUED)) == 1


@pytest.mark.parametrize("id_", ["", "../x", "a b", "x" * 65, "-x"])
def test_hostile_service_id_is_refused(empty, id_):
    with pytest.raises(InvalidInput):
        empty.request_service(a_service_draft(id=ServiceId(id_)))


def test_id_that_is_taken_is_refused_at_once(empty):
    empty.add_service()

    with pytest.raises(DuplicateRecord):
        empty.request_service()


def test_id_that_is_taken_meanwhile_fails_the_job_and_keeps_the_upload(empty):
    first = empty.request_service()
    empty.clock.advance(1)
    second = empty.request_service()

    empty.run_jobs()

    jobs = [empty.core.jobs.job(job.id) for job in (first, second)]
    assert [job.state for job in jobs] == [JobState.SUCCEEDED, JobState.FAILED]
    assert jobs[1].failure.code == DuplicateRecord.code
    assert empty.core.catalog.service(HISTOGRAM).service_vm_id == first.id
    assert (empty.store.service_vms.count(), empty.store.uploads.count()) == (1, 1)


def test_unknown_and_incomplete_uploads_are_refused(empty):
    with pytest.raises(NotFound):
        empty.core.intake.request_add(
            AddRequest(draft=a_service_draft(), upload_id="nothing"), by=ADMIN
        )
    upload = empty.core.uploads.create("disk", 100, by=ADMIN)

    with pytest.raises(Conflict, match="only 0 of 100 bytes"):
        empty.core.intake.request_add(
            AddRequest(draft=a_service_draft(), upload_id=upload.id), by=ADMIN
        )


def test_cancelled_add_keeps_the_upload_and_leaves_nothing_else():
    def cancel(kind, name, moment):
        if (kind, name, moment) == (JobKind.SERVICE_ADD, "publish", "end"):
            composed.core.jobs.cancel(job.id, by=ADMIN)

    composed = a_core(observers=(cancel,))
    job = composed.request_service()

    assert finished(composed, job).state is JobState.CANCELLED
    assert (composed.store.services.count(), composed.store.service_vms.count()) == (0, 0)
    assert composed.store.uploads.count() == 1


@pytest.mark.parametrize("moment", ["begin", "end"])
@pytest.mark.parametrize("step", ["inspect", "normalise", "publish", "finish"])
def test_crashed_add_is_finished(empty, step, moment):
    job = empty.request_service(prepare=True)
    crash(empty, job, step, moment)
    empty.clock.advance(10)

    empty.core.background.runner.recover()
    empty.run_jobs()
    empty.reconcile(3)

    assert empty.core.jobs.job(job.id).state is JobState.SUCCEEDED
    assert empty.core.catalog.startable(HISTOGRAM)[1].memory is not None
    assert empty.leftovers() == ()


# -- import -------------------------------------------------------------------------------------


def test_imported_state_is_used(empty):
    state = fake_save_image(memory_mib=256, vcpus=1)

    job = finished(empty, request_import(empty, a_package(state=state)))

    assert job.result["memory"] == "imported"
    assert empty.start(HISTOGRAM).start_method is StartMethod.RESTORE


@pytest.mark.parametrize(
    "state", [b"garbage", fake_save_image(memory_mib=512, vcpus=1), None], ids=str
)
def test_state_that_does_not_fit_is_replaced_by_a_fresh_one(empty, state):
    job = finished(empty, request_import(empty, a_package(state=state)))

    assert job.state is JobState.SUCCEEDED
    assert empty.start(HISTOGRAM).start_method is StartMethod.CLONE


def test_import_gives_the_service_another_id_on_request(empty):
    job = finished(empty, request_import(empty, a_package(), service_id=ServiceId("mine")))

    assert job.result["service_id"] == "mine"
    assert empty.core.catalog.service(ServiceId("mine")).port == 8080


def test_import_rescues_a_package_whose_own_id_is_not_allowed_here(empty):
    package = a_package(a_service_draft(id=ServiceId("my service")))

    refused = finished(empty, request_import(empty, package))
    job = finished(empty, request_import(empty, package, service_id=ServiceId("mine")))

    assert refused.failure.code == "package_refused"
    assert (job.state, job.result["service_id"]) == (JobState.SUCCEEDED, "mine")


def test_import_under_a_hostile_id_is_refused_at_once(empty):
    with pytest.raises(InvalidInput):
        request_import(empty, a_package(), service_id=ServiceId("../x"))


def test_import_of_something_else_is_refused(empty):
    job = finished(empty, request_import(empty, b"something else"))

    assert (job.failure.code, empty.store.uploads.count()) == ("package_refused", 1)


def test_import_of_a_taken_id_is_refused(empty):
    empty.add_service()

    assert finished(empty, request_import(empty, a_package())).failure.code == "already_exists"


@pytest.mark.parametrize("moment", ["begin", "end"])
@pytest.mark.parametrize("step", ["unpack", "normalise", "publish", "memory", "finish"])
def test_crashed_import_is_finished(empty, step, moment):
    state = fake_save_image(memory_mib=256, vcpus=1)
    job = request_import(empty, a_package(state=state))
    crash(empty, job, step, moment)
    empty.clock.advance(10)

    empty.core.background.runner.recover()
    empty.run_jobs()
    empty.reconcile(3)

    assert empty.core.jobs.job(job.id).state is JobState.SUCCEEDED
    assert empty.core.catalog.startable(HISTOGRAM)[1].memory is not None
    assert empty.leftovers() == ()
    needed = empty.core.catalog.referenced_blobs()
    assert {blob.id for blob in empty.blobs.stored()} == needed


@pytest.mark.parametrize("step", ["unpack", "normalise", "publish", "memory"])
def test_cancelled_import_leaves_the_upload_alone(step):
    def cancel(_kind, name, moment):
        if (name, moment) == (step, "end"):
            composed.core.jobs.cancel(job.id, by=ADMIN)

    composed = a_core(observers=(cancel,))
    job = request_import(composed, a_package(state=fake_save_image(memory_mib=256, vcpus=1)))

    assert finished(composed, job).state is JobState.CANCELLED
    (upload,) = composed.core.uploads.uploads().items
    assert composed.blobs.staged_names(upload.id) == ("content",)


def test_import_can_be_tried_again_with_the_upload_that_a_failure_left(empty):
    empty.add_service()
    upload = empty.upload(a_package(), file_name="theirs.csvm")
    failed = finished(
        empty, empty.core.intake.request_import(ImportRequest(upload_id=upload.id), by=ADMIN)
    )
    left = empty.blobs.staged_names(upload.id)

    again = ImportRequest(upload_id=upload.id, service_id=ServiceId("mine"))
    job = finished(empty, empty.core.intake.request_import(again, by=ADMIN))

    assert (failed.failure.code, left) == ("already_exists", ("content",))
    assert job.state is JobState.SUCCEEDED


def test_crashed_import_that_is_cancelled_then_leaves_the_upload_alone(empty):
    job = request_import(empty, a_package())
    crash(empty, job, "unpack", "end")
    empty.clock.advance(10)
    empty.core.jobs.cancel(job.id, by=ADMIN)

    empty.core.background.runner.recover()
    empty.run_jobs()

    assert empty.core.jobs.job(job.id).state is JobState.CANCELLED
    assert empty.blobs.staged_names(job.arguments["upload_id"]) == ("content",)


def test_import_that_fails_late_leaves_no_service(empty):
    empty.hypervisor.fail_next("adopt_save_image", HypervisorError("no"))
    state = fake_save_image(memory_mib=256, vcpus=1)

    job = finished(empty, request_import(empty, a_package(state=state)))

    assert job.state is JobState.FAILED
    assert (empty.store.services.count(), empty.store.service_vms.count()) == (0, 0)
