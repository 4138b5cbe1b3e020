# SPDX-License-Identifier: Apache-2.0
"""Records, hypervisor, disks and leases agree again after anything died."""

from dataclasses import replace
from datetime import timedelta
from io import BytesIO

import pytest

from pycloud.core import reconcile
from pycloud.core.access import ADMIN
from pycloud.core.machines import domain_id_of, domain_spec
from pycloud.core.model.identifiers import InstanceId, JobId
from pycloud.core.model.runtime import InstanceState, JobKind, JobState, PortMapping
from pycloud.errors import HypervisorError, HypervisorUnavailable, StoreError
from testing.composed import BASE_SETTINGS, a_core
from testing.factories import (
    HISTOGRAM,
    a_job,
    a_package,
    a_port_lease,
    a_service_vm,
    an_idempotent_reply,
    an_upload,
)
from testing.unit.core.steps import crash, instance_of


def run_domain_of(composed, owner):
    """Leave a domain with its disk behind, as a server that died would."""
    service, service_vm = composed.core.catalog.startable(HISTOGRAM)
    network = composed.core.background.reconciler.guests.options.network
    ports = (PortMapping(guest_port=8080, host_port=20500),)
    spec = domain_spec(InstanceId(owner), service, service_vm, ports=ports, network=network)
    composed.hypervisor.start(spec, on_phase=lambda _phase: None)


# -- instances and their domains ------------------------------------------------------------------


def test_running_instance_is_left_alone(cold):
    instance = cold.start(HISTOGRAM)

    cold.reconcile(5)

    assert instance_of(cold, instance) == instance
    assert cold.hypervisor.domain(instance.domain_id).state == "running"


def test_running_instance_is_left_alone_by_a_new_server(cold):
    instance = cold.start(HISTOGRAM)

    cold.another_server().reconcile(5)

    assert instance_of(cold, instance) == instance


@pytest.mark.parametrize("fixture", ["instant", "warm"])
def test_running_copy_is_left_alone(fixture, request):
    composed = request.getfixturevalue(fixture)
    instance = composed.start(HISTOGRAM)

    composed.reconcile(5)

    assert instance_of(composed, instance) == instance


def test_crashed_guest_is_recorded_with_its_last_words(cold):
    instance = cold.start(HISTOGRAM)
    cold.hypervisor.write_serial(instance.id, b"Kernel panic")
    cold.hypervisor.crash(instance.domain_id)

    cold.reconcile(2)

    found = instance_of(cold, instance)
    assert (found.state, found.failure.code) == (InstanceState.FAILED, "guest_ended")
    assert found.serial_output == "Kernel panic"
    assert cold.leftovers() == ()


@pytest.mark.parametrize("end", ["power_off", "reboot_host"])
def test_vanished_guest_is_recorded_and_its_room_freed(cold, end):
    instance = cold.start(HISTOGRAM)
    if end == "power_off":
        cold.hypervisor.power_off(instance.domain_id)
    else:
        cold.hypervisor.reboot_host()

    cold.reconcile(2)

    assert instance_of(cold, instance).state is InstanceState.FAILED
    assert cold.leftovers() == ()


def test_guest_that_is_missing_only_once_is_kept(cold):
    instance = cold.start(HISTOGRAM)
    domains = cold.hypervisor.domains
    cold.hypervisor.domains = lambda: ()
    cold.reconcile()
    cold.hypervisor.domains = domains

    cold.reconcile(2)

    assert instance_of(cold, instance).state is InstanceState.RUNNING


def test_guest_is_not_judged_by_two_rounds_in_quick_succession(cold):
    instance = cold.start(HISTOGRAM)
    cold.hypervisor.power_off(instance.domain_id)

    for _ in range(5):
        cold.core.background.reconciler.run()

    assert instance_of(cold, instance).state is InstanceState.RUNNING


