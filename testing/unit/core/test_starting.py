# SPDX-License-Identifier: Apache-2.0
"""Starts of Instances: the fastest way that works, and nothing left of those that fail."""

from dataclasses import replace

import pytest

from pycloud.adapters.fakes.network import Answer
from pycloud.core.access import ADMIN
from pycloud.core.instances import StopMode
from pycloud.core.machines import domain_id_of
from pycloud.core.model.identifiers import ServiceId
from pycloud.core.model.runtime import InstanceState, JobState, StartMethod
from pycloud.errors import (
    CloudletError,
    Conflict,
    DomainNotFound,
    HypervisorError,
    HypervisorUnavailable,
    NotFound,
)
from testing.factories import HISTOGRAM, a_service, a_service_draft
from testing.unit.core.races import later, wait_until
from testing.unit.core.steps import a_small_host, crash, instance_of

# -- start -------------------------------------------------------------------------------


def test_start_gives_a_running_instance_with_a_published_port(cold):
    instance = cold.start(HISTOGRAM)

    assert instance.state is InstanceState.RUNNING
    assert instance.address == cold.sensors.address
    assert instance.published_port() == instance.ports[0].host_port
    assert instance.domain_id == domain_id_of(instance.id)


@pytest.mark.parametrize(
    ("fixture", "method"),
    [("cold", StartMethod.COLD), ("instant", StartMethod.CLONE), ("warm", StartMethod.WARM)],
)
def test_start_takes_the_fastest_way(fixture, method, request):
    composed = request.getfixturevalue(fixture)

    instance = composed.start(HISTOGRAM)

    assert instance.start_method is method
    assert composed.hypervisor.starts()[-1].method is method


def test_start_has_a_timeline_without_gaps(cold):
    cold.probe.answer_after_s = 1.0

    timeline = cold.start(HISTOGRAM).timeline

    assert [phase.name for phase in timeline] == ["queue", "reserve", "disk", "domain", "answer"]
    assert timeline[-1].duration_ms == 1000.0


def test_start_of_an_unknown_service_is_refused(cold):
    with pytest.raises(NotFound):
        cold.request_start(ServiceId("nothing"))


def test_start_of_a_service_without_vm_is_refused(cold):
    cold.store.services.add(a_service(id=ServiceId("empty")))

    with pytest.raises(Conflict, match="has no VM yet"):
        cold.request_start(ServiceId("empty"))


def test_start_takes_another_port_when_one_is_in_use(cold):
    low, high = cold.core.settings.port_range
    for port in range(low, high + 1):
        if port != 20007:
            cold.hypervisor.take_port(port)
    settings = replace(cold.core.settings, port_range=(20000, 20009))
    server = cold.another_server(settings=settings)

    instance = server.start(HISTOGRAM)

    assert instance.published_port() == 20007
    assert [lease.port for lease in cold.store.port_leases.find({"holder": instance.id}).items] == [
        20007
    ]


def test_start_falls_back_to_a_cold_boot_when_the_state_is_unusable(instant):
    service_vm = instant.core.catalog.startable(HISTOGRAM)[1]
    instant.hypervisor.make_unusable(service_vm.memory.memory.id)

    instance = instant.start(HISTOGRAM)

    assert (instance.state, instance.start_method) == (InstanceState.RUNNING, StartMethod.COLD)


def test_start_falls_back_to_a_cold_boot_when_a_file_of_the_state_is_lost(instant):
    before = instant.core.catalog.startable(HISTOGRAM)[1].memory
    instant.blobs.remove(before.memory.id)

    methods = [instant.start(HISTOGRAM).start_method for _ in range(2)]

    assert methods == [StartMethod.COLD, StartMethod.CLONE]


def test_unusable_state_is_replaced_by_a_fresh_one_and_only_once_in_a_while(instant):
    before = instant.core.catalog.startable(HISTOGRAM)[1].memory
    instant.hypervisor.make_unusable(before.memory.id)

    methods = [instant.start(HISTOGRAM).start_method for _ in range(2)]
    fresh = instant.core.catalog.startable(HISTOGRAM)[1].memory
    instant.hypervisor.make_unusable(fresh.memory.id)
    methods += [instant.start(HISTOGRAM).start_method for _ in range(2)]

    assert methods == [StartMethod.COLD, StartMethod.CLONE, StartMethod.COLD, StartMethod.COLD]
    assert instant.core.catalog.startable(HISTOGRAM)[1].memory == fresh


