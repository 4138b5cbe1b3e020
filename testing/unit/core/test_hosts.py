# SPDX-License-Identifier: Apache-2.0
"""Two hosts that share nothing but their records: each keeps its hands off the other's things."""

from dataclasses import replace
from datetime import timedelta
from io import BytesIO

import pytest

from pycloud.core.access import ADMIN
from pycloud.core.apps import AppDraft
from pycloud.core.intake import AddRequest
from pycloud.core.model.identifiers import HostId
from pycloud.core.model.runtime import InstanceState, JobKind, JobState
from pycloud.core.removal import RunningInstances
from pycloud.errors import OnAnotherHost
from pycloud.wiring import assemble
from testing.composed import a_core
from testing.factories import (
    HISTOGRAM,
    THIS_HOST,
    a_job,
    a_package,
    a_port_lease,
    a_service_draft,
    a_service_vm,
    an_app,
    an_instance,
)
from testing.unit.core.steps import crash, fill, instance_of

NEXT_DOOR = HostId("next-door")
ROUNDS = 6


@pytest.fixture
def here():
    """A host that has a Service with a memory state."""
    composed = a_core()
    composed.add_service(prepare=True)
    return composed


@pytest.fixture
def there(here):
    """A host on the same store that has no Service of its own."""
    return here.on_another_host()


# -- starting from elsewhere ------------------------------------------------------------


def test_start_asked_for_elsewhere_is_made_by_the_host_that_has_the_service(here, there):
    started = there.request_start(HISTOGRAM)
    there.run_jobs()
    untouched = there.core.jobs.job(started.job.id)
    here.run_jobs()

    job = there.core.jobs.wait(started.job.id, timeout_s=1)
    instance = instance_of(there, started.instance)
    assert (untouched.state, untouched.host_id) == (JobState.QUEUED, THIS_HOST)
    assert job.state is JobState.SUCCEEDED
    assert (instance.state, instance.host_id) == (InstanceState.RUNNING, THIS_HOST)
    assert instance.address == here.sensors.published_address()
    assert [domain.owner for domain in here.hypervisor.domains()] == [instance.id]
    assert there.leftovers() == ()


def test_running_server_leaves_jobs_of_another_host_alone(here, there):
    there.core.background.runner.start()
    try:
        started = there.request_start(HISTOGRAM)
        there.core.background.runner.stop()
    finally:
        there.core.background.runner.stop()

    assert there.core.jobs.job(started.job.id).state is JobState.QUEUED


def test_many_jobs_of_another_host_do_not_hide_ones_own(here, there):
    for _ in range(501):
        there.store.jobs.add(a_job(host_id=THIS_HOST, created_at=here.clock.now()))

    there.add_service(a_service_draft(id="mine"))

    assert there.core.catalog.service("mine").service_vm_id is not None


def test_waiting_copy_is_claimed_from_elsewhere(here, there):
    fill(here)

    started = there.request_start(HISTOGRAM)
    here.run_jobs()

    assert instance_of(there, started.instance).start_method == "warm"


def test_running_instance_is_joined_from_elsewhere():
    here = a_core()
    here.add_service(a_service_draft(sharing_limit=3))
    there = here.on_another_host()
    instance = here.start(HISTOGRAM, "share")

    joined = there.request_start(HISTOGRAM, "share")

    assert (joined.instance.id, joined.instance.users) == (instance.id, 2)


def test_stop_asked_for_elsewhere_is_done_where_the_instance_runs(here, there):
    instance = here.start(HISTOGRAM)

    there.stop(instance.id)
    here.run_jobs()

    assert instance_of(there, instance).state is InstanceState.STOPPED
    assert here.leftovers() == ()


def test_each_host_leases_its_own_ports(here, there):
    for composed in (here, there):
        composed.core.system.placement.lease_port("holder", 80)
        composed.store.port_leases.add(
            a_port_lease(host_id=composed.core.system.placement.host_id, port=30000)
        )

    assert here.store.port_leases.count() == 4


# -- comparing records and reality -----------------------------------------------------


