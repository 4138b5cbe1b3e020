# SPDX-License-Identifier: Apache-2.0
"""Mail, access, the state of the cloudlet, and what runs in the background."""

from functools import partial

import pytest

from pycloud.core.access import ADMIN, SYSTEM
from pycloud.core.model.identifiers import DeviceId, Principal, ServiceId
from pycloud.errors import HypervisorUnavailable, StoreUnavailable, Unauthenticated
from testing.composed import a_core
from testing.factories import HISTOGRAM
from testing.unit.core.races import at_once, wait_until

PHONE = DeviceId("phone")


@pytest.fixture
def composed():
    return a_core()


# -- mail ---------------------------------------------------------------------------------


def test_mail_is_delivered_once_and_in_order(composed):
    mailbox = composed.core.mailbox
    for text in ("first", "second"):
        composed.clock.advance(1)
        mailbox.put(PHONE, HISTOGRAM, text, {"a": "1"})

    taken = [message.message for message in mailbox.take(PHONE, HISTOGRAM)]

    assert (taken, mailbox.take(PHONE, HISTOGRAM)) == (["first", "second"], ())


def test_mail_is_for_one_device_and_service(composed):
    mailbox = composed.core.mailbox
    mailbox.put(PHONE, HISTOGRAM, "hello", {})

    others = mailbox.take(DeviceId("phon"), HISTOGRAM) + mailbox.take(PHONE, ServiceId("other"))

    assert others == ()
    assert len(mailbox.take(PHONE, HISTOGRAM)) == 1


def test_mail_arrives_after_a_look_into_an_empty_box(composed):
    server = composed.another_server()
    composed.core.mailbox.take(PHONE, HISTOGRAM)
    server.core.mailbox.put(PHONE, HISTOGRAM, "hello", {})

    assert len(composed.core.mailbox.take(PHONE, HISTOGRAM)) == 1


def test_mail_is_delivered_exactly_once_when_takes_race(composed):
    servers = [composed.core.mailbox, composed.another_server().core.mailbox] * 4
    for number in range(20):
        composed.core.mailbox.put(PHONE, HISTOGRAM, str(number), {})

    taken = at_once([partial(mailbox.take, PHONE, HISTOGRAM) for mailbox in servers])

    delivered = [message.message for messages in taken for message in messages]
    assert sorted(delivered, key=int) == [str(number) for number in range(20)]


# -- access -------------------------------------------------------------------------------------


def test_token_of_the_administrator_is_known(composed):
    assert composed.core.access.authenticate("clt_test_admin.token") == ADMIN


@pytest.mark.parametrize("token", ["", "clt_test_admin.toke", "ä", "\udcff", "x" * 100_000])
def test_other_tokens_are_refused(composed, token):
    with pytest.raises(Unauthenticated) as caught:
        composed.core.access.authenticate(token)

    assert token not in caught.value.message or not token


@pytest.mark.parametrize(
    ("principal", "is_admin"),
    [(ADMIN, True), (SYSTEM, True), ("device:admin", False), ("address:127.0.0.1", False)],
)
def test_only_the_administrator_may_change_the_cloudlet(composed, principal, is_admin):
    assert composed.core.access.is_admin(Principal(principal)) is is_admin


# -- the cloudlet ---------------------------------------------------------------------------------


def test_checks_are_well_when_all_works(composed):
    assert all(check.ok for check in composed.core.system.checks())


def test_checks_name_what_does_not_work(composed):
    composed.hypervisor.available = False
    composed.blobs.set_free_bytes(1000)

    checks = {check.name: check.ok for check in composed.core.system.checks()}

    assert checks == {"store": True, "hypervisor": False, "disk": False}


def test_store_that_is_gone_is_named(composed):
    composed.store.close()

    assert not composed.core.system.checks()[0].ok


def test_hypervisor_facts_need_the_hypervisor(composed):
    composed.hypervisor.available = False

    with pytest.raises(HypervisorUnavailable):
        composed.core.hypervisor_facts()


# -- the background -----------------------------------------------------------------------------------


def test_background_announces_and_says_goodbye(composed):
    background = composed.core.background
    background.start()
    wait_until(lambda: composed.discovery._announced)

    background.stop()
    background.stop()

    assert not composed.discovery._announced
    with pytest.raises(StoreUnavailable):
        composed.store.ping()


def test_background_runs_jobs_and_leaves_vms_running(composed):
    composed.add_service()
    background = composed.core.background
    background.start()
    started = composed.request_start(HISTOGRAM)
    wait_until(lambda: composed.core.jobs.job(started.job.id).is_final)

    background.stop()

    assert len(composed.hypervisor.domains()) == 1


def test_background_stops_though_it_was_never_started(composed):
    composed.core.background.stop()

    with pytest.raises(StoreUnavailable):
        composed.store.ping()
