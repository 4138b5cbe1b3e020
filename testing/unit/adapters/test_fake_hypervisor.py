# SPDX-License-Identifier: Apache-2.0
"""The fake hypervisor refuses what the real one refuses."""

from dataclasses import replace
from io import BytesIO

import pytest

from pycloud.adapters.fakes import (
    FakeClock,
    FakeHypervisor,
    MemoryBlobs,
    fake_qcow2,
    fake_save_image,
)
from pycloud.core.model.catalog import BlobRef, MachineSpec, MemoryKind, OsType, StoredDisk
from pycloud.core.model.identifiers import BlobId, DomainId, InstanceId
from pycloud.core.model.runtime import PortMapping, StartMethod
from pycloud.core.ports import BridgedNetwork, DomainSpec, UserNetwork
from pycloud.errors import (
    DomainNotFound,
    HypervisorError,
    HypervisorUnavailable,
    PortInUse,
    StateUnusable,
)

MACHINE = MachineSpec(machine="pc-i440fx-7.2", cpu_model="qemu64", accelerator="tcg")


@pytest.fixture
def blobs():
    return MemoryBlobs()


@pytest.fixture
def hypervisor(blobs):
    return FakeHypervisor(blobs, clock=FakeClock())


@pytest.fixture
def spec(blobs):
    disk = StoredDisk(blob=blobs.put(fake_qcow2()), virtual_size_bytes=64 << 20)
    return DomainSpec(
        owner=InstanceId("one"),
        domain_id=DomainId("11111111-1111-4111-8111-111111111111"),
        machine=MACHINE,
        os_type=OsType.LINUX,
        vcpus=1,
        memory_mib=256,
        disk=disk,
        network=UserNetwork(forwards=(PortMapping(guest_port=80, host_port=20000),)),
    )


def ignore(_phase):
    pass


def another(spec, number, *, host_port):
    return replace(
        spec,
        owner=InstanceId(f"i{number}"),
        domain_id=DomainId(f"d{number}"),
        network=UserNetwork(forwards=(PortMapping(guest_port=80, host_port=host_port),)),
    )


def captured(hypervisor, spec):
    template = another(spec, "template", host_port=20999)
    hypervisor.start_template(template, "job")
    return hypervisor.capture_template(template, "job")


def with_memory(spec, memory):
    return replace(spec, memory=memory, disk=memory.disk)


def test_start_keeps_one_domain_when_called_twice(hypervisor, spec):
    hypervisor.start(spec, on_phase=ignore)

    hypervisor.start(spec, on_phase=ignore)

    assert [info.owner for info in hypervisor.domains()] == ["one"]
    assert hypervisor.disk_owners() == ("one",)
    assert [start.method for start in hypervisor.starts()] == [StartMethod.COLD]


def test_start_reports_its_phases_when_it_succeeds(hypervisor, spec):
    phases = []

    hypervisor.start(spec, on_phase=phases.append)

    assert phases == ["disk", "domain"]


@pytest.mark.parametrize("holder", ["program", "domain"])
def test_start_leaves_nothing_behind_when_a_port_is_taken(hypervisor, spec, holder):
    if holder == "program":
        hypervisor.take_port(20000)
    else:
        hypervisor.start(another(spec, 2, host_port=20000), on_phase=ignore)

    with pytest.raises(PortInUse):
        hypervisor.start(spec, on_phase=ignore)

    assert "one" not in hypervisor.disk_owners()
    assert spec.domain_id not in {info.id for info in hypervisor.domains()}


def test_start_fails_when_a_disk_layer_is_missing(hypervisor, spec):
    gone = StoredDisk(blob=BlobRef(id=BlobId("0" * 64), size_bytes=1), virtual_size_bytes=1)

    with pytest.raises(HypervisorError, match="layer"):
        hypervisor.start(replace(spec, disk=gone), on_phase=ignore)

    assert hypervisor.disk_owners() == ()


def test_start_clones_when_there_is_a_template(hypervisor, spec):
    memory = captured(hypervisor, spec)

    hypervisor.start(with_memory(spec, memory), on_phase=ignore)

    assert hypervisor.starts()[-1].method is StartMethod.CLONE


def test_start_refuses_memory_when_the_disk_is_another(hypervisor, spec):
    memory = captured(hypervisor, spec)

    with pytest.raises(HypervisorError, match="own disk"):
        hypervisor.start(replace(spec, memory=memory), on_phase=ignore)