@pytest.mark.parametrize("state", ["paused", "running"])
def test_guest_in_another_state_than_recorded_is_adopted(cold, state):
    instance = cold.start(HISTOGRAM)
    if state == "paused":
        cold.hypervisor.pause(instance.domain_id)
    else:
        cold.core.instances.pause(instance.id, by=ADMIN)
        cold.hypervisor.resume(instance.domain_id)

    cold.reconcile(2)

    assert instance_of(cold, instance).state == state


def test_guest_that_found_no_room_on_the_disk_goes_on(cold):
    instance = cold.start(HISTOGRAM)
    cold.hypervisor.stall(instance.domain_id)

    cold.reconcile()

    assert cold.hypervisor.domain(instance.domain_id).state == "running"
    assert instance_of(cold, instance) == instance


def test_guest_without_room_is_left_alone_when_its_user_paused_it(cold):
    instance = cold.start(HISTOGRAM)
    paused = cold.core.instances.pause(instance.id, by=ADMIN)
    cold.hypervisor.stall(instance.domain_id)

    cold.reconcile(5)

    assert cold.hypervisor.domain(instance.domain_id).state == "stalled"
    assert instance_of(cold, instance) == paused


def test_migrating_instance_is_left_alone(cold):
    instance = cold.start(HISTOGRAM)
    moving = cold.store.instances.replace(replace(instance, state=InstanceState.MIGRATING))

    cold.reconcile(5)

    assert instance_of(cold, instance) == moving
    assert cold.hypervisor.domain(instance.domain_id).state == "running"


def test_nothing_is_touched_while_the_hypervisor_is_away(cold):
    instance = cold.start(HISTOGRAM)
    cold.hypervisor.available = False

    cold.reconcile(5)
    cold.hypervisor.available = True

    assert instance_of(cold, instance) == instance
    assert len(cold.hypervisor.domains()) == 1


def test_domain_and_disk_of_nobody_are_removed(cold):
    run_domain_of(cold, "nobody")

    cold.reconcile(2)

    assert cold.leftovers() == ()


def test_disk_of_nobody_is_removed(cold):
    run_domain_of(cold, "nobody")
    cold.hypervisor.power_off(domain_id_of(InstanceId("nobody")))

    cold.reconcile(2)

    assert cold.leftovers() == ()


def test_domain_of_an_active_job_is_kept(cold):
    job = cold.store.jobs.add(
        a_job(
            id=JobId("preparing"),
            kind=JobKind.SERVICE_PREPARE,
            state=JobState.RUNNING,
            lease_owner="other",
        )
    )
    run_domain_of(cold, "preparing")

    for _ in range(5):
        end = cold.clock.now() + timedelta(seconds=8)
        job = cold.store.jobs.replace(replace(job, lease_expires_at=end))
        cold.reconcile()

    assert len(cold.hypervisor.domains()) == 1


def test_domain_that_cannot_be_removed_does_not_keep_the_others(cold):
    run_domain_of(cold, "one")
    cold.hypervisor.power_off(domain_id_of(InstanceId("one")))
    run_domain_of(cold, "two")
    cold.hypervisor.fail_next("destroy", HypervisorError("no"))

    cold.reconcile(2)

    assert len(cold.leftovers()) < 3
    cold.reconcile(2)
    assert cold.leftovers() == ()


# -- requests and jobs that died ----------------------------------------------------------------------


@pytest.mark.parametrize("fixture", ["cold", "warm"])
def test_instance_whose_job_was_never_stored_fails(fixture, request):
    composed = request.getfixturevalue(fixture)
    started = composed.request_start(HISTOGRAM)
    composed.store.jobs.remove(started.job.id)

    composed.reconcile(2)

    found = instance_of(composed, started.instance)
    assert (found.state, found.failure.code) == (InstanceState.FAILED, "interrupted")
    assert composed.leftovers() == ()


def test_waiting_copy_that_was_claimed_for_no_instance_is_removed(warm):
    copy = warm.store.warm_domains.find().items[0]
    service = warm.core.catalog.service(HISTOGRAM)
    warm.store.services.replace(replace(service, warm_count=0))
    warm.store.warm_domains.remove(copy.id)

    warm.reconcile(3)

    assert warm.leftovers() == ()


