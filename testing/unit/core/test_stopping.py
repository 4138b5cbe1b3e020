# SPDX-License-Identifier: Apache-2.0
"""The end of Instances: asked for, overdue, or in the middle of something else; and pauses."""

from dataclasses import replace
from functools import partial

import pytest

from pycloud.core.access import ADMIN
from pycloud.core.instances import Join, StopMode
from pycloud.core.model.identifiers import DeviceId
from pycloud.core.model.runtime import InstanceState, JobKind, JobState
from pycloud.errors import (
    Conflict,
    DomainNotFound,
    IllegalTransition,
)
from testing.composed import BASE_SETTINGS, a_core
from testing.factories import HISTOGRAM, a_service_draft, an_instance
from testing.unit.core.races import at_once
from testing.unit.core.steps import instance_of

PHONE = DeviceId("phone")
SHARED = a_service_draft(sharing_limit=3)


def forget_job(composed, instance):
    """Bring about the moment between storing an Instance and storing its Job."""
    composed.store.jobs.remove(instance.job_id)


# -- stop --------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", list(StopMode))
def test_stop_leaves_nothing(cold, mode):
    instance = cold.start(HISTOGRAM)

    cold.core.instances.request_stop(instance.id, mode=mode, by=ADMIN)
    cold.run_jobs()

    assert instance_of(cold, instance).state is InstanceState.STOPPED
    assert cold.leftovers() == ()


def test_graceful_stop_ends_a_guest_that_does_not_listen(cold):
    instance = cold.start(HISTOGRAM)
    cold.hypervisor.ignores_shut_down = True

    cold.core.instances.request_stop(instance.id, mode=StopMode.GRACEFUL, by=ADMIN)
    cold.run_jobs()

    assert cold.leftovers() == ()


def test_stop_twice_returns_the_same_job(cold):
    instance = cold.start(HISTOGRAM)
    first = cold.core.instances.request_stop(instance.id, by=ADMIN)

    second = cold.core.instances.request_stop(instance.id, by=ADMIN)

    assert second.id == first.id


def test_stop_asked_by_many_at_once_is_one_job(cold):
    instance = cold.start(HISTOGRAM)

    jobs = at_once([partial(cold.core.instances.request_stop, instance.id, by=ADMIN)] * 8)

    assert len({job.id for job in jobs}) == 1


def test_stop_is_found_though_its_job_is_not_stored_yet(cold):
    instance = cold.start(HISTOGRAM)
    first = cold.core.instances.request_stop(instance.id, by=ADMIN)
    cold.store.jobs.remove(first.id)

    second = cold.core.instances.request_stop(instance.id, by=ADMIN)
    cold.run_jobs()

    assert second.id == first.id
    assert instance_of(cold, instance).state is InstanceState.STOPPED


def test_stop_of_a_stopped_instance_is_refused(cold):
    instance = cold.start(HISTOGRAM)
    cold.stop(instance.id)

    with pytest.raises(IllegalTransition):
        cold.core.instances.request_stop(instance.id, by=ADMIN)


def test_stop_cannot_be_cancelled(cold):
    instance = cold.start(HISTOGRAM)
    job = cold.core.instances.request_stop(instance.id, by=ADMIN)

    with pytest.raises(Conflict):
        cold.core.jobs.cancel(job.id, by=ADMIN)


@pytest.mark.parametrize("step", ["reserve", "boot", "ready"])
def test_stop_during_a_start_leaves_nothing(step):
    stopped = []

    def stop_now(kind, name, moment):
        if (kind, name, moment) == (JobKind.INSTANCE_START, step, "begin"):
            instance = composed.core.instances.instances().items[0]
            stopped.append(composed.core.instances.request_stop(instance.id, by=ADMIN))

    composed = a_core(observers=(stop_now,))
    composed.add_service()

    instance = composed.start(HISTOGRAM)

    assert instance.state is InstanceState.STOPPED
    assert composed.leftovers() == ()
    assert composed.core.jobs.job(stopped[0].id).state is JobState.CANCELLED


