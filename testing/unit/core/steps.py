# SPDX-License-Identifier: Apache-2.0
"""Moves that several tests of the core make."""

from dataclasses import replace

from pycloud.core.jobs import JobRunner
from pycloud.core.model.runtime import JobState
from testing.factories import HISTOGRAM


def instance_of(composed, instance):
    """Return an Instance as it is now."""
    return composed.core.instances.instance(instance.id)


def fill(composed, count=1):
    """Let copies of the Service wait."""
    service = composed.core.catalog.service(HISTOGRAM)
    composed.store.services.replace(replace(service, warm_count=count))
    composed.core.background.reconciler.warm_pool.maintain()
    composed.run_jobs()
    assert composed.store.warm_domains.count() == count


def a_small_host(composed, *, free_mib):
    """Shrink the Host until just this much memory is left beside what is claimed."""
    host = composed.core.system.host()
    composed.store.hosts.replace(replace(host, memory_mib=host.claimed_memory_mib + free_mib))


def crash(composed, job, step, moment="end"):
    """Run a Job up to a step as a server would that is killed there."""
    runner: JobRunner = composed.core.background.runner
    held = runner._claim(job.id, JobState.QUEUED)
    for each in runner.procedures[job.kind].steps:
        held.enter(each.name, unit=each.unit, may_cancel=not each.final)
        if each.name == step and moment == "begin":
            return
        each.run(held)
        if each.name == step:
            return
