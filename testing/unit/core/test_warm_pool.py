# SPDX-License-Identifier: Apache-2.0
"""Waiting copies: bounded, of the right Services, and given up before anybody misses the room."""

from dataclasses import replace
from functools import partial

import pytest

from pycloud.core.access import ADMIN
from pycloud.core.catalog import ServiceChanges
from pycloud.core.model.fleet import MemoryInfo
from pycloud.core.model.identifiers import ServiceId
from pycloud.core.model.runtime import JobKind, JobState, StartMethod
from pycloud.errors import StateUnusable
from testing.composed import BASE_SETTINGS, a_core
from testing.factories import HISTOGRAM, a_service_draft
from testing.unit.core.races import at_once
from testing.unit.core.steps import crash, fill, want

OTHER = ServiceId("other")


def pool_of(composed):
    return composed.core.background.reconciler.warm_pool


def maintain(composed, rounds=1):
    for _ in range(rounds):
        pool_of(composed).maintain()
        composed.run_jobs()


def waiting(composed):
    return [warm.service_id for warm in composed.store.warm_domains.find().items]


def set_free_mib(composed, free_mib):
    memory = MemoryInfo(max_bytes=16 << 30, free_bytes=free_mib << 20)
    composed.sensors.figures = replace(composed.sensors.figures, memory=memory)


def with_settings(**settings):
    composed = a_core(settings=replace(BASE_SETTINGS, **settings))
    composed.add_service(prepare=True)
    return composed


def test_popular_service_gets_a_copy(instant):
    instant.stop(instant.start(HISTOGRAM).id)

    maintain(instant, rounds=3)

    assert waiting(instant) == [HISTOGRAM]


def test_service_that_nobody_started_gets_none(instant):
    maintain(instant)

    assert waiting(instant) == []


def test_service_that_was_popular_once_loses_its_copy(instant):
    instant.stop(instant.start(HISTOGRAM).id)
    maintain(instant)
    instant.clock.advance(instant.core.settings.warm_popular_s + 1)

    maintain(instant)

    assert (waiting(instant), instant.leftovers()) == ([], ())


def test_service_may_ask_for_copies_of_its_own(instant):
    want(instant, 2)

    maintain(instant)

    assert waiting(instant) == [HISTOGRAM] * 2


def test_service_may_ask_for_none(instant):
    want(instant, 0)
    instant.start(HISTOGRAM)

    maintain(instant)

    assert waiting(instant) == []


def test_service_without_memory_state_gets_none(cold):
    want(cold, 1)

    maintain(cold)

    assert waiting(cold) == []


def test_copies_are_bounded_over_all_services():
    composed = with_settings(warm_total=3)
    composed.add_service(a_service_draft(id=OTHER), prepare=True)
    want(composed, 2)
    want(composed, 2, OTHER)

    maintain(composed, rounds=3)

    assert sorted(waiting(composed)) == [HISTOGRAM, HISTOGRAM, OTHER]


def test_no_copies_wait_when_the_settings_say_so():
    composed = with_settings(warm_total=0)
    want(composed, 2)

    maintain(composed)

    assert waiting(composed) == []


def test_copies_beyond_a_lowered_bound_are_given_up(instant):
    fill(instant, 3)
    lower = instant.another_server(settings=replace(instant.core.settings, warm_total=1))

    maintain(lower)

    assert waiting(instant) == [HISTOGRAM]


def test_copies_that_are_being_made_count(instant):
    want(instant, 2)
    for _ in range(3):
        pool_of(instant).maintain()

    assert len(instant.jobs(JobState.QUEUED)) == 2


def test_copies_are_given_up_when_memory_is_short(warm):
    set_free_mib(warm, warm.core.settings.warm_min_free_mib - 1)

    maintain(warm)

    assert (waiting(warm), warm.leftovers()) == ([], ())


def test_copies_are_kept_but_not_made_when_memory_is_just_enough(warm):
    want(warm, 2)
    set_free_mib(warm, warm.core.settings.warm_min_free_mib + 100)

    maintain(warm)

    assert waiting(warm) == [HISTOGRAM]


def test_copy_is_not_made_when_memory_got_short_meanwhile(instant):
    want(instant, 1)
    pool_of(instant).maintain()
    set_free_mib(instant, instant.core.settings.warm_min_free_mib + 100)

    instant.run_jobs()

    assert (waiting(instant), instant.leftovers()) == ([], ())


