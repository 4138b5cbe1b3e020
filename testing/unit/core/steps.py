# SPDX-License-Identifier: Apache-2.0
"""Moves that several tests of the core make."""

from dataclasses import replace
from io import BytesIO

from pycloud.adapters.fakes import FakePackages, MemoryBlobs, fake_qcow2
from pycloud.core.access import ADMIN
from pycloud.core.intake import ImportRequest
from pycloud.core.jobs import JobRunner
from pycloud.core.ports import UnpackedPackage
from testing.factories import HISTOGRAM, a_service_draft


def instance_of(composed, instance):
    """Return an Instance as it is now."""
    return composed.core.instances.instance(instance.id)


def want(composed, count, service_id=HISTOGRAM):
    """Let so many copies of a Service be wanted; none is made yet."""
    service = composed.core.catalog.service(service_id)
    composed.store.services.replace(replace(service, warm_count=count))


def fill(composed, count=1):
    """Let copies of the Service wait."""
    want(composed, count)
    composed.core.background.reconciler.warm_pool.maintain()
    composed.run_jobs()
    assert composed.store.warm_domains.count() == count


def a_package(draft=None, *, state=None):
    """Return the bytes of a package as another cloudlet would make it."""
    blobs = MemoryBlobs()
    blobs.append(
        "area", "disk", BytesIO(fake_qcow2(b"theirs")), offset_bytes=0, limit_bytes=1 << 30
    )
    if state is not None:
        blobs.append("area", "state", BytesIO(state), offset_bytes=0, limit_bytes=1 << 30)
    content = UnpackedPackage(
        draft=draft or a_service_draft(), disk="disk", state="state" if state else None
    )
    FakePackages(blobs).pack("area", "package", content=content)
    return blobs.open_staged("area", "package").read()


def request_import(composed, content, **options):
    """Ask for a Service from the bytes of a package; nothing is worked on yet."""
    upload = composed.upload(content, file_name="theirs.csvm")
    return composed.core.intake.request_import(
        ImportRequest(upload_id=upload.id, **options), by=ADMIN
    )


def a_small_host(composed, *, free_mib):
    """Shrink the Host until just this much memory is left beside what is claimed."""
    host = composed.core.system.host()
    composed.store.hosts.replace(replace(host, memory_mib=host.claimed_memory_mib + free_mib))


def crash(composed, job, step, moment="end"):
    """Run a Job up to a step as a server would that is killed there."""
    runner: JobRunner = composed.core.background.runner
    held = runner._claim(job)
    for each in runner.procedures[job.kind].steps:
        held.enter(each.name, unit=each.unit, may_cancel=not each.final)
        if each.name == step and moment == "begin":
            return
        each.run(held)
        if each.name == step:
            return
