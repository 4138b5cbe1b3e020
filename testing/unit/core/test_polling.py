# SPDX-License-Identifier: Apache-2.0
"""What phones ask every few seconds is cheap, and yet nothing is missed."""

from pathlib import Path

from pycloud.adapters.fakes import FakeClock
from pycloud.core.instances import StartRequest
from pycloud.core.model.identifiers import DeviceId, Principal, ServiceId
from testing.stand import Stand, make_stand

PHONE, ECHO = DeviceId("phone-1"), ServiceId("echo")


def running(tmp_path: Path, *, idle_timeout_s: int) -> tuple[Stand, FakeClock]:
    clock = FakeClock()
    stand = make_stand(tmp_path, clock=clock, idle_timeout_s=str(idle_timeout_s))
    stand.add_service("echo")
    stand.core.instances.request_start(
        StartRequest(service_id=ECHO, device_id=PHONE), by=Principal("device:phone-1")
    )
    stand.core.background.runner.run_pending()
    return stand, clock


def test_box_seen_empty_hands_out_what_comes_later(tmp_path: Path) -> None:
    mailbox = make_stand(tmp_path).core.mailbox
    before = mailbox.take(PHONE, ECHO)
    mailbox.put(PHONE, ECHO, "hello", {})
    first, second = mailbox.take(PHONE, ECHO), mailbox.take(PHONE, ECHO)
    assert (before, [one.message for one in first], second) == ((), ["hello"], ())


def test_touch_renews_an_instance_with_an_idle_deadline(tmp_path: Path) -> None:
    stand, clock = running(tmp_path, idle_timeout_s=100)
    (before,) = stand.core.instances.instances().items
    clock.advance(50)
    stand.core.instances.touch(ECHO, PHONE)
    (after,) = stand.core.instances.instances().items
    assert after.idle_at > before.idle_at


def test_touch_sees_an_instance_started_after_it_saw_none(tmp_path: Path) -> None:
    stand, clock = running(tmp_path, idle_timeout_s=100)
    (instance,) = stand.core.instances.instances().items
    stand.store.instances.remove(instance.id)
    stand.core.instances.touch(ECHO, PHONE)
    stand.store.instances.add(instance)
    clock.advance(50)
    stand.core.instances.touch(ECHO, PHONE)
    (after,) = stand.core.instances.instances().items
    assert after.idle_at > instance.idle_at


def test_touch_reads_nothing_again_while_nothing_is_timed(tmp_path: Path, monkeypatch) -> None:
    stand, _ = running(tmp_path, idle_timeout_s=0)
    stand.core.instances.touch(ECHO, PHONE)
    monkeypatch.setattr(stand.store.instances, "find", None)
    stand.core.instances.touch(ECHO, PHONE)
    assert stand.store.instances.count() == 1