def test_copy_of_another_size_is_replaced(warm):
    old = warm.store.warm_domains.find().items[0]
    warm.core.catalog.update_service(
        HISTOGRAM, ServiceChanges(ideal_memory_mib=512), generation=None, by=ADMIN
    )
    warm.core.templates.request_prepare(HISTOGRAM, by=ADMIN)
    warm.run_jobs()

    maintain(warm)

    assert [(one.id == old.id, one.memory_mib) for one in warm.store.warm_domains.find().items] == [
        (False, 512)
    ]
    assert len(warm.hypervisor.domains()) == 1


def test_copy_of_another_size_is_not_claimed(warm):
    service, service_vm = warm.core.catalog.startable(HISTOGRAM)

    assert pool_of(warm).claim(replace(service, ideal_memory_mib=512), service_vm) is None


def test_copy_with_the_old_port_is_replaced(warm):
    warm.clock.advance(1)
    warm.core.catalog.update_service(
        HISTOGRAM, ServiceChanges(port=9090), generation=None, by=ADMIN
    )
    cold_start = warm.start(HISTOGRAM)

    maintain(warm)
    warm_start = warm.start(HISTOGRAM)

    methods = [cold_start.start_method, warm_start.start_method]
    assert methods == [StartMethod.CLONE, StartMethod.WARM]
    forwards = warm.hypervisor.domain(warm_start.domain_id).forwards
    assert [mapping.guest_port for mapping in forwards] == [9090]


def test_copy_is_claimed_by_exactly_one():
    for _ in range(10):
        composed = with_settings()
        fill(composed)
        service, service_vm = composed.core.catalog.startable(HISTOGRAM)
        pools = [pool_of(composed), pool_of(composed.another_server())] * 4

        claims = at_once([partial(pool.claim, service, service_vm) for pool in pools])

        assert sum(claim is not None for claim in claims) == 1


def test_claimed_copy_is_replaced_by_another(warm):
    warm.start(HISTOGRAM)

    maintain(warm)

    assert waiting(warm) == [HISTOGRAM]
    assert len(warm.hypervisor.domains()) == 2


def test_copy_that_cannot_be_made_is_not_tried_all_the_time(instant):
    want(instant, 1)
    instant.hypervisor.fail_next("start_held", StateUnusable("no"))
    maintain(instant, rounds=5)
    failed = len(instant.jobs(JobState.FAILED))
    instant.clock.advance(61)

    maintain(instant)

    assert (failed, waiting(instant), instant.leftovers()[0][:6]) == (1, [HISTOGRAM], "domain")


def test_copies_of_a_removed_service_are_given_up(warm):
    warm.store.services.remove(HISTOGRAM)

    maintain(warm)

    assert (waiting(warm), warm.leftovers()) == ([], ())


@pytest.mark.parametrize("moment", ["begin", "end"])
@pytest.mark.parametrize("step", ["reserve", "load"])
def test_crashed_fill_leaves_nothing(instant, step, moment):
    want(instant, 1)
    pool_of(instant).maintain()
    crash(instant, instant.jobs(JobState.QUEUED)[0], step, moment)
    instant.clock.advance(10)

    instant.core.background.runner.recover()

    assert (waiting(instant), instant.leftovers()) == ([], ())


def test_fill_that_crashed_when_it_was_published_has_succeeded(instant):
    want(instant, 1)
    pool_of(instant).maintain()
    job = instant.jobs(JobState.QUEUED)[0]
    crash(instant, job, "publish")
    instant.clock.advance(10)

    instant.core.background.runner.recover()

    assert instant.core.jobs.job(job.id).state is JobState.SUCCEEDED
    assert waiting(instant) == [HISTOGRAM]


def test_fill_that_crashed_is_not_undone_when_its_copy_serves_already(instant):
    want(instant, 1)
    pool_of(instant).maintain()
    crash(instant, instant.jobs(JobState.QUEUED)[0], "publish")
    instance = instant.start(HISTOGRAM)
    instant.clock.advance(10)

    instant.core.background.runner.recover()

    assert instant.hypervisor.domain(instance.domain_id).state == "running"
    assert [job.kind for job in instant.jobs(JobState.FAILED)] == []


def test_fill_keeps_the_figures_of_what_it_loaded(instant):
    """A change of the Service in between must not relabel the copy."""
    want(instant, 1)
    pool_of(instant).maintain()
    load = instant.hypervisor.start_held

    def change_then_load(spec):
        load(spec)
        service = instant.core.catalog.service(HISTOGRAM)
        instant.store.services.replace(replace(service, ideal_memory_mib=512))

    instant.hypervisor.start_held = change_then_load

    instant.run_jobs()

    assert [warm.memory_mib for warm in instant.store.warm_domains.find().items] == [256]
    assert instant.jobs(JobState.FAILED) == ()
    assert JobKind.WARM_FILL in {job.kind for job in instant.jobs(JobState.SUCCEEDED)}