def test_stop_whose_job_was_never_stored_is_done(cold):
    instance = cold.start(HISTOGRAM)
    job = cold.core.instances.request_stop(instance.id, by=ADMIN)
    cold.store.jobs.remove(job.id)

    cold.reconcile(2)
    cold.run_jobs()

    assert instance_of(cold, instance).state is InstanceState.STOPPED


def test_stop_that_failed_is_tried_until_it_succeeds(cold):
    instance = cold.start(HISTOGRAM)
    for _ in range(3):
        cold.hypervisor.fail_next("destroy", HypervisorError("no"))
    cold.stop(instance.id)

    for _ in range(8):
        cold.reconcile()
        cold.run_jobs()

    assert instance_of(cold, instance).state is InstanceState.STOPPED
    assert cold.leftovers() == ()


def test_crashed_start_is_rolled_back(cold):
    started = cold.request_start(HISTOGRAM)
    crash(cold, started.job, "boot")

    cold.reconcile(3)

    assert instance_of(cold, started.instance).state is InstanceState.FAILED
    assert cold.leftovers() == ()


def test_undo_that_failed_is_made_up_for(cold):
    cold.hypervisor.fail_next("destroy", HypervisorError("no"))
    started = cold.request_start(HISTOGRAM)
    crash(cold, started.job, "boot")

    cold.reconcile(6)

    assert cold.leftovers() == ()


# -- leases, copies, staging, content ------------------------------------------------------------------


def test_claims_and_ports_of_nobody_are_given_back(cold):
    cold.core.system.placement.claim("nobody", cold.core.catalog.service(HISTOGRAM).flavor)
    cold.store.port_leases.add(a_port_lease(holder="nobody"))

    cold.reconcile(2)

    assert cold.leftovers() == ()


def test_blocked_port_is_given_out_again_after_a_while(cold):
    cold.core.system.placement.lease_port("somebody", 80)
    port = cold.store.port_leases.find().items[0].port
    cold.core.system.placement.block_port(port)
    cold.reconcile()
    before = cold.store.port_leases.count()
    cold.clock.advance(400)

    cold.reconcile()

    assert (before, cold.store.port_leases.count()) == (1, 0)


@pytest.mark.parametrize("end", ["crash", "power_off"])
def test_dead_waiting_copy_is_forgotten(warm, end):
    copy = warm.store.warm_domains.find().items[0]
    service = warm.core.catalog.service(HISTOGRAM)
    getattr(warm.hypervisor, end)(copy.domain_id)
    warm.store.services.replace(replace(service, warm_count=0))

    warm.reconcile(4)

    assert warm.store.warm_domains.count() == 0
    assert warm.leftovers() == ()


def test_staging_area_of_nobody_is_removed(cold):
    cold.blobs.append("nobody", "file", BytesIO(b"x"), offset_bytes=0, limit_bytes=10)

    cold.reconcile(2)

    assert cold.blobs.areas() == ()


def test_staging_area_of_an_upload_is_kept(cold):
    upload = cold.upload()

    cold.reconcile(5)

    assert cold.blobs.areas() == (upload.id,)


def test_service_vm_without_service_is_removed_with_its_content(cold):
    content = cold.blobs.put(b"lost")
    lost = a_service_vm(service_id="gone", disk=replace(a_service_vm().disk, blob=content))
    cold.store.service_vms.add(lost)

    cold.reconcile(6)

    assert [one.id for one in cold.store.service_vms.find().items] != [lost.id]
    assert content.id not in {blob.id for blob in cold.blobs.stored()}


def test_content_in_use_is_kept(instant):
    before = {blob.id for blob in instant.blobs.stored()}

    instant.reconcile(6)

    assert {blob.id for blob in instant.blobs.stored()} == before
    assert len(before) == 4


def test_content_goes_though_a_finished_upload_lies_there(cold):
    """Who removes something to make room for an upload wants the room now."""
    cold.upload(b"waits to be used")
    lost = cold.blobs.put(b"lost")

    cold.reconcile(3)

    assert lost.id not in {blob.id for blob in cold.blobs.stored()}


