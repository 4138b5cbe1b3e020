# SPDX-License-Identifier: Apache-2.0
"""Users who join and leave Instances, also all at once."""

from dataclasses import replace
from functools import partial

import pytest

from pycloud.core.access import ADMIN
from pycloud.core.instances import Join
from pycloud.core.model.runtime import InstanceState
from pycloud.errors import (
    IllegalTransition,
)
from testing.composed import a_core
from testing.factories import HISTOGRAM, a_service_draft
from testing.unit.core.races import at_once
from testing.unit.core.steps import instance_of

SHARED = a_service_draft(sharing_limit=3)


def forget_job(composed, instance):
    """Bring about the moment between storing an Instance and storing its Job."""
    composed.store.jobs.remove(instance.job_id)


# -- join --------------------------------------------------------------------------------------


def test_join_adds_a_user_to_a_running_instance(shared):
    first = shared.start(HISTOGRAM)

    joined = shared.request_start(HISTOGRAM, Join.SHARE)

    assert (joined.instance.id, joined.instance.users, joined.job) == (first.id, 2, None)


def test_join_waits_for_the_start_of_an_instance_that_is_starting(shared):
    first = shared.request_start(HISTOGRAM)

    joined = shared.request_start(HISTOGRAM, Join.SHARE)

    assert (joined.instance.id, joined.job.id) == (first.instance.id, first.job.id)


def test_join_finds_the_instance_of_a_client_that_asks_at_the_same_moment(shared):
    ask = partial(shared.request_start, HISTOGRAM, Join.SHARE)

    started = at_once([ask, ask, ask])

    assert len({one.instance.id for one in started}) == 1
    assert shared.core.instances.instance(started[0].instance.id).users == 3


def test_join_prefers_an_instance_that_runs(shared):
    running = shared.start(HISTOGRAM)
    shared.request_start(HISTOGRAM)

    joined = shared.request_start(HISTOGRAM, Join.SHARE)

    assert joined.instance.id == running.id


def test_join_starts_another_instance_when_all_are_full(shared):
    first = shared.start(HISTOGRAM)
    for _ in range(2):
        shared.start(HISTOGRAM, Join.SHARE)

    fourth = shared.start(HISTOGRAM, Join.SHARE)

    assert fourth.id != first.id
    assert instance_of(shared, first).users == 3


def test_join_starts_a_fresh_instance_when_the_service_is_not_shared(cold):
    first = cold.start(HISTOGRAM)

    assert cold.start(HISTOGRAM, Join.SHARE).id != first.id


def test_fresh_start_never_joins(shared):
    first = shared.start(HISTOGRAM)

    assert shared.start(HISTOGRAM).id != first.id


@pytest.mark.parametrize("state", [InstanceState.PAUSED, InstanceState.STOPPING])
def test_join_passes_by_an_instance_that_cannot_serve(shared, state):
    first = shared.start(HISTOGRAM)
    shared.store.instances.replace(replace(instance_of(shared, first), state=state))

    assert shared.start(HISTOGRAM, Join.SHARE).id != first.id


def test_join_passes_by_an_instance_whose_job_is_not_stored_yet(shared):
    first = shared.request_start(HISTOGRAM)
    forget_job(shared, first.instance)

    joined = shared.request_start(HISTOGRAM, Join.SHARE)

    assert joined.instance.id != first.instance.id
    assert instance_of(shared, first.instance).users == 1


def test_join_passes_by_an_instance_whose_start_is_being_cancelled(shared):
    first = shared.request_start(HISTOGRAM)
    shared.core.jobs.cancel(first.job.id, by=ADMIN)

    assert shared.request_start(HISTOGRAM, Join.SHARE).instance.id != first.instance.id


def test_joins_never_exceed_the_sharing_limit_when_they_race():
    for _ in range(5):
        composed = a_core()
        composed.add_service(a_service_draft(sharing_limit=5))
        composed.start(HISTOGRAM)

        results = at_once([partial(composed.request_start, HISTOGRAM, Join.SHARE)] * 12)

        assert all(not isinstance(result, Exception) for result in results)
        instances = composed.core.instances.instances(limit=100).items
        assert all(1 <= instance.users <= 5 for instance in instances)
        assert sum(instance.users for instance in instances) == 13