def test_start_refuses_memory_when_it_was_made_unusable(hypervisor, spec):
    memory = captured(hypervisor, spec)
    hypervisor.make_unusable(memory.memory.id)

    with pytest.raises(StateUnusable):
        hypervisor.start(with_memory(spec, memory), on_phase=ignore)

    assert hypervisor.disk_owners() == ()


def test_start_refuses_memory_when_its_blob_is_gone(hypervisor, spec, blobs):
    memory = captured(hypervisor, spec)
    blobs.remove(memory.memory.id)

    with pytest.raises(HypervisorError, match="missing"):
        hypervisor.start(with_memory(spec, memory), on_phase=ignore)


def test_start_refuses_memory_when_the_guest_is_sized_otherwise(hypervisor, spec):
    memory = captured(hypervisor, spec)

    with pytest.raises(StateUnusable):
        hypervisor.start(replace(with_memory(spec, memory), memory_mib=512), on_phase=ignore)


def test_start_held_waits_without_ports_until_released(hypervisor, spec):
    memory = captured(hypervisor, spec)
    hypervisor.start_held(with_memory(spec, memory))
    held = hypervisor.domain(spec.domain_id)

    hypervisor.release(
        spec.domain_id, [PortMapping(guest_port=80, host_port=20001)], on_phase=ignore
    )

    assert (held.state, held.forwards) == ("paused", ())
    assert hypervisor.domain(spec.domain_id).state == "running"
    assert hypervisor.starts()[-1].method is StartMethod.WARM


def test_start_held_refuses_when_there_is_no_memory(hypervisor, spec):
    with pytest.raises(StateUnusable):
        hypervisor.start_held(spec)


def test_release_leaves_the_domain_held_when_the_port_is_taken(hypervisor, spec):
    hypervisor.start_held(with_memory(spec, captured(hypervisor, spec)))
    hypervisor.take_port(20001)

    with pytest.raises(PortInUse):
        hypervisor.release(
            spec.domain_id, [PortMapping(guest_port=80, host_port=20001)], on_phase=ignore
        )

    assert hypervisor.domain(spec.domain_id).held


def test_resume_refuses_when_the_domain_is_held(hypervisor, spec):
    hypervisor.start_held(with_memory(spec, captured(hypervisor, spec)))

    with pytest.raises(HypervisorError):
        hypervisor.resume(spec.domain_id)


def test_shut_down_keeps_the_disk_when_the_guest_obeys(hypervisor, spec):
    hypervisor.start(spec, on_phase=ignore)

    obeyed = hypervisor.shut_down(spec.domain_id, timeout_s=5)

    assert obeyed
    assert hypervisor.domains() == ()
    assert hypervisor.disk_owners() == ("one",)


def test_shut_down_takes_its_time_when_the_guest_ignores_it(blobs, spec):
    clock = FakeClock()
    hypervisor = FakeHypervisor(blobs, clock=clock)
    hypervisor.ignores_shut_down = True
    hypervisor.start(spec, on_phase=ignore)

    obeyed = hypervisor.shut_down(spec.domain_id, timeout_s=5)

    assert not obeyed
    assert clock.monotonic() == 5


def test_destroy_does_nothing_when_the_domain_is_gone(hypervisor, spec):
    hypervisor.start(spec, on_phase=ignore)
    hypervisor.destroy(spec.domain_id, spec.owner)

    hypervisor.destroy(spec.domain_id, spec.owner)

    assert hypervisor.disk_owners() == ()


def test_destroy_spares_a_domain_when_the_owner_is_another(hypervisor, spec):
    hypervisor.start(spec, on_phase=ignore)

    with pytest.raises(HypervisorError):
        hypervisor.destroy(spec.domain_id, InstanceId("other"))

    assert len(hypervisor.domains()) == 1


@pytest.mark.parametrize("verb", ["pause", "resume"])
def test_pause_and_resume_fail_when_there_is_no_domain(hypervisor, verb):
    with pytest.raises(DomainNotFound):
        getattr(hypervisor, verb)(DomainId("nobody"))


def test_pause_is_idempotent_until_resumed(hypervisor, spec):
    hypervisor.start(spec, on_phase=ignore)
    hypervisor.pause(spec.domain_id)
    hypervisor.pause(spec.domain_id)
    paused = hypervisor.domains()[0].state

    hypervisor.resume(spec.domain_id)

    assert (paused, hypervisor.domains()[0].state) == ("paused", "running")


