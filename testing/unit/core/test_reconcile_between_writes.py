# SPDX-License-Identifier: Apache-2.0
"""Reconciliation by another server, between any two writes of a healthy operation.

Two ways: a round after each write with hardly any time in between, and two rounds, as
far apart as in life, at one chosen place, for every place there is.
"""

import pytest

from pycloud.core.access import ADMIN
from pycloud.core.instances import Join
from pycloud.core.intake import ImportRequest
from pycloud.core.model.runtime import InstanceState, JobState
from pycloud.core.removal import RunningInstances
from testing.composed import a_core
from testing.factories import HISTOGRAM, a_service_draft
from testing.unit.core.steps import fill
from testing.unit.core.watched import WatchedStore


def a_watched_core(*, prepare=True):
    composed = a_core(store=WatchedStore())
    composed.add_service(a_service_draft(sharing_limit=3), prepare=prepare)
    return composed


def start(composed):
    instance = composed.start(HISTOGRAM)
    assert instance.state is InstanceState.RUNNING
    return [instance.start_method, len(composed.hypervisor.domains())]


def start_and_stop(composed):
    instance = composed.start(HISTOGRAM)
    composed.start(HISTOGRAM, Join.SHARE)
    composed.core.instances.leave(instance.id, by=ADMIN)
    composed.core.instances.leave(instance.id, by=ADMIN)
    composed.run_jobs()
    assert composed.core.instances.instance(instance.id).state is InstanceState.STOPPED
    return list(composed.leftovers())


def add(composed):
    draft = a_service_draft(id="another")
    service = composed.add_service(draft, prepare=True)
    assert composed.core.catalog.startable(service.id)[1].memory is not None
    return [len(list(composed.blobs.stored())), *composed.leftovers()]


def export_and_import(composed):
    composed.core.exports.request_export(HISTOGRAM, by=ADMIN)
    composed.run_jobs()
    package = composed.core.exports.list_packages().items[0]
    with composed.core.exports.open(package) as stream:
        upload = composed.upload(stream.read(), file_name="histogram.csvm")
    request = ImportRequest(upload_id=upload.id, service_id="imported")
    composed.core.intake.request_import(request, by=ADMIN)
    composed.run_jobs()
    assert composed.core.catalog.startable("imported")[1].memory is not None
    return list(composed.leftovers())


def fill_the_pool(composed):
    fill(composed)
    return [len(composed.hypervisor.domains())]


def remove(composed):
    composed.core.removal.request_remove(
        HISTOGRAM, RunningInstances.REFUSE, generation=None, by=ADMIN
    )
    composed.run_jobs()
    assert composed.core.catalog.services().items == ()
    return list(composed.leftovers())


OPERATIONS = [start, start_and_stop, add, export_and_import, fill_the_pool, remove]


def without_popularity(composed):
    """Keep the pool from making copies of its own accord, which is not under test."""
    server = composed.another_server()
    server.core.background.reconciler.warm_pool.maintain = lambda: None
    return server.core.background.reconciler


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.__name__)
def test_operation_is_not_disturbed_by_a_round_after_every_write(operation):
    undisturbed = operation(a_watched_core())
    composed = a_watched_core()
    reconciler = without_popularity(composed)
    rounds = []

    def run():
        rounds.append(reconciler.run())
        composed.clock.advance(0.01)

    composed.store.on_write = run

    assert operation(composed) == undisturbed
    assert len(rounds) >= 5
    assert composed.jobs(JobState.FAILED) == ()


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.__name__)
def test_operation_is_not_disturbed_by_one_late_round_wherever_it_comes(operation):
    undisturbed = operation(a_watched_core())
    place = 0
    while True:
        composed = a_watched_core()
        reconciler = without_popularity(composed)
        reconciler.run()
        seen = 0

        def run(composed=composed, reconciler=reconciler, place=place):
            nonlocal seen
            seen += 1
            if seen == place:
                composed.clock.advance(5.0)
                reconciler.run()

        composed.store.on_write = run

        assert operation(composed) == undisturbed, place
        assert composed.jobs(JobState.FAILED) == ()
        if place > seen:
            break
        place += 1
    assert place > 5