# -- leave -------------------------------------------------------------------------------------


def test_leave_of_one_of_several_users_keeps_the_instance(shared):
    first = shared.start(HISTOGRAM)
    shared.start(HISTOGRAM, Join.SHARE)

    job = shared.core.instances.leave(first.id, by=ADMIN)

    assert job is None
    assert instance_of(shared, first).users == 1


def test_leave_of_the_last_user_stops_the_instance(shared):
    first = shared.start(HISTOGRAM)

    shared.core.instances.leave(first.id, by=ADMIN)
    shared.run_jobs()

    assert instance_of(shared, first).state is InstanceState.STOPPED
    assert shared.leftovers() == ()


def test_leave_of_the_last_user_ends_a_paused_instance(shared):
    first = shared.start(HISTOGRAM)
    shared.core.instances.pause(first.id, by=ADMIN)

    shared.core.instances.leave(first.id, by=ADMIN)
    shared.run_jobs()

    assert instance_of(shared, first).state is InstanceState.STOPPED


def test_leave_cancels_a_start_that_nobody_else_waits_for(shared):
    started = shared.request_start(HISTOGRAM)

    job = shared.core.instances.leave(started.instance.id, by=ADMIN)
    shared.run_jobs()

    assert job.id == started.job.id
    assert instance_of(shared, started.instance).state is InstanceState.STOPPED


def test_leave_keeps_a_start_that_somebody_else_waits_for(shared):
    started = shared.request_start(HISTOGRAM)
    shared.request_start(HISTOGRAM, Join.SHARE)

    shared.core.instances.leave(started.instance.id, by=ADMIN)
    shared.run_jobs()

    assert instance_of(shared, started.instance).state is InstanceState.RUNNING


def test_leave_of_a_stopped_instance_is_refused(shared):
    first = shared.start(HISTOGRAM)
    shared.stop(first.id)

    with pytest.raises(IllegalTransition):
        shared.core.instances.leave(first.id, by=ADMIN)


@pytest.mark.parametrize("begun", ["running", "requested"])
def test_leave_never_ends_an_instance_that_somebody_joins_at_this_moment(begun):
    for _ in range(30):
        composed = a_core()
        composed.add_service(SHARED)
        first = composed.request_start(HISTOGRAM).instance
        if begun == "running":
            composed.run_jobs()

        left, joined = at_once(
            [
                partial(composed.core.instances.leave, first.id, by=ADMIN),
                partial(composed.request_start, HISTOGRAM, Join.SHARE),
            ]
        )
        composed.run_jobs()

        found = composed.core.instances.instance(joined.instance.id)
        assert (found.state, found.users) == (InstanceState.RUNNING, 1)
        assert (left is None) == (joined.instance.id == first.id)


def test_leave_between_another_servers_look_and_join_wins(shared):
    """The join that read the last user before it left has to start another Instance."""
    first = shared.start(HISTOGRAM)
    replaced = shared.store.instances.replace

    def leave_first(record):
        shared.store.instances.replace = replaced
        shared.core.instances.leave(first.id, by=ADMIN)
        return replaced(record)

    shared.store.instances.replace = leave_first

    joined = shared.request_start(HISTOGRAM, Join.SHARE)

    assert joined.instance.id != first.id


def test_leave_keeps_an_instance_that_another_server_joined_in_between(shared):
    first = shared.start(HISTOGRAM)
    replaced = shared.store.instances.replace

    def join_first(record):
        shared.store.instances.replace = replaced
        shared.request_start(HISTOGRAM, Join.SHARE)
        return replaced(record)

    shared.store.instances.replace = join_first

    job = shared.core.instances.leave(first.id, by=ADMIN)

    assert job is None
    assert (instance_of(shared, first).state, instance_of(shared, first).users) == ("running", 1)
