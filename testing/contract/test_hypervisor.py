# SPDX-License-Identifier: Apache-2.0
"""The contract of Hypervisor, MemoryCapture and GuestView, on the fake and on real libvirt.

Guests are copies of one template wherever the test does not need a cold boot.
"""

import time
from collections.abc import Iterator
from dataclasses import replace
from io import BytesIO

import pytest

from pycloud.core.model.catalog import MemoryKind
from pycloud.core.model.identifiers import BlobId, DomainId, InstanceId
from pycloud.core.ports import UserNetwork
from pycloud.errors import (
    DomainNotFound,
    HypervisorError,
    InsufficientStorage,
    JobCancelled,
    NotFound,
    PortInUse,
    StateUnusable,
)
from testing.contract.hypervisors import Bench, FakeBench, RealBench, ignore_phase

NOBODY = DomainId("00000000-0000-4000-8000-000000000000")
UNHEARD_S = 0.2


@pytest.fixture(params=["fake", "libvirt"])
def bench(request) -> Iterator[Bench]:
    chosen = (
        FakeBench() if request.param == "fake" else RealBench(request.getfixturevalue("real_host"))
    )
    yield chosen
    chosen.end_all()


@pytest.fixture
def clone(bench):
    """A running copy of the template."""
    spec = bench.spec(memory=bench.template)
    bench.hypervisor.start(spec, on_phase=ignore_phase)
    return spec


@pytest.fixture
def held(bench):
    """A copy of the template that waits."""
    spec = replace(bench.spec(memory=bench.template), network=UserNetwork(forwards=()))
    bench.hypervisor.start_held(spec)
    return spec


@pytest.fixture
def forwards(bench):
    """What a held copy is given when it is released."""
    return bench.spec().network.forwards


def _state(bench, spec):
    states = {domain.id: domain.state for domain in bench.hypervisor.domains()}
    return states.get(spec.domain_id)


def _is_gone(bench, spec):
    return _state(bench, spec) is None and spec.owner not in bench.hypervisor.disk_owners()


# start


def test_start_runs_a_cold_guest_with_a_disk_of_its_own(bench):
    spec = bench.spec()
    phases = []

    bench.hypervisor.start(spec, on_phase=phases.append)

    assert _state(bench, spec) == "running"
    assert spec.owner in bench.hypervisor.disk_owners()
    assert phases[:2] == ["disk", "domain"]


def test_start_runs_a_copy_from_memory(bench, clone):
    bench.wait_for_service(clone)

    assert _state(bench, clone) == "running"


def test_start_does_nothing_when_the_domain_runs_already(bench, clone):
    before = bench.hypervisor.domains()

    bench.hypervisor.start(clone, on_phase=ignore_phase)

    assert bench.hypervisor.domains() == before


def test_start_refuses_a_domain_id_of_another_owner(bench, clone):
    other = replace(clone, owner=InstanceId("somebody-else"))

    with pytest.raises(HypervisorError):
        bench.hypervisor.start(other, on_phase=ignore_phase)

    assert _state(bench, clone) == "running"


def test_start_leaves_nothing_behind_when_the_port_is_taken(bench):
    spec = bench.spec(memory=bench.template)
    port = spec.network.forwards[0].host_port

    with bench.occupied(port), pytest.raises(PortInUse) as caught:
        bench.hypervisor.start(spec, on_phase=ignore_phase)

    assert caught.value.port == port
    assert _is_gone(bench, spec)


def test_start_succeeds_at_the_second_attempt_when_the_port_is_free_again(bench):
    spec = bench.spec(memory=bench.template)
    with bench.occupied(spec.network.forwards[0].host_port), pytest.raises(PortInUse):
        bench.hypervisor.start(spec, on_phase=ignore_phase)

    bench.hypervisor.start(spec, on_phase=ignore_phase)

    assert _state(bench, spec) == "running"


def test_start_calls_memory_of_another_size_unusable(bench):
    spec = replace(bench.spec(memory=bench.template), memory_mib=64)

    with pytest.raises(StateUnusable):
        bench.hypervisor.start(spec, on_phase=ignore_phase)

    assert _is_gone(bench, spec)


