# SPDX-License-Identifier: Apache-2.0
"""Guests, servers and daemons that die, and neighbours on the same libvirt."""

import os
import pickle
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import libvirt
import pytest

from pycloud.adapters.libvirt import session_daemon
from pycloud.adapters.libvirt.connection import Connection
from pycloud.adapters.libvirt.domain_xml import render
from pycloud.core.model.identifiers import DomainId
from pycloud.errors import HypervisorUnavailable
from testing.guest import GuestVariant
from testing.real_host import (
    SESSION_URI,
    RealHost,
    answer_of,
    ignore_phase,
    published_port,
    running_real_host,
)
from testing.unit.adapters.libvirt.plans import all_plans

DEADLINE_S = 60.0
SCHEMA_CHECKED = sorted(
    name
    for name, plan in all_plans().items()
    # Descriptions for other accelerators, architectures and daemons need those to be there.
    if plan.machine.accelerator == "tcg"
    and plan.machine.architecture == "x86_64"
    and plan.process_owner is None
)


def _until(happened):
    deadline = time.monotonic() + DEADLINE_S
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _emulator_pid(domain_id):
    """Return the process of a domain's emulator, found by the id in its arguments."""
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            arguments = entry.read_bytes().split(b"\0")
        except OSError:
            continue
        if b"qemu-system" in arguments[0] and domain_id.encode() in arguments:
            return int(entry.parent.name)
    raise AssertionError(f"no emulator runs {domain_id}")


# guests that die


@pytest.mark.parametrize("variant", [GuestVariant.PANIC, GuestVariant.PANIC_LOOP])
def test_guest_is_not_alive_when_its_kernel_panicked(real_host, variant):
    spec = real_host.spec(disk=real_host.guest_disk(variant))
    view = real_host.adapters.guest_view

    real_host.adapters.hypervisor.start(spec, on_phase=ignore_phase)

    _until(lambda: not view.is_alive(spec.domain_id))
    assert b"panic" in view.serial_tail(spec.owner, limit_bytes=20_000)
    real_host.end(spec)


def test_guest_is_not_alive_when_its_emulator_was_killed(real_host):
    spec = real_host.clone()

    os.kill(_emulator_pid(spec.domain_id), signal.SIGKILL)

    _until(lambda: not real_host.adapters.guest_view.is_alive(spec.domain_id))
    assert spec.owner in real_host.leftovers()
    real_host.end(spec)
    assert spec.owner not in real_host.leftovers()


# servers that die


@pytest.mark.parametrize("phase", ["disk", "domain", "state", "ports", "resume"])
def test_start_that_was_killed_leaves_what_destroy_finds(real_host, phase):
    spec = real_host.spec(memory=real_host.template)
    command = [sys.executable, "-m", "testing.system.starter", str(real_host.data.root), phase]

    finished = subprocess.run(command, input=pickle.dumps(spec), timeout=DEADLINE_S, check=False)

    assert finished.returncode == -signal.SIGKILL
    assert spec.owner in real_host.leftovers()
    real_host.end(spec)
    assert spec.owner not in real_host.leftovers()


def test_start_succeeds_after_one_that_was_killed(real_host):
    spec = real_host.spec(memory=real_host.template)
    command = [sys.executable, "-m", "testing.system.starter", str(real_host.data.root), "state"]
    subprocess.run(command, input=pickle.dumps(spec), timeout=DEADLINE_S, check=False)

    real_host.adapters.hypervisor.start(spec, on_phase=ignore_phase)

    assert answer_of(published_port(spec))
    real_host.end(spec)


# daemons that die


@contextmanager
def _private_daemon(monkeypatch):
    """Let the adapters use a session daemon of their own for a while; yield its pid file."""
    with tempfile.TemporaryDirectory(prefix="pycloud-") as directory:
        monkeypatch.setattr(session_daemon, "RUNTIME_DIR", Path(directory))
        monkeypatch.setenv("XDG_RUNTIME_DIR", directory)
        pid_file = Path(directory) / "libvirt" / "libvirtd.pid"
        try:
            yield pid_file
        finally:
            os.kill(int(pid_file.read_text(encoding="ascii")), signal.SIGTERM)


