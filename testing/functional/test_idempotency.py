# SPDX-License-Identifier: Apache-2.0
"""Idempotency-Key: nothing is done twice, whatever happened to the first request."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta

import pytest
from webtest import TestApp, TestResponse

from pycloud.adapters.fakes.network import Answer
from pycloud.api import replies
from pycloud.core.model.identifiers import ServiceId
from pycloud.errors import InsufficientStorage
from testing.stand import OTHER_PHONE, PHONE, Stand, problem_of

WAIT = {"Prefer": "respond-async, wait=30"}
KEYED = PHONE | WAIT | {"Idempotency-Key": "k1"}
BODY = {"service_id": "echo"}


class Killed(BaseException):
    """Stands for the death of the server: nothing catches it and nothing is tidied up."""


def kill(*_args: object, **_options: object) -> None:
    raise Killed


@contextmanager
def killed_in(monkeypatch: pytest.MonkeyPatch, place: object, name: str) -> Iterator[None]:
    """Let the server die when it calls this function."""
    with monkeypatch.context() as patch:
        patch.setattr(place, name, kill)
        with pytest.raises(Killed):
            yield


def start(client: TestApp, *, status: int | None = None) -> TestResponse:
    return client.post_json("/api/v2/instances", BODY, headers=KEYED, status=status)


def number_of_instances(stand: Stand) -> int:
    return len(stand.core.instances.instances().items)


def test_repeat_gets_the_first_reply(stand: Stand, phone: TestApp) -> None:
    stand.add_service("echo")
    headers = PHONE | WAIT | {"Idempotency-Key": "k1"}
    body = {"service_id": "echo"}
    first = phone.post_json("/api/v2/instances", body, headers=headers)
    second = phone.post_json("/api/v2/instances", body, headers=headers)
    assert second.body == first.body
    assert second.headers["Idempotency-Replayed"] == "true"
    assert "Idempotency-Replayed" not in first.headers
    assert len(stand.core.instances.instances().items) == 1


def test_key_of_another_caller_is_another_key(stand: Stand, phone: TestApp) -> None:
    stand.add_service("echo")
    body = {"service_id": "echo"}
    for caller in (PHONE, OTHER_PHONE):
        phone.post_json("/api/v2/instances", body, headers=caller | WAIT | {"Idempotency-Key": "k"})
    assert len(stand.core.instances.instances().items) == 2


def test_key_for_another_request_is_refused(stand: Stand, phone: TestApp) -> None:
    stand.add_service("echo")
    headers = PHONE | {"Idempotency-Key": "k1"}
    phone.post_json("/api/v2/instances", {"service_id": "echo"}, headers=headers)
    response = phone.post_json(
        "/api/v2/instances",
        {"service_id": "echo", "join": "share"},
        headers=headers,
        status=422,
    )
    assert problem_of(response) == "idempotency_key_reused"


def test_refused_request_may_be_tried_again(stand: Stand, phone: TestApp) -> None:
    headers = PHONE | WAIT | {"Idempotency-Key": "k1"}
    body = {"service_id": "echo"}
    phone.post_json("/api/v2/instances", body, headers=headers, status=404)
    stand.add_service("echo")
    phone.post_json("/api/v2/instances", body, headers=headers, status=200)


def test_key_of_a_request_that_has_made_nothing_yet_is_refused(
    stand: Stand, phone: TestApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand.add_service("echo")
    entered, go_on = threading.Event(), threading.Event()
    startable = stand.core.catalog.startable

    def slow(service_id: ServiceId) -> object:
        entered.set()
        assert go_on.wait(30)
        return startable(service_id)

    monkeypatch.setattr(stand.core.catalog, "startable", slow)
    first = threading.Thread(target=lambda: start(stand.api()))
    first.start()
    assert entered.wait(30)
    second = start(phone, status=409)
    go_on.set()
    first.join(timeout=30)
    assert problem_of(second) == "request_in_flight"
    assert number_of_instances(stand) == 1


def test_repeat_while_the_first_request_waits_gets_its_job(stand: Stand, phone: TestApp) -> None:
    stand.add_service("echo")
    stand.probe.answer = Answer.HELD
    answers = []
    first = threading.Thread(target=lambda: answers.append(start(stand.api())))
    first.start()
    while not stand.core.jobs.active():
        pass
    headers = PHONE | {"Idempotency-Key": "k1"}
    second = phone.post_json("/api/v2/instances", BODY, headers=headers, status=202)
    stand.probe.let_go()
    first.join(timeout=30)
    assert second.headers["Idempotency-Replayed"] == "true"
    assert second.json["job"]["id"] == answers[0].json["job"]["id"]
    assert number_of_instances(stand) == 1


# -- servers that die ---------------------------------------------------------------------


def test_repeat_after_a_death_in_the_wait_gets_the_job_of_the_first(
    stand: Stand, phone: TestApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand.add_service("echo")
    with killed_in(monkeypatch, replies, "wait_for"):
        start(phone)
    repeated = start(phone, status=200)
    assert repeated.headers["Idempotency-Replayed"] == "true"
    assert repeated.json["instance"]["state"] == "running"
    assert number_of_instances(stand) == 1


def test_repeat_after_a_death_right_behind_the_job_gets_that_job(
    stand: Stand, phone: TestApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand.add_service("echo")
    with killed_in(monkeypatch, stand.store.idempotent_replies, "replace"):
        start(phone)
    make_the_claims_older(stand, timedelta(hours=1))
    repeated = start(phone, status=200)
    assert repeated.json["job"]["state"] == "succeeded"
    assert number_of_instances(stand) == 1


def test_repeat_after_a_death_gets_the_job_for_a_join_too(
    stand: Stand, phone: TestApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand.add_service("echo", sharing_limit=3)
    stand.probe.answer = Answer.HELD
    share = BODY | {"join": "share"}
    first = phone.post_json("/api/v2/instances", share, headers=OTHER_PHONE, status=202).json
    with killed_in(monkeypatch, replies, "wait_for"):
        phone.post_json("/api/v2/instances", share, headers=KEYED)
    stand.probe.let_go()
    make_the_claims_older(stand, timedelta(hours=1))
    repeated = phone.post_json("/api/v2/instances", share, headers=KEYED, status=200)
    assert repeated.json["job"]["id"] == first["job"]["id"]
    assert repeated.json["instance"]["users"] == 2


def test_repeat_after_a_death_before_the_job_is_tried_anew_in_a_while(
    stand: Stand, phone: TestApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand.add_service("echo")
    with killed_in(monkeypatch, stand.core.catalog, "startable"):
        start(phone)
    refused = start(phone, status=409)
    make_the_claims_older(stand, timedelta(minutes=10))
    start(phone, status=200)
    assert problem_of(refused) == "request_in_flight"
    assert number_of_instances(stand) == 1


def test_job_that_was_made_and_forgotten_is_not_made_again(
    stand: Stand, phone: TestApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand.add_service("echo")
    with killed_in(monkeypatch, replies, "wait_for"):
        start(phone)
    (job,) = stand.core.jobs.jobs().items
    stand.core.jobs.wait(job.id, timeout_s=30)
    stand.store.jobs.remove(job.id)
    make_the_claims_older(stand, timedelta(hours=2))
    assert problem_of(start(phone, status=404)) == "not_found"
    assert number_of_instances(stand) == 1


@pytest.mark.parametrize("place", ["/api/v2/services/echo/prepare", "/api/v2/packages"])
def test_other_work_is_not_done_twice_after_a_death(
    stand: Stand, phone: TestApp, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    stand.add_service("echo")
    headers = stand.admin | {"Idempotency-Key": "k1"}
    with killed_in(monkeypatch, stand.store.idempotent_replies, "replace"):
        phone.post_json(place, BODY, headers=headers)
    make_the_claims_older(stand, timedelta(hours=1))
    repeated = phone.post_json(place, BODY, headers=headers | WAIT, status=200)
    (job,) = stand.core.jobs.jobs().items
    assert repeated.json["id"] == job.id


def test_request_is_answered_although_its_reply_finds_no_room(
    stand: Stand, phone: TestApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_record: object) -> None:
        message = "the disk is full"
        raise InsufficientStorage(message)

    stand.add_service("echo")
    with monkeypatch.context() as patch:
        patch.setattr(stand.store.idempotent_replies, "replace", full)
        first = start(phone, status=200)
    make_the_claims_older(stand, timedelta(hours=1))
    second = start(phone, status=200)
    assert second.json == first.json
    assert number_of_instances(stand) == 1


def test_failure_behind_the_job_does_not_free_the_key(
    stand: Stand, phone: TestApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_args: object, **_options: object) -> None:
        raise RuntimeError

    stand.add_service("echo")
    with monkeypatch.context() as patch:
        patch.setattr("pycloud.api.replies.wait_for", broken)
        start(phone, status=500)
    start(phone, status=200)
    assert number_of_instances(stand) == 1


def make_the_claims_older(stand: Stand, age: timedelta) -> None:
    """Let it look as if the first requests had come so much earlier."""
    kept = stand.store.idempotent_replies
    for claim in kept.find().items:
        kept.remove(claim.id)
        kept.add(replace(claim, created_at=claim.created_at - age))