@pytest.mark.parametrize(
    "error", [DomainNotFound("gone"), HypervisorError("the monitor does not answer")]
)
def test_start_falls_back_to_a_clone_when_the_waiting_copy_is_broken(warm, error):
    warm.hypervisor.fail_next("release", error)

    instance = warm.start(HISTOGRAM)

    assert (instance.state, instance.start_method) == (InstanceState.RUNNING, StartMethod.CLONE)
    assert len(warm.hypervisor.domains()) == 1


def test_start_does_not_try_other_ways_when_the_hypervisor_is_away(warm):
    warm.hypervisor.fail_next("release", HypervisorUnavailable("away"))

    instance = warm.start(HISTOGRAM)

    assert (instance.state, instance.failure.code) == (
        InstanceState.FAILED,
        "hypervisor_unavailable",
    )


# -- a start that fails ---------------------------------------------------------------------


def fail_to_claim(composed):
    composed.core.system.placement._options = replace(
        composed.core.system.placement._options, max_instances=1
    )
    composed.core.system.placement.refresh_host()
    composed.core.system.placement.claim("another", composed.core.catalog.service(HISTOGRAM).flavor)


def fail_to_boot(composed):
    composed.hypervisor.fail_next("start", HypervisorError("no"))


def fail_to_answer(composed):
    composed.probe.answer = Answer.NEVER


def die_at_boot(composed):
    composed.probe.answer = Answer.GUEST_DIES


def fail_to_publish(composed):
    replaced = composed.store.instances.replace

    def refuse(record):
        if record.state is InstanceState.RUNNING:
            raise CloudletError("no")
        return replaced(record)

    composed.store.instances.replace = refuse


@pytest.mark.parametrize(
    ("fail", "code"),
    [
        (fail_to_claim, "capacity_exceeded"),
        (fail_to_boot, "hypervisor_error"),
        (fail_to_answer, "service_not_ready"),
        (die_at_boot, "guest_failed"),
        (fail_to_publish, "internal"),
    ],
)
def test_failed_start_leaves_nothing(cold, fail, code):
    fail(cold)

    instance = cold.start(HISTOGRAM)

    assert (instance.state, instance.failure.code) == (InstanceState.FAILED, code)
    assert (instance.users, instance.ports) == (0, ())
    assert [left for left in cold.leftovers() if left != "holder another"] == []


def test_failed_start_tells_where_its_time_went(cold):
    cold.probe.answer = Answer.NEVER

    instance = cold.start(HISTOGRAM)

    assert [phase.name for phase in instance.timeline] == [
        "queue",
        "reserve",
        "disk",
        "domain",
        "no_answer",
    ]


def test_failed_start_keeps_the_serial_output(cold):
    cold.probe.answer = Answer.GUEST_DIES
    started = cold.request_start(HISTOGRAM)
    cold.hypervisor.write_serial(started.instance.id, b"kernel panic \xff")

    cold.run_jobs()

    tail = cold.core.instances.serial_tail(started.instance.id, limit_bytes=100)
    assert tail.decode() == "kernel panic �"


def test_refusal_for_lack_of_memory_gives_the_figures(cold):
    placement = cold.core.system.placement
    flavor = cold.core.catalog.service(HISTOGRAM).flavor
    placement.claim("another", replace(flavor, memory_mib=placement.host().memory_mib - 100))

    instance = cold.start(HISTOGRAM)

    assert "needs 256 MiB of memory, 100 of" in instance.failure.message


def test_start_of_a_service_that_was_replaced_meanwhile_fails(cold):
    started = cold.request_start(HISTOGRAM)
    service = cold.core.catalog.service(HISTOGRAM)
    service_vm = cold.core.catalog.service_vm(service.service_vm_id)
    cold.store.service_vms.add(replace(service_vm, id="other"))
    cold.store.services.replace(replace(service, service_vm_id="other"))

    cold.run_jobs()

    assert instance_of(cold, started.instance).failure.code == "not_found"


# -- waiting copies and room ----------------------------------------------------------------


def test_start_gives_up_a_waiting_copy_of_another_service_for_its_room(warm):
    warm.add_service(a_service_draft(id=ServiceId("other")))
    a_small_host(warm, free_mib=0)

    instance = warm.start(ServiceId("other"))

    assert instance.state is InstanceState.RUNNING
    assert warm.store.warm_domains.count() == 0
    assert len(warm.hypervisor.domains()) == 1


def test_start_keeps_waiting_copies_when_giving_them_up_does_not_help(warm):
    warm.add_service(a_service_draft(id=ServiceId("other"), ideal_memory_mib=1024))
    a_small_host(warm, free_mib=0)

    instance = warm.start(ServiceId("other"))

    assert instance.failure.code == "capacity_exceeded"
    assert warm.store.warm_domains.count() == 1