def test_capture_template_adopts_everything_when_the_guest_runs(hypervisor, spec, blobs):
    memory = captured(hypervisor, spec)

    stored = {ref.id for ref in blobs.stored()}
    assert memory.kind is MemoryKind.TEMPLATE
    assert {memory.memory.id, memory.devices.id, memory.disk.blob.id} <= stored
    assert memory.disk.backing == spec.disk.blob
    assert hypervisor.domains() == ()
    assert hypervisor.disk_owners() == ()


def test_capture_template_fails_when_the_domain_is_plain(hypervisor, spec):
    hypervisor.start(spec, on_phase=ignore)

    with pytest.raises(HypervisorError):
        hypervisor.capture_template(spec, "job")


def test_save_image_can_be_adopted_when_it_is_staged_again(hypervisor, spec):
    hypervisor.start(spec, on_phase=ignore)
    hypervisor.save_image(spec, "job", state="state", disk="disk")

    memory = hypervisor.adopt_save_image("job", "state", disk=spec.disk)

    hypervisor.start(with_memory(spec, memory), on_phase=ignore)
    assert hypervisor.starts()[-1].method is StartMethod.RESTORE


@pytest.mark.parametrize("content", [b"nonsense", fake_save_image(memory_mib=1, vcpus=1)[:-3]])
def test_adopt_save_image_refuses_when_the_content_is_foreign(hypervisor, spec, blobs, content):
    blobs.append("job", "state", BytesIO(content), offset_bytes=0, limit_bytes=1 << 20)

    with pytest.raises(StateUnusable):
        hypervisor.adopt_save_image("job", "state", disk=spec.disk)


def test_is_alive_denies_when_the_guest_crashed(hypervisor, spec):
    hypervisor.start(spec, on_phase=ignore)

    hypervisor.crash(spec.domain_id)

    assert not hypervisor.is_alive(spec.domain_id)
    assert hypervisor.domains()[0].state == "crashed"


def test_accepts_knows_only_published_ports_when_the_guest_runs(hypervisor, spec):
    hypervisor.start(spec, on_phase=ignore)

    assert hypervisor.accepts(spec.domain_id, 20000)
    assert not hypervisor.accepts(spec.domain_id, 20001)


@pytest.mark.parametrize("accepting", [True, False])
def test_bridged_guest_takes_connections_itself_on_any_port(hypervisor, spec, accepting):
    network = BridgedNetwork(bridge="br0", mac_address="52:54:00:00:00:01")
    hypervisor.start(replace(spec, network=network), on_phase=ignore)
    hypervisor.accepting = accepting

    assert hypervisor.accepts(spec.domain_id, 8080) is accepting


def test_address_is_known_when_the_guest_is_bridged(hypervisor, spec):
    network = BridgedNetwork(bridge="br0", mac_address="52:54:00:00:00:01")
    hypervisor.start(replace(spec, network=network), on_phase=ignore)
    before = hypervisor.address(spec.domain_id)

    hypervisor.set_address(spec.domain_id, None)

    assert before == "192.0.2.100"
    assert hypervisor.address(spec.domain_id) is None


def test_every_call_fails_when_the_hypervisor_is_unavailable(hypervisor, spec):
    hypervisor.available = False

    with pytest.raises(HypervisorUnavailable):
        hypervisor.start(spec, on_phase=ignore)
    with pytest.raises(HypervisorUnavailable):
        hypervisor.domains()


def test_fail_next_fails_one_call_when_asked(hypervisor, spec):
    hypervisor.fail_next("start", HypervisorError("out of luck"))

    with pytest.raises(HypervisorError, match="luck"):
        hypervisor.start(spec, on_phase=ignore)

    hypervisor.start(spec, on_phase=ignore)
    assert len(hypervisor.domains()) == 1


def test_reboot_host_keeps_only_disks(hypervisor, spec):
    hypervisor.start(spec, on_phase=ignore)

    hypervisor.reboot_host()

    assert hypervisor.domains() == ()
    assert hypervisor.disk_owners() == ("one",)


def test_serial_tail_is_bounded_when_the_guest_talks(hypervisor, spec):
    hypervisor.write_serial(spec.owner, b"booting... panic")

    assert hypervisor.serial_tail(spec.owner, limit_bytes=5) == b"panic"
