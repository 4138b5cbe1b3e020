# SPDX-License-Identifier: Apache-2.0
"""The starts that the benchmarks compare, once each, so that no side of them stops working.

Booting is in both preparations already, and is not repeated for the comparison with it.
"""

from concurrent.futures import ThreadPoolExecutor

from pycloud.core.model.runtime import StartMethod
from testing.bench.cloudlet import our_cloudlet
from testing.bench.copy_restore import copying_cloudlet

# The least that is compared: a smaller guest cannot spare as much as it has to use.
MEMORY_MIB = 256


def test_benchmarks_start_a_guest_in_each_way_that_they_compare(tmp_path):
    with (
        our_cloudlet(tmp_path / "ours") as ours,
        copying_cloudlet(tmp_path / "copies") as copies,
        ThreadPoolExecutor(1) as pool,
    ):
        # Both boot a guest, which is most of the time that this takes, so at the same time.
        saving = pool.submit(copies.save, MEMORY_MIB)
        service_id = ours.add_service(MEMORY_MIB)
        state = saving.result()

        copied = copies.start(state)
        cloned = ours.start(service_id, StartMethod.CLONE)
        ours.fill_pool(service_id, 1)
        waiting = ours.start(service_id, StartMethod.WARM)
        ours.drain_pool(service_id)

        copies.stop(copied.spec)
        ours.stop(cloned.instance.id, waiting.instance.id)
    assert copied.answer_s > 0
    assert 0 < cloned.ready_s <= cloned.answer_s
    assert 0 < waiting.ready_s <= waiting.answer_s