def test_start_refuses_memory_on_another_disk(bench):
    spec = replace(bench.spec(), memory=bench.template)

    with pytest.raises(HypervisorError):
        bench.hypervisor.start(spec, on_phase=ignore_phase)

    assert _is_gone(bench, spec)


def test_start_leaves_nothing_behind_when_a_layer_of_the_disk_is_missing(bench):
    spec = bench.spec()
    missing = replace(spec.disk.blob, id=BlobId("0" * 64))

    with pytest.raises(HypervisorError):
        bench.hypervisor.start(
            replace(spec, disk=replace(spec.disk, blob=missing)), on_phase=ignore_phase
        )

    assert _is_gone(bench, spec)


@pytest.mark.parametrize("part", ["memory", "devices", "disk"])
def test_memory_state_is_unusable_when_a_part_of_it_is_missing(bench, part):
    memory, missing = bench.template, BlobId("0" * 64)
    if part == "disk":
        disk = replace(memory.disk, blob=replace(memory.disk.blob, id=missing))
        memory = replace(memory, disk=disk)
    else:
        memory = replace(memory, **{part: replace(getattr(memory, part), id=missing)})
    spec = bench.spec(memory=memory)

    with pytest.raises(StateUnusable):
        bench.hypervisor.start(spec, on_phase=ignore_phase)

    assert _is_gone(bench, spec)


def test_start_leaves_nothing_behind_when_the_phase_sink_raises(bench):
    spec = bench.spec(memory=bench.template)

    def full(_phase):
        raise InsufficientStorage("the records cannot be written")

    with pytest.raises(InsufficientStorage):
        bench.hypervisor.start(spec, on_phase=full)

    assert _is_gone(bench, spec)


# held domains


def test_held_domain_is_loaded_and_paused(bench, held):
    assert _state(bench, held) == "paused"


def test_held_domain_runs_when_it_is_released(bench, held, forwards):
    phases = []

    bench.hypervisor.release(held.domain_id, forwards, on_phase=phases.append)

    assert _state(bench, held) == "running"
    assert phases == ["ports", "resume"]
    bench.wait_for_service(replace(held, network=UserNetwork(forwards=forwards)))


def test_held_domain_stays_as_it_is_when_it_is_released_twice(bench, held, forwards):
    bench.hypervisor.release(held.domain_id, forwards, on_phase=ignore_phase)

    bench.hypervisor.release(held.domain_id, forwards, on_phase=ignore_phase)

    assert _state(bench, held) == "running"


def test_held_domain_stays_held_when_a_port_is_taken(bench, held, forwards):
    with bench.occupied(forwards[0].host_port), pytest.raises(PortInUse):
        bench.hypervisor.release(held.domain_id, forwards, on_phase=ignore_phase)

    assert _state(bench, held) == "paused"


def test_held_domain_is_released_with_other_ports_when_the_first_were_taken(bench, held, forwards):
    with bench.occupied(forwards[0].host_port), pytest.raises(PortInUse):
        bench.hypervisor.release(held.domain_id, forwards, on_phase=ignore_phase)

    bench.hypervisor.release(held.domain_id, bench.spec().network.forwards, on_phase=ignore_phase)

    assert _state(bench, held) == "running"


def test_held_domain_is_not_resumed_before_its_release(bench, held):
    with pytest.raises(HypervisorError):
        bench.hypervisor.resume(held.domain_id)

    assert _state(bench, held) == "paused"


def test_held_domain_can_be_paused_and_resumed_when_it_was_released(bench, held, forwards):
    bench.hypervisor.release(held.domain_id, forwards, on_phase=ignore_phase)
    bench.hypervisor.pause(held.domain_id)

    bench.hypervisor.resume(held.domain_id)

    assert _state(bench, held) == "running"


def test_hold_lets_a_released_domain_wait_again(bench, held, forwards):
    bench.hypervisor.release(held.domain_id, forwards, on_phase=ignore_phase)

    bench.hypervisor.hold(held.domain_id)

    assert _state(bench, held) == "paused"


