# SPDX-License-Identifier: Apache-2.0
"""Copies of one memory state: apart from each other, and harmless to what they came from."""

import json
from dataclasses import replace

import pytest

from pycloud.adapters.libvirt.connection import Connection
from pycloud.adapters.libvirt.monitor import Monitor
from pycloud.core.model.catalog import BlobRef
from pycloud.errors import HypervisorError, StateUnusable
from testing.real_host import (
    MEMORY_MIB,
    SESSION_URI,
    Phases,
    answer_of,
    ignore_phase,
    published_port,
)

DIRTIED_MIB = 16


def _ask(spec, path):
    return json.loads(answer_of(published_port(spec), path, request_timeout_s=30))


def test_template_stays_as_it_is_when_its_copies_write_to_memory(real_host):
    memory = real_host.template
    copies = [real_host.clone() for _ in range(4)]

    held = [_ask(copy, f"/memory?touch_mib={DIRTIED_MIB}")["held_mib"] for copy in copies]

    real_host.end(*copies)
    assert held == [DIRTIED_MIB] * len(copies)
    real_host.blobs.verify(memory.memory.id)
    real_host.blobs.verify(memory.devices.id)
    real_host.blobs.verify(memory.disk.blob.id)


def test_copy_cannot_be_ballooned_into_its_templates_memory(real_host):
    spec = real_host.clone()
    monitor = Monitor(Connection(SESSION_URI), spec.domain_id)

    with pytest.raises(HypervisorError, match="balloon"):
        monitor.execute("balloon", {"value": 64 << 20})

    real_host.end(spec)
    real_host.blobs.verify(real_host.template.memory.id)


def test_copies_write_to_disks_of_their_own(real_host):
    first, second = real_host.clone(), real_host.clone()
    for _ in range(3):
        _ask(first, "/visits")

    count = _ask(second, "/visits")

    assert _ask(first, "/visits") != count
    real_host.end(first, second)
    real_host.blobs.verify(real_host.disk.blob.id)


def test_copy_goes_on_where_its_template_stopped(real_host):
    phases = Phases()
    spec = real_host.spec(memory=real_host.template)

    real_host.adapters.hypervisor.start(spec, on_phase=phases)

    assert phases.names == ["disk", "domain", "state", "ports", "resume"]
    answer_of(published_port(spec))
    printed = real_host.adapters.guest_view.serial_tail(spec.owner, limit_bytes=10_000)
    assert b"booted after" not in printed
    real_host.end(spec)


def test_cold_guest_shows_its_boot_on_the_serial_port(real_host):
    spec = real_host.spec()
    real_host.adapters.hypervisor.start(spec, on_phase=ignore_phase)
    answer_of(published_port(spec))

    printed = real_host.adapters.guest_view.serial_tail(spec.owner, limit_bytes=10_000)

    assert b"booted after" in printed
    assert real_host.adapters.guest_view.serial_tail(spec.owner, limit_bytes=7) == printed[-7:]
    real_host.end(spec)


@pytest.fixture
def damaged(real_host, tmp_path):
    """Make a memory state with another stream of devices."""

    def make(content):
        path = tmp_path / "devices"
        path.write_bytes(content)
        return replace(real_host.template, devices=real_host.put_blob(path))

    return make


def _stream(real_host):
    with real_host.blobs.open(real_host.template.devices.id) as stream:
        return stream.read()


@pytest.mark.parametrize("kind", ["cut short", "overwritten", "nothing"])
def test_start_calls_a_damaged_state_unusable_and_leaves_nothing(real_host, damaged, kind):
    stream = _stream(real_host)
    content = {
        "cut short": stream[: len(stream) // 2],
        "overwritten": stream[:4000] + b"\xff" * 4000 + stream[8000:],
        "nothing": b"",
    }[kind]
    spec = real_host.spec(memory=damaged(content))

    with pytest.raises(StateUnusable):
        real_host.adapters.hypervisor.start(spec, on_phase=ignore_phase)

    assert spec.owner not in real_host.leftovers()


@pytest.mark.parametrize("machine", ["pc-i440fx-99.0", "pc-q35-7.2"])
def test_start_calls_a_state_of_another_machine_unusable(real_host, machine):
    memory = replace(
        real_host.template, machine=replace(real_host.template.machine, machine=machine)
    )
    spec = real_host.spec(memory=memory)

    with pytest.raises(StateUnusable):
        real_host.adapters.hypervisor.start(spec, on_phase=ignore_phase)

    assert spec.owner not in real_host.leftovers()


def test_start_calls_ram_of_another_size_unusable(real_host, tmp_path):
    small = tmp_path / "ram"
    small.write_bytes(b"\0" * 4096)
    blob: BlobRef = real_host.put_blob(small)
    spec = real_host.spec(memory=replace(real_host.template, memory=blob))

    with pytest.raises(StateUnusable):
        real_host.adapters.hypervisor.start(spec, on_phase=ignore_phase)

    assert spec.owner not in real_host.leftovers()


def test_guest_has_the_memory_it_was_given(real_host):
    spec = real_host.clone()

    document = _ask(spec, "/memory")

    assert MEMORY_MIB * 0.7 < document["total_mib"] <= MEMORY_MIB
    real_host.end(spec)