def test_stop_of_an_instance_whose_start_was_never_stored_leaves_nothing(cold):
    started = cold.request_start(HISTOGRAM)
    job = cold.core.jobs.job(started.job.id)
    forget_job(cold, started.instance)
    cold.core.instances.request_stop(started.instance.id, by=ADMIN)
    # The request that was a moment away from storing its Job does so after all.
    cold.store.jobs.add(job)

    cold.run_jobs()

    assert instance_of(cold, started.instance).state is InstanceState.STOPPED
    assert cold.leftovers() == ()


def test_stop_of_an_instance_whose_start_ended_without_a_word_leaves_nothing(cold):
    started = cold.request_start(HISTOGRAM)
    cold.store.jobs.replace(replace(cold.core.jobs.job(started.job.id), state=JobState.FAILED))

    assert cold.stop(started.instance.id).state is InstanceState.STOPPED


def test_stop_finds_a_domain_that_is_gone(cold):
    instance = cold.start(HISTOGRAM)
    cold.hypervisor.reboot_host()

    assert cold.stop(instance.id).state is InstanceState.STOPPED
    assert cold.leftovers() == ()


# -- pause and resume --------------------------------------------------------------------------


def test_pause_and_resume(cold):
    instance = cold.start(HISTOGRAM)

    states = [
        cold.core.instances.pause(instance.id, by=ADMIN).state,
        cold.hypervisor.domain(instance.domain_id).state,
        cold.core.instances.resume(instance.id, by=ADMIN).state,
        cold.hypervisor.domain(instance.domain_id).state,
    ]

    assert states == ["paused", "paused", "running", "running"]


@pytest.mark.parametrize("state", [state for state in InstanceState if state != "running"])
def test_pause_is_refused_in_other_states(cold, state):
    instance = cold.store.instances.add(an_instance(state=state))
    allowed = state is InstanceState.MIGRATING

    with pytest.raises(DomainNotFound if allowed else IllegalTransition):
        cold.core.instances.pause(instance.id, by=ADMIN)


@pytest.mark.parametrize("state", [state for state in InstanceState if state != "paused"])
def test_resume_is_refused_in_other_states(cold, state):
    instance = cold.store.instances.add(an_instance(state=state))

    with pytest.raises(IllegalTransition):
        cold.core.instances.resume(instance.id, by=ADMIN)


# -- deadlines -----------------------------------------------------------------------------------


def with_deadlines(**settings):
    composed = a_core(settings=replace(BASE_SETTINGS, **settings))
    composed.add_service(SHARED)
    return composed


def test_idle_instance_is_stopped():
    composed = with_deadlines(idle_timeout_s=60)
    instance = composed.start(HISTOGRAM)
    composed.clock.advance(60)

    composed.core.instances.stop_overdue(by=ADMIN)
    composed.run_jobs()

    assert instance_of(composed, instance).state is InstanceState.STOPPED


def test_slow_start_does_not_count_as_idle():
    composed = with_deadlines(idle_timeout_s=60)
    composed.probe.answer_after_s = 100

    instance = composed.start(HISTOGRAM)
    composed.core.instances.stop_overdue(by=ADMIN)

    assert instance_of(composed, instance).state is InstanceState.RUNNING


def test_instance_past_its_lifetime_is_stopped_whoever_uses_it():
    composed = with_deadlines(max_lifetime_s=60)
    instance = composed.start(HISTOGRAM, device_id=PHONE)
    composed.clock.advance(60)
    composed.core.instances.touch(HISTOGRAM, PHONE)

    composed.core.instances.stop_overdue(by=ADMIN)

    assert instance_of(composed, instance).state is InstanceState.STOPPING


def test_service_overrides_the_deadlines_of_the_settings():
    composed = a_core(settings=replace(BASE_SETTINGS, idle_timeout_s=60, max_lifetime_s=60))
    composed.add_service(a_service_draft(idle_timeout_s=0, max_lifetime_s=3600))

    instance = composed.start(HISTOGRAM)

    assert (instance.idle_timeout_s, instance.idle_at) == (None, None)
    assert (instance.expires_at - instance.created_at).total_seconds() == 3600


@pytest.mark.parametrize(
    ("device", "users", "renewed"),
    [("phone", 1, True), ("other", 1, False), ("other", 2, True)],
)
def test_touch_renews_the_idle_deadline(device, users, renewed):
    composed = a_core(settings=replace(BASE_SETTINGS, idle_timeout_s=60))
    composed.add_service(a_service_draft(sharing_limit=users))
    instance = composed.start(HISTOGRAM, device_id=PHONE)
    composed.clock.advance(30)

    composed.core.instances.touch(HISTOGRAM, DeviceId(device))

    later = instance_of(composed, instance).idle_at
    assert (later > instance.idle_at) == renewed