def test_held_domain_answers_when_it_waited_twice(bench, held, forwards):
    spec = replace(held, network=UserNetwork(forwards=forwards))
    bench.hypervisor.release(held.domain_id, forwards, on_phase=ignore_phase)
    bench.wait_for_service(spec)
    bench.hypervisor.hold(held.domain_id)

    bench.hypervisor.release(held.domain_id, forwards, on_phase=ignore_phase)

    assert _state(bench, held) == "running"
    bench.wait_for_service(spec)


def test_hold_refuses_a_domain_that_never_waited(bench, clone):
    with pytest.raises(HypervisorError):
        bench.hypervisor.hold(clone.domain_id)

    assert _state(bench, clone) == "running"


def test_start_held_refuses_a_guest_without_memory(bench):
    with pytest.raises(StateUnusable):
        bench.hypervisor.start_held(bench.spec())


def test_release_refuses_a_domain_that_never_waited(bench, clone, forwards):
    with pytest.raises(HypervisorError):
        bench.hypervisor.release(clone.domain_id, forwards, on_phase=ignore_phase)


def test_release_does_not_find_a_domain_that_is_gone(bench, forwards):
    with pytest.raises(DomainNotFound):
        bench.hypervisor.release(NOBODY, forwards, on_phase=ignore_phase)


# pause, resume, end


def test_pause_and_resume_may_be_asked_for_twice(bench, clone):
    for _ in range(2):
        bench.hypervisor.pause(clone.domain_id)
    assert _state(bench, clone) == "paused"
    assert bench.view.is_alive(clone.domain_id)

    for _ in range(2):
        bench.hypervisor.resume(clone.domain_id)

    assert _state(bench, clone) == "running"


@pytest.mark.parametrize("order", ["pause", "resume"])
def test_order_does_not_find_a_domain_that_is_gone(bench, order):
    with pytest.raises(DomainNotFound):
        getattr(bench.hypervisor, order)(NOBODY)


def test_shut_down_ends_a_guest_that_listens(bench, clone):
    bench.wait_for_service(clone)

    is_off = bench.hypervisor.shut_down(clone.domain_id, timeout_s=30)

    assert is_off
    assert _state(bench, clone) is None
    assert clone.owner in bench.hypervisor.disk_owners()


def test_shut_down_is_done_when_the_domain_is_gone(bench):
    assert bench.hypervisor.shut_down(NOBODY, timeout_s=0)


def test_shut_down_fails_when_the_guest_is_paused(bench, clone):
    bench.hypervisor.pause(clone.domain_id)

    assert not bench.hypervisor.shut_down(clone.domain_id, timeout_s=UNHEARD_S)


def test_destroy_removes_domain_and_disk(bench, clone):
    bench.hypervisor.destroy(clone.domain_id, clone.owner)

    assert _is_gone(bench, clone)


def test_destroy_may_be_asked_for_twice(bench, clone):
    bench.hypervisor.destroy(clone.domain_id, clone.owner)

    bench.hypervisor.destroy(clone.domain_id, clone.owner)

    assert _is_gone(bench, clone)


def test_destroy_refuses_the_domain_of_another_owner(bench, clone):
    with pytest.raises(HypervisorError):
        bench.hypervisor.destroy(clone.domain_id, InstanceId("somebody-else"))

    assert _state(bench, clone) == "running"


# memory states


def test_template_is_captured_with_memory_devices_and_disk(bench):
    state = bench.template

    assert state.kind is MemoryKind.TEMPLATE
    assert state.devices is not None
    assert state.disk.backing is not None
    for part in (state.memory, state.devices, state.disk.blob, state.disk.backing):
        bench.blobs.verify(part.id)


def test_template_of_a_disk_in_two_layers_has_two_layers_again(bench):
    base = bench.template.disk
    spec = replace(bench.spec(), disk=base)
    bench.capture.start_template(spec, "second")
    bench.wait_for_service(spec)

    state = bench.capture.capture_template(spec, "second")

    assert state.disk.backing == base.backing
    again = bench.spec(memory=state)
    bench.hypervisor.start(again, on_phase=ignore_phase)
    bench.wait_for_service(again)


