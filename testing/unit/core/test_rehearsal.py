# SPDX-License-Identifier: Apache-2.0
"""Waiting copies have answered before they wait."""

from pycloud.adapters.fakes.network import Answer
from pycloud.core.model.runtime import StartMethod
from testing.factories import HISTOGRAM
from testing.unit.core.steps import fill


def test_copy_has_answered_when_it_waits(instant):
    fill(instant)

    (copy,) = instant.store.warm_domains.find().items
    assert instant.probe.targets()[-1].domain_id == copy.domain_id
    assert instant.hypervisor.domain(copy.domain_id).held


def test_warm_start_publishes_the_port_of_the_rehearsal(warm):
    rehearsed = warm.probe.targets()[-1].port

    instance = warm.start(HISTOGRAM)

    assert instance.start_method is StartMethod.WARM
    assert [mapping.host_port for mapping in instance.ports] == [rehearsed]


def test_copy_that_never_answers_is_given_up(warm):
    warm.start(HISTOGRAM)
    running = warm.hypervisor.domains()
    warm.probe.answer = Answer.NEVER

    warm.core.background.reconciler.warm_pool.maintain()
    warm.run_jobs()

    assert warm.store.warm_domains.count() == 0
    assert warm.hypervisor.domains() == running
