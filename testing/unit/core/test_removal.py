# SPDX-License-Identifier: Apache-2.0
"""The end of Services: refused under users, whole, and only of what was meant."""

from dataclasses import replace
from datetime import timedelta

import pytest

from pycloud.adapters.fakes.network import Answer
from pycloud.core.access import ADMIN
from pycloud.core.model.runtime import InstanceState, JobState
from pycloud.core.removal import RunningInstances
from pycloud.errors import NotFound, ServiceInUse, StaleRecord
from testing.factories import HISTOGRAM
from testing.unit.core.races import wait_until
from testing.unit.core.steps import crash, instance_of


def request_remove(composed, running=RunningInstances.REFUSE, generation=None):
    return composed.core.removal.request_remove(HISTOGRAM, running, generation=generation, by=ADMIN)


@pytest.fixture
def working(cold):
    """A cloudlet whose Jobs run in threads."""
    runner = cold.core.background.runner
    runner.start()
    yield cold
    runner.stop(grace_s=0)


def wait_for(composed, job):
    wait_until(lambda: composed.core.jobs.job(job.id).is_final)
    return composed.core.jobs.job(job.id)


def started(composed):
    request = composed.request_start(HISTOGRAM)
    wait_for(composed, request.job)
    return instance_of(composed, request.instance)


def test_removed_service_leaves_nothing(warm):
    job = request_remove(warm)

    warm.run_jobs()
    warm.reconcile(4)

    assert warm.core.jobs.job(job.id).state is JobState.SUCCEEDED
    assert (warm.store.services.count(), warm.store.service_vms.count()) == (0, 0)
    assert (warm.leftovers(), list(warm.blobs.stored())) == ((), [])


def test_removal_is_refused_while_instances_run(cold):
    cold.start(HISTOGRAM)

    with pytest.raises(ServiceInUse, match=r"1 instance\(s\)"):
        request_remove(cold)


def test_removal_does_not_mind_instances_that_are_over(cold):
    cold.stop(cold.start(HISTOGRAM).id)

    request_remove(cold)
    cold.run_jobs()

    assert cold.store.services.count() == 0


def test_removal_of_what_is_not_there_is_refused(cold):
    cold.store.services.remove(HISTOGRAM)

    with pytest.raises(NotFound):
        request_remove(cold)


def test_removal_of_another_generation_is_refused(cold):
    with pytest.raises(StaleRecord):
        request_remove(cold, generation=7)


def test_removal_stops_instances_when_told_to(working):
    instances = [started(working) for _ in range(3)]

    job = wait_for(working, request_remove(working, RunningInstances.STOP))

    assert job.state is JobState.SUCCEEDED
    assert {instance_of(working, one).state for one in instances} == {InstanceState.STOPPED}
    assert working.leftovers() == ()


def test_removal_ends_a_start_that_waits_for_its_answer(working):
    working.probe.answer = Answer.HELD
    request = working.request_start(HISTOGRAM)
    wait_until(lambda: bool(working.probe.targets()))

    job = wait_for(working, request_remove(working, RunningInstances.STOP))

    assert job.state is JobState.SUCCEEDED
    assert instance_of(working, request.instance).state is InstanceState.STOPPED
    assert working.leftovers() == ()


def test_start_that_is_queued_when_the_service_goes_leaves_nothing(cold):
    started = cold.request_start(HISTOGRAM)
    job = cold.core.removal.request_remove(
        HISTOGRAM, RunningInstances.STOP, generation=None, by=ADMIN
    )
    cold.core.background.runner.start()

    wait_for(cold, job)
    cold.core.background.runner.stop(grace_s=0)

    assert instance_of(cold, started.instance).state in {
        InstanceState.FAILED,
        InstanceState.STOPPED,
    }
    assert cold.leftovers() == ()


def test_start_that_is_asked_for_when_the_service_is_gone_already_fails(cold):
    """The request read the Service just before it was hidden."""
    find = cold.core.instances.warm_pool.claim

    def remove_first(service, service_vm):
        request_remove(cold)
        cold.run_jobs()
        return find(service, service_vm)

    cold.core.instances.warm_pool.claim = remove_first

    instance = cold.start(HISTOGRAM)

    assert (instance.state, instance.failure.code) == (InstanceState.FAILED, "not_found")
    assert cold.leftovers() == ()


def test_removal_gets_over_an_instance_without_job(working):
    instance = started(working)
    working.store.instances.replace(replace(instance, state=InstanceState.STARTING))
    working.store.jobs.remove(instance.job_id)

    job = wait_for(working, request_remove(working, RunningInstances.STOP))

    assert job.state is JobState.SUCCEEDED
    assert working.leftovers() == ()


def test_server_can_be_stopped_while_a_removal_waits(cold):
    instance = cold.start(HISTOGRAM)
    # Its Job failed, so only reconciliation, which does not run here, can go on.
    stop = cold.core.instances.request_stop(instance.id, by=ADMIN)
    cold.store.jobs.replace(replace(stop, state=JobState.FAILED, finished_at=cold.clock.now()))
    job = request_remove(cold, RunningInstances.STOP)
    runner = cold.core.background.runner
    runner.start()
    wait_until(lambda: cold.core.jobs.job(job.id).stage == "stop")

    runner.stop(grace_s=0)

    left = cold.core.jobs.job(job.id)
    assert (left.state, left.stage) == (JobState.QUEUED, "stop")


def test_second_removal_spares_a_service_that_took_the_id_meanwhile(cold):
    first, second = request_remove(cold), request_remove(cold)
    cold.store.jobs.replace(replace(second, state=JobState.RUNNING, lease_owner="slow"))
    cold.run_jobs()
    cold.clock.advance(1)
    new = cold.add_service()

    cold.core.background.runner.recover()
    cold.run_jobs()

    assert cold.core.jobs.job(first.id).state is JobState.SUCCEEDED
    assert cold.core.jobs.job(second.id).state is JobState.SUCCEEDED
    assert cold.core.catalog.startable(HISTOGRAM)[0] == new


def test_removal_spares_instances_of_a_service_that_took_the_id_meanwhile(cold):
    job = request_remove(cold)
    crash(cold, job, "hide")
    cold.clock.advance(10)
    cold.add_service()
    instance = cold.start(HISTOGRAM)

    cold.core.background.runner.recover()
    cold.run_jobs()

    assert instance_of(cold, instance).state is InstanceState.RUNNING
    assert cold.core.jobs.job(job.id).state is JobState.SUCCEEDED


@pytest.mark.parametrize("moment", ["begin", "end"])
@pytest.mark.parametrize("step", ["hide", "stop", "sweep"])
def test_crashed_removal_is_finished(cold, step, moment):
    job = request_remove(cold)
    crash(cold, job, step, moment)
    cold.clock.advance(timedelta(seconds=10).total_seconds())

    cold.core.background.runner.recover()
    cold.run_jobs()

    assert cold.core.jobs.job(job.id).state is JobState.SUCCEEDED
    assert (cold.store.services.count(), cold.store.service_vms.count()) == (0, 0)