def test_capture_refuses_a_guest_that_is_no_template(bench, clone):
    with pytest.raises(HypervisorError):
        bench.capture.capture_template(clone, "area")

    assert _state(bench, clone) == "running"


def test_capture_does_not_find_a_domain_that_is_gone(bench):
    with pytest.raises(DomainNotFound):
        bench.capture.capture_template(bench.spec(), "area")


def test_template_is_kept_when_it_is_started_twice_and_gone_when_it_is_destroyed(bench):
    spec = bench.spec()
    bench.capture.start_template(spec, "twice")
    before = bench.hypervisor.domains()

    bench.capture.start_template(spec, "twice")

    assert bench.hypervisor.domains() == before
    bench.hypervisor.destroy(spec.domain_id, spec.owner)
    assert _is_gone(bench, spec)


def test_start_template_refuses_a_guest_with_memory(bench):
    with pytest.raises(HypervisorError):
        bench.capture.start_template(bench.spec(memory=bench.template), "area")


def test_saved_guest_is_adopted_and_runs_again(bench):
    spec = bench.spec()
    bench.hypervisor.start(spec, on_phase=ignore_phase)
    bench.wait_for_service(spec)
    reports = []

    bench.capture.save_image(
        spec, "saved", state="state", disk="disk", report=lambda *told: reports.append(told)
    )

    assert _is_gone(bench, spec)
    assert reports[-1] == (spec.disk.virtual_size_bytes, spec.disk.virtual_size_bytes)
    disk = replace(spec.disk, blob=bench.blobs.adopt("saved", "disk"), backing=None)
    state = bench.capture.adopt_save_image("saved", "state", disk=disk)
    assert (state.kind, state.memory_mib) == (MemoryKind.SAVE_IMAGE, spec.memory_mib)
    copies = [bench.spec(memory=state) for _ in range(2)]
    for copy in copies:
        bench.hypervisor.start(copy, on_phase=ignore_phase)
    for copy in copies:
        bench.wait_for_service(copy)


def test_cancelled_save_ends_the_guest_and_stages_no_disk(bench):
    spec = bench.spec()
    bench.hypervisor.start(spec, on_phase=ignore_phase)

    def cancel(_done, _total):
        raise JobCancelled("asked for")

    with pytest.raises(JobCancelled):
        bench.capture.save_image(spec, "cancelled", state="state", disk="disk", report=cancel)

    assert _is_gone(bench, spec)
    with pytest.raises(NotFound):
        bench.blobs.open_staged("cancelled", "disk")
    bench.blobs.discard("cancelled")


def test_save_image_of_something_else_is_unusable(bench):
    bench.blobs.append("junk", "state", BytesIO(b"x" * 500), offset_bytes=0, limit_bytes=500)

    with pytest.raises(StateUnusable):
        bench.capture.adopt_save_image("junk", "state", disk=bench.spec().disk)


# what is seen of a guest


def test_guest_that_is_not_there_shows_nothing(bench):
    assert not bench.view.is_alive(NOBODY)
    assert not bench.view.accepts(NOBODY, 20000)
    assert not bench.view.is_connected(NOBODY)
    assert bench.view.address(NOBODY) is None
    assert bench.view.serial_tail(InstanceId("nobody"), limit_bytes=100) == b""
    assert InstanceId("nobody") not in bench.hypervisor.disk_owners()


def test_guest_is_connected_while_a_client_is(bench, clone):
    bench.wait_for_service(clone)
    _until(lambda: not bench.view.is_connected(clone.domain_id))

    with bench.client(clone):
        _until(lambda: bench.view.is_connected(clone.domain_id))

    _until(lambda: not bench.view.is_connected(clone.domain_id))


def _until(happened):
    deadline = time.monotonic() + 30.0
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_guest_in_user_mode_networking_has_no_address(bench, clone):
    assert bench.view.address(clone.domain_id) is None


def test_facts_name_a_machine_that_guests_can_be_made_with(bench):
    facts = bench.hypervisor.facts()

    assert facts.machine
    assert facts.cpu_model
    assert facts.accelerator in {"kvm", "tcg"}
    assert facts.accelerator_reason