def test_start_takes_the_room_of_a_copy_that_is_being_made(instant):
    instant.add_service(a_service_draft(id=ServiceId("other")))
    service = instant.core.catalog.service(HISTOGRAM)
    instant.store.services.replace(replace(service, warm_count=1))
    pool = instant.core.background.reconciler.warm_pool
    pool.maintain()
    runner = instant.core.background.runner
    fill_job = instant.jobs(JobState.QUEUED)[0]
    other = instant.another_server()
    load = instant.hypervisor.start_held
    outcome = []

    def start_meanwhile(spec):
        load(spec)
        a_small_host(instant, free_mib=0)
        # The other server's start waits for this Job, so it has to run beside it.
        outcome.append(later(lambda: other.start(ServiceId("other"))))
        wait_until(lambda: instant.core.jobs.job(fill_job.id).cancel_requested)

    instant.hypervisor.start_held = start_meanwhile
    runner.run_pending()

    assert outcome[0].result(5).state is InstanceState.RUNNING
    assert instant.core.jobs.job(fill_job.id).state is JobState.CANCELLED


@pytest.mark.parametrize("moment", ["queued", "reserved"])
def test_cancelled_start_ends_the_waiting_copy_it_took(warm, moment):
    started = warm.request_start(HISTOGRAM)
    if moment == "queued":
        warm.core.jobs.cancel(started.job.id, by=ADMIN)
    else:
        move = warm.store.instances.replace

        def cancel_then_move(record):
            warm.store.instances.replace = move
            warm.core.jobs.cancel(started.job.id, by=ADMIN)
            return move(record)

        warm.store.instances.replace = cancel_then_move

    warm.run_jobs()

    assert instance_of(warm, started.instance).state is InstanceState.STOPPED
    assert warm.leftovers() == ()


# -- after a crash -------------------------------------------------------------------------------


@pytest.mark.parametrize("moment", ["begin", "end"])
@pytest.mark.parametrize("step", ["reserve", "boot", "ready"])
@pytest.mark.parametrize("fixture", ["cold", "warm"])
def test_crashed_start_leaves_nothing_after_recovery(fixture, step, moment, request):
    composed = request.getfixturevalue(fixture)
    started = composed.request_start(HISTOGRAM)
    crash(composed, started.job, step, moment)
    composed.clock.advance(10)

    composed.core.background.runner.recover()

    instance = instance_of(composed, started.instance)
    assert (instance.state, instance.failure.code) == (InstanceState.FAILED, "interrupted")
    assert composed.leftovers() == ()


def test_start_that_crashed_when_it_was_published_has_succeeded(cold):
    started = cold.request_start(HISTOGRAM)
    crash(cold, started.job, "publish")
    cold.clock.advance(10)

    cold.core.background.runner.recover()

    job = cold.core.jobs.job(started.job.id)
    assert (job.state, job.result["instance_id"]) == (JobState.SUCCEEDED, started.instance.id)
    assert instance_of(cold, started.instance).state is InstanceState.RUNNING


@pytest.mark.parametrize("moment", ["begin", "end"])
@pytest.mark.parametrize("step", ["power_off", "destroy", "free", "record"])
def test_crashed_stop_is_finished(cold, step, moment):
    instance = cold.start(HISTOGRAM)
    job = cold.core.instances.request_stop(instance.id, mode=StopMode.GRACEFUL, by=ADMIN)
    crash(cold, job, step, moment)
    cold.clock.advance(10)

    cold.core.background.runner.recover()
    cold.run_jobs()

    assert instance_of(cold, instance).state is InstanceState.STOPPED
    assert cold.leftovers() == ()


def test_start_that_crashed_while_it_was_cancelled_is_stopped(cold):
    started = cold.request_start(HISTOGRAM)
    crash(cold, started.job, "boot")
    cold.core.jobs.cancel(started.job.id, by=ADMIN)
    instance = instance_of(cold, started.instance)
    cold.store.instances.replace(replace(instance, state=InstanceState.STOPPING))
    cold.clock.advance(10)

    cold.core.background.runner.recover()

    assert instance_of(cold, instance).state is InstanceState.STOPPED
    assert cold.core.jobs.job(started.job.id).state is JobState.CANCELLED


def test_crashed_start_whose_record_is_gone_leaves_nothing(cold):
    started = cold.request_start(HISTOGRAM)
    crash(cold, started.job, "boot")
    cold.store.instances.remove(started.instance.id)
    cold.clock.advance(10)

    cold.core.background.runner.recover()

    assert cold.core.jobs.job(started.job.id).state is JobState.FAILED
    assert cold.leftovers() == ()