def test_guest_outlives_the_daemon_and_is_found_again(tmp_path, monkeypatch):
    with _private_daemon(monkeypatch) as pid_file, running_real_host(tmp_path) as host:
        spec = host.spec()
        hypervisor = host.adapters.hypervisor
        hypervisor.start(spec, on_phase=ignore_phase)
        answer_of(published_port(spec))

        os.kill(int(pid_file.read_text(encoding="ascii")), signal.SIGKILL)

        assert answer_of(published_port(spec))
        assert [domain.id for domain in hypervisor.domains()] == [spec.domain_id]
        assert host.adapters.guest_view.is_alive(spec.domain_id)
        host.end(spec)


def test_call_fails_in_words_when_the_daemon_dies_under_it(tmp_path, monkeypatch):
    with _private_daemon(monkeypatch) as pid_file:
        connection = Connection(SESSION_URI)

        def kill_and_ask(handle):
            os.kill(int(pid_file.read_text(encoding="ascii")), signal.SIGKILL)
            return handle.listAllDomains(0)

        connection.run(lambda handle: handle.getLibVersion())
        with pytest.raises(HypervisorUnavailable, match="qemu:///session"):
            connection.run(kill_and_ask)

        assert connection.run(lambda handle: handle.getLibVersion()) > 0


def test_call_fails_in_words_when_the_daemon_hangs():
    connection = Connection(SESSION_URI)

    with pytest.raises(HypervisorUnavailable, match=r"within 0\.1 s"):
        connection.run(lambda _handle: time.sleep(0.5), timeout_s=0.1)


def test_call_fails_in_words_when_there_is_no_libvirt():
    connection = Connection("qemu+unix:///session?socket=/nonexistent")

    with pytest.raises(HypervisorUnavailable, match="nonexistent"):
        connection.run(lambda handle: handle.getLibVersion())


# neighbours


def test_cloudlets_on_one_libvirt_do_not_see_each_other(real_host, tmp_path):
    spec = real_host.clone()

    with running_real_host(tmp_path) as other:
        seen = other.adapters.hypervisor.domains()
        is_alive = other.adapters.guest_view.is_alive(spec.domain_id)
        other.adapters.hypervisor.destroy(spec.domain_id, spec.owner)

    assert seen == ()
    assert not is_alive
    assert answer_of(published_port(spec))
    real_host.end(spec)


def test_foreign_domain_is_left_alone_even_with_a_name_like_ours(real_host):
    plan = replace(all_plans()["x86_64-linux-user"], tag=None, name="pycloud-foreign")
    overlay = real_host.data.root.parent / "foreign.qcow2"
    subprocess.run(
        ["qemu-img", "create", "-q", "-f", "qcow2", str(overlay), "1M"], check=True, timeout=30
    )
    plan = replace(
        plan,
        disk=replace(plan.disk, overlay=overlay, layers=()),
        serial_log=overlay.with_suffix(".log"),
    )
    connection = Connection(SESSION_URI)
    connection.run(lambda handle: handle.createXML(render(plan), libvirt.VIR_DOMAIN_START_PAUSED))

    real_host.adapters.hypervisor.destroy(DomainId(plan.domain_id), plan.disk.overlay.stem)
    listed = real_host.adapters.hypervisor.domains()

    assert plan.domain_id not in [domain.id for domain in listed]
    connection.run(lambda handle: handle.lookupByUUIDString(plan.domain_id).destroy())


@pytest.mark.parametrize("name", SCHEMA_CHECKED)
def test_golden_description_satisfies_libvirts_schema(name):
    plan = replace(all_plans()[name], name=f"pycloud-schema-{name}")
    connection = Connection(SESSION_URI)

    def define(handle):
        domain = handle.defineXMLFlags(render(plan), libvirt.VIR_DOMAIN_DEFINE_VALIDATE)
        domain.undefine()
        return domain.name()

    assert connection.run(define) == plan.name


def test_second_server_on_the_same_data_sees_the_same_guests(real_host: RealHost):
    spec = real_host.clone()

    second = real_host.another()

    assert spec.domain_id in [domain.id for domain in second.hypervisor.domains()]
    second.hypervisor.destroy(spec.domain_id, spec.owner)
    assert spec.owner not in real_host.leftovers()
