# SPDX-License-Identifier: Apache-2.0
"""Starts that wait for their guests keep neither stops nor refusals waiting."""

import threading
from dataclasses import replace

import pytest

from pycloud.core.access import ADMIN
from pycloud.core.jobs import Lane
from pycloud.core.model.runtime import InstanceState, JobState
from testing.composed import BASE_SETTINGS, a_core
from testing.factories import HISTOGRAM
from testing.unit.core.races import wait_until

MOST = 40
WAIT_S = 5.0


@pytest.fixture
def full():
    """A cloudlet with one Instance that runs, and no room beside those that wait to answer."""
    composed = a_core(settings=replace(BASE_SETTINGS, max_instances=MOST))
    composed.add_service()
    runner = composed.core.background.runner
    composed.start(HISTOGRAM)
    may_answer = threading.Event()
    composed.probe.wait = lambda *_arguments, **_options: may_answer.wait(WAIT_S * 4)
    runner.start()
    for _ in range(MOST - 1):
        composed.request_start(HISTOGRAM)
    try:
        wait_until(lambda: len(composed.core.system.host().claims) == MOST)
        yield composed
    finally:
        may_answer.set()
        runner.stop()


def test_start_is_refused_at_once_while_all_others_wait_for_their_guests(full):
    job = full.core.jobs.wait(full.request_start(HISTOGRAM).job.id, timeout_s=WAIT_S)

    assert (job.state, job.failure.code) == (JobState.FAILED, "capacity_exceeded")


def test_instance_is_stopped_while_all_starts_wait_for_their_guests(full):
    (running,) = full.core.instances.instances({"state": InstanceState.RUNNING}).items
    job = full.core.instances.request_stop(running.id, by=ADMIN)

    assert full.core.jobs.wait(job.id, timeout_s=WAIT_S).state is JobState.SUCCEEDED


@pytest.mark.parametrize("most", [1, 32, 10_000])
def test_lanes_have_workers_for_what_may_be_at_work(most):
    composed = a_core(settings=replace(BASE_SETTINGS, max_instances=most))

    workers = composed.core.background.runner._options.workers

    assert set(workers) == set(Lane)
    assert min(most, 256) < workers[Lane.STARTS] <= 300
    assert min(most, 256) <= workers[Lane.STOPS] <= 300