def test_reconciliation_leaves_instances_of_another_host_alone(here, there):
    instance = here.start(HISTOGRAM)

    there.reconcile(ROUNDS)

    assert instance_of(here, instance) == instance
    assert here.store.port_leases.count({"holder": instance.id}) == 1
    assert here.core.system.placement.holders() == {instance.id}


@pytest.mark.parametrize("state", [InstanceState.STARTING, InstanceState.STOPPING])
def test_instance_without_a_job_is_repaired_by_its_own_host_alone(here, there, state):
    instance = here.store.instances.add(an_instance(state=state))

    there.reconcile(ROUNDS)
    untouched = instance_of(here, instance)
    here.reconcile(2)
    here.run_jobs()

    assert untouched == instance
    assert instance_of(here, instance).state in {InstanceState.FAILED, InstanceState.STOPPED}


def test_waiting_copies_of_another_host_are_left_alone(here, there):
    fill(here)

    there.reconcile(ROUNDS)
    there.core.background.reconciler.warm_pool.evict_service(HISTOGRAM)

    assert here.store.warm_domains.count() == 1
    assert not there.core.background.reconciler.warm_pool.evict_one()


def test_no_copies_are_made_of_a_service_of_another_host(here, there):
    service = here.core.catalog.service(HISTOGRAM)
    here.store.services.replace(replace(service, warm_count=1))

    there.reconcile()

    assert here.store.jobs.count({"kind": JobKind.WARM_FILL}) == 0


def test_copies_that_another_host_makes_take_no_place_of_ones_own(here, there):
    here.store.jobs.add(
        a_job(
            kind=JobKind.WARM_FILL,
            host_id=NEXT_DOOR,
            arguments={"service_id": HISTOGRAM, "owner": "x"},
        )
    )
    fill(here)

    assert here.store.warm_domains.find().items[0].host_id == THIS_HOST


def test_job_whose_server_died_is_undone_on_its_own_host(here, there):
    started = here.request_start(HISTOGRAM)
    crash(here, started.job, "boot")
    here.clock.advance(60)

    there.core.background.runner.recover()
    untouched = here.core.jobs.job(started.job.id)
    here.core.background.runner.recover()

    assert untouched.state is JobState.RUNNING
    assert here.core.jobs.job(started.job.id).failure.code == "interrupted"
    assert here.leftovers() == ()


def test_overdue_instance_is_stopped_by_its_own_host_alone(here, there):
    instance = here.start(HISTOGRAM)
    here.store.instances.replace(replace(instance, expires_at=here.clock.now()))

    there.reconcile()
    untouched = instance_of(here, instance)
    here.reconcile()

    assert untouched.state is InstanceState.RUNNING
    assert instance_of(here, instance).state is InstanceState.STOPPING


def test_domain_of_another_hosts_instance_is_no_orphan(here, there):
    """Two servers may have a hypervisor in common and nothing else."""
    instance = here.start(HISTOGRAM)
    ports = replace(there.ports, hypervisor=here.hypervisor, view=here.hypervisor)
    beside = replace(there, core=assemble(there.core.settings, ports))

    beside.reconcile(ROUNDS)

    assert [domain.owner for domain in here.hypervisor.domains()] == [instance.id]


def test_lost_service_vm_is_swept_by_its_own_host_alone(here, there):
    lost = here.store.service_vms.add(a_service_vm(service_id="gone", host_id=THIS_HOST))

    there.reconcile(ROUNDS)
    kept = here.store.service_vms.get(lost.id)
    here.reconcile(2)

    assert kept == lost
    assert here.core.catalog.service_vms("gone").items == ()


def test_content_goes_although_another_host_brings_content_in(here, there):
    blob = here.blobs.put(b"nobody needs it")
    here.store.jobs.add(a_job(kind=JobKind.SERVICE_ADD, host_id=NEXT_DOOR))

    here.reconcile(2)

    assert blob.id not in {ref.id for ref in here.blobs.stored()}


def test_content_stays_while_its_own_host_brings_content_in(here):
    blob = here.blobs.put(b"nobody needs it yet")
    here.store.jobs.add(a_job(kind=JobKind.SERVICE_ADD, host_id=THIS_HOST))

    here.reconcile(2)

    assert blob.id in {ref.id for ref in here.blobs.stored()}