def test_touch_counts_for_whoever_joined_when_the_one_who_started_it_has_left():
    composed = with_deadlines(idle_timeout_s=60)
    instance = composed.start(HISTOGRAM, device_id=PHONE)
    composed.start(HISTOGRAM, Join.SHARE, device_id=DeviceId("other"))
    composed.core.instances.leave(instance.id, by=ADMIN)
    composed.clock.advance(30)

    composed.core.instances.touch(HISTOGRAM, DeviceId("other"))

    assert instance_of(composed, instance).idle_at > instance.idle_at


def test_instance_is_not_idle_while_a_client_is_connected():
    composed = with_deadlines(idle_timeout_s=60)
    instance = composed.start(HISTOGRAM)
    composed.hypervisor.connect(instance.domain_id)
    composed.clock.advance(60)
    composed.core.instances.stop_overdue(by=ADMIN)
    used = instance_of(composed, instance)
    composed.hypervisor.disconnect(instance.domain_id)
    composed.clock.advance(60)

    composed.core.instances.stop_overdue(by=ADMIN)

    assert used.state is InstanceState.RUNNING
    assert instance_of(composed, instance).state is InstanceState.STOPPING


def test_connection_does_not_outlast_the_lifetime():
    composed = with_deadlines(idle_timeout_s=30, max_lifetime_s=60)
    instance = composed.start(HISTOGRAM)
    composed.hypervisor.connect(instance.domain_id)
    composed.clock.advance(60)

    composed.core.instances.stop_overdue(by=ADMIN)

    assert instance_of(composed, instance).state is InstanceState.STOPPING


def test_renew_begins_the_idle_time_anew():
    composed = with_deadlines(idle_timeout_s=60)
    instance = composed.start(HISTOGRAM)
    composed.clock.advance(59)

    renewed = composed.core.instances.renew(instance.id)

    assert (renewed.idle_at - instance.idle_at).total_seconds() == 59


def test_renew_writes_nothing_when_there_is_no_deadline(cold):
    instance = cold.start(HISTOGRAM)

    assert cold.core.instances.renew(instance.id) == instance


def test_renew_comes_too_late_when_the_instance_is_stopped(cold):
    instance = cold.start(HISTOGRAM)
    cold.stop(instance.id)

    with pytest.raises(Conflict, match="stopped"):
        cold.core.instances.renew(instance.id)


def test_touch_writes_nothing_when_little_time_has_passed():
    composed = with_deadlines(idle_timeout_s=60)
    composed.start(HISTOGRAM, device_id=PHONE)
    before = composed.store.instances.revision()
    composed.clock.advance(5)

    composed.core.instances.touch(HISTOGRAM, PHONE)

    assert composed.store.instances.revision() == before


def test_touch_leaves_finished_instances_alone():
    composed = with_deadlines(idle_timeout_s=60)
    instance = composed.start(HISTOGRAM, device_id=PHONE)
    stopped = composed.stop(instance.id)
    composed.clock.advance(100)

    composed.core.instances.touch(HISTOGRAM, PHONE)

    assert instance_of(composed, instance) == stopped


def test_instance_that_is_used_at_the_last_moment_is_not_stopped():
    composed = with_deadlines(idle_timeout_s=60)
    instance = composed.start(HISTOGRAM, device_id=PHONE)
    composed.clock.advance(60)
    replaced = composed.store.instances.replace

    def touch_first(record):
        composed.store.instances.replace = replaced
        composed.core.instances.touch(HISTOGRAM, PHONE)
        return replaced(record)

    composed.store.instances.replace = touch_first

    composed.core.instances.stop_overdue(by=ADMIN)

    assert instance_of(composed, instance).state is InstanceState.RUNNING


def test_running_instance_without_users_is_stopped(shared):
    """The last one left at the moment at which the start could no longer be cancelled."""
    instance = shared.start(HISTOGRAM)
    shared.store.instances.replace(replace(instance, users=0))

    shared.core.instances.stop_overdue(by=ADMIN)

    assert instance_of(shared, instance).state is InstanceState.STOPPING