def test_content_is_kept_while_a_job_may_be_about_to_use_it(cold):
    content = cold.blobs.put(b"just adopted")
    cold.store.jobs.add(a_job(kind=JobKind.SERVICE_IMPORT, created_at=cold.clock.now()))

    cold.reconcile(5)

    assert content.id in {blob.id for blob in cold.blobs.stored()}


def test_content_that_comes_in_again_at_the_last_moment_is_kept(cold):
    content = cold.blobs.put(b"again")
    cold.reconcile()
    stored = cold.blobs.stored

    def published():
        blobs = list(stored())
        later = cold.clock.now() + timedelta(hours=1)
        cold.store.packages.add(a_package(blob=content, expires_at=later))
        return iter(blobs)

    cold.blobs.stored = published

    cold.reconcile()

    cold.blobs.stored = stored
    assert content.id in {blob.id for blob in cold.blobs.stored()}


def test_content_of_the_501st_package_is_kept(cold):
    later = cold.clock.now() + timedelta(days=1)
    for number in range(501):
        blob = cold.blobs.put(f"package {number}".encode())
        cold.store.packages.add(a_package(blob=blob, expires_at=later))

    assert blob.id in cold.core.exports.referenced_blobs()


# -- time ------------------------------------------------------------------------------------------------


def test_finished_things_are_forgotten_after_a_while(cold):
    instance = cold.start(HISTOGRAM)
    cold.stop(instance.id)
    cold.store.idempotent_replies.add(an_idempotent_reply(expires_at=cold.clock.now()))
    cold.clock.advance(cold.core.settings.keep_finished_s + 1)

    cold.reconcile()

    counts = (
        cold.store.instances.count(),
        cold.store.jobs.count(),
        cold.store.idempotent_replies.count(),
    )
    assert counts == (0, 0, 0)


def test_finished_things_are_listed_for_a_while(cold):
    instance = cold.start(HISTOGRAM)
    cold.stop(instance.id)
    cold.clock.advance(cold.core.settings.keep_finished_s - 60)

    cold.reconcile()

    assert instance_of(cold, instance).state is InstanceState.STOPPED


def test_old_events_are_dropped():
    composed = a_core(settings=replace(BASE_SETTINGS, keep_events=100))
    for _ in range(40):
        composed.add_service()
        composed.store.services.remove(HISTOGRAM)
        composed.core.catalog.record(HISTOGRAM, "seen", ADMIN)

    composed.reconcile()

    assert len(composed.store.events.after(0, limit=1000)) == 100


def test_only_the_newest_of_what_ended_are_kept(cold, monkeypatch):
    monkeypatch.setattr(reconcile, "_MOST_FINISHED", 3)
    refused = []
    for _ in range(5):
        cold.hypervisor.fail_next("start", HypervisorError("no"))
        refused.append(cold.start(HISTOGRAM))
        cold.clock.advance(1)
    running = cold.start(HISTOGRAM)

    cold.reconcile()

    kept = [instance.id for instance in cold.store.instances.find().items]
    assert kept == [*(instance.id for instance in refused[-3:]), running.id]
    assert len(cold.jobs(JobState.FAILED)) == 3


def test_expired_upload_and_package_are_dropped(cold):
    cold.store.uploads.add(an_upload())
    cold.store.packages.add(a_package())

    cold.reconcile()

    assert (cold.store.uploads.count(), cold.store.packages.count()) == (0, 0)


def test_round_goes_on_when_a_part_fails(cold, caplog):
    cold.store.uploads.add(an_upload())
    cold.hypervisor.fail_next("domains", HypervisorUnavailable("away"))

    def crash_here(*_arguments, **_options):
        raise ZeroDivisionError

    cold.store.port_leases.find = crash_here
    cold.store.service_vms.find = _refuse

    cold.reconcile()

    assert cold.store.uploads.count() == 0
    events = {record.message for record in caplog.records}
    assert {"reconcile_failed", "reconcile_crashed"} <= events


def _refuse(*_arguments, **_options):
    raise StoreError("no")