def test_staging_areas_of_both_hosts_are_kept_while_they_are_used(here, there):
    uploads = [composed.upload(b"an image") for composed in (here, there)]

    here.reconcile(ROUNDS)
    there.reconcile(ROUNDS)

    assert here.blobs.areas() == (uploads[0].id,)
    assert there.blobs.areas() == (uploads[1].id,)


def test_forgotten_upload_is_dropped_by_its_own_host_alone(here, there):
    upload = here.upload(b"an image")
    here.store.uploads.replace(replace(upload, expires_at=here.clock.now() - timedelta(days=1)))

    there.reconcile(ROUNDS)
    kept = here.store.uploads.count()
    here.reconcile()

    assert kept == 1
    assert (here.store.uploads.count(), here.blobs.areas()) == (0, ())


def test_record_from_before_hosts_were_told_apart_is_everybodys(here):
    job = here.store.jobs.add(a_job(host_id=HostId(""), arguments={"instance_id": "gone"}))

    here.run_jobs()

    assert here.core.jobs.job(job.id).host_id == THIS_HOST


# -- content ----------------------------------------------------------------------------


def test_service_from_an_upload_elsewhere_is_made_where_the_upload_is(here, there):
    upload = here.upload()
    request = AddRequest(draft=a_service_draft(id="new"), upload_id=upload.id, prepare=True)

    there.core.intake.request_add(request, by=ADMIN)
    there.run_jobs()
    here.run_jobs()

    service_vm = there.core.catalog.startable("new")[1]
    assert service_vm.host_id == THIS_HOST
    assert service_vm.memory is not None


@pytest.mark.parametrize("ask", ["prepare", "export", "remove"])
def test_work_on_a_service_is_done_where_it_is_stored(here, there, ask):
    core = there.core
    job = {
        "prepare": lambda: core.templates.request_prepare(HISTOGRAM, by=ADMIN),
        "export": lambda: core.exports.request_export(HISTOGRAM, by=ADMIN),
        "remove": lambda: core.removal.request_remove(
            HISTOGRAM, RunningInstances.STOP, generation=None, by=ADMIN
        ),
    }[ask]()

    there.run_jobs()
    untouched = core.jobs.job(job.id)
    here.run_jobs()

    assert (untouched.state, untouched.host_id) == (JobState.QUEUED, THIS_HOST)
    assert core.jobs.job(job.id).state is JobState.SUCCEEDED


def test_finished_package_says_where_it_is(here):
    here.core.exports.request_export(HISTOGRAM, by=ADMIN)
    here.run_jobs()

    assert here.core.exports.list_packages().items[0].host_id == THIS_HOST


@pytest.mark.parametrize(
    "ask",
    [
        lambda core, told: core.instances.pause(told["instance"], by=ADMIN),
        lambda core, told: core.instances.resume(told["paused"], by=ADMIN),
        lambda core, told: core.instances.serial_tail(told["instance"], limit_bytes=9),
        lambda core, told: core.uploads.append(told["upload"], 0, BytesIO(b"x")),
        lambda core, told: core.apps.add(AppDraft(name="a"), told["whole"], by=ADMIN),
        lambda core, told: core.apps.open(told["app"]),
        lambda core, told: core.exports.open(told["package"]),
    ],
    ids=["pause", "resume", "serial", "append", "add app", "open app", "open package"],
)
def test_what_only_its_own_host_can_do_is_refused_with_its_name(here, there, ask):
    running, paused = here.start(HISTOGRAM), here.start(HISTOGRAM)
    here.core.instances.pause(paused.id, by=ADMIN)
    told = {
        "instance": running.id,
        "paused": paused.id,
        "upload": here.core.uploads.create("disk", 4, by=ADMIN).id,
        "whole": here.upload(b"an app").id,
        "app": an_app(host_id=THIS_HOST),
        "package": a_package(host_id=THIS_HOST),
    }

    with pytest.raises(OnAnotherHost, match=THIS_HOST) as caught:
        ask(there.core, told)

    assert caught.value.host_id == THIS_HOST


def test_discarded_upload_leaves_the_disk_of_its_own_host(here, there):
    upload = here.upload(b"an image")

    there.core.uploads.discard(upload.id)
    here.reconcile(2)

    assert here.blobs.areas() == ()
