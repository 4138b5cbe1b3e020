# SPDX-License-Identifier: Apache-2.0
"""/api/v2: Instances, from their start to their end."""

from dataclasses import replace

import pytest
from webtest import TestApp, TestResponse

from pycloud.adapters.fakes.network import Answer
from pycloud.core.model.identifiers import (
    HostId,
    InstanceId,
    ServiceId,
)
from pycloud.core.model.runtime import InstanceState
from testing.factories import an_instance
from testing.functional.v2_calls import WAIT, start
from testing.stand import OTHER_PHONE, PHONE, Stand, problem_of


def test_start_is_held_until_the_service_answers(stand: Stand, phone: TestApp) -> None:
    stand.add_service("echo")
    started = start(phone)
    assert started["job"]["state"] == "succeeded"
    assert started["instance"]["state"] == "running"
    assert started["instance"]["port"] is not None
    assert started["instance"]["owner"] == "device:phone-1"
    assert started["instance"]["timeline"]


def test_instance_has_another_tag_for_whoever_may_not_know_its_owner(
    stand: Stand, phone: TestApp
) -> None:
    stand.add_service("echo")
    path = f"/api/v2/instances/{start(phone)['instance']['id']}"
    theirs = phone.get(path, headers=OTHER_PHONE).headers["ETag"]
    mine = phone.get(path, headers=PHONE | {"If-None-Match": theirs}, status=200)
    assert mine.json["owner"] == "device:phone-1"
    phone.get(path, headers=stand.admin | {"If-None-Match": mine.headers["ETag"]}, status=304)


def test_start_is_not_held_without_being_asked(stand: Stand, phone: TestApp) -> None:
    stand.add_service("echo")
    stand.probe.answer = Answer.HELD
    response = phone.post_json("/api/v2/instances", {"service_id": "echo"}, status=202)
    assert response.json["instance"]["state"] in {"requested", "starting"}
    assert response.headers["Location"].endswith(f"/api/v2/jobs/{response.json['job']['id']}")


def test_start_joins_a_running_instance(stand: Stand, phone: TestApp) -> None:
    stand.add_service("echo", sharing_limit=2)
    first = start(phone)
    second = start(phone, join="share", headers=OTHER_PHONE)
    assert second["job"] is None
    assert second["instance"]["id"] == first["instance"]["id"]
    assert second["instance"]["users"] == 2
    assert second["instance"]["owner"] is None


def test_leaving_stops_with_the_last_user(stand: Stand, phone: TestApp) -> None:
    stand.add_service("echo", sharing_limit=2)
    instance_id = start(phone)["instance"]["id"]
    start(phone, join="share", headers=OTHER_PHONE)
    path = f"/api/v2/instances/{instance_id}/leave"
    first = phone.post(path, headers=OTHER_PHONE | WAIT).json
    last = phone.post(path, headers=PHONE | WAIT).json
    assert (first["job"], first["instance"]["users"]) == (None, 1)
    assert last["instance"]["state"] == "stopped"


def test_pause_and_resume(stand: Stand, phone: TestApp) -> None:
    stand.add_service("echo")
    path = f"/api/v2/instances/{start(phone)['instance']['id']}"
    paused = phone.post(f"{path}/pause", headers=PHONE).json
    again = phone.post(f"{path}/pause", headers=PHONE, expect_errors=True)
    resumed = phone.post(f"{path}/resume", headers=PHONE).json
    assert (paused["state"], resumed["state"]) == ("paused", "running")
    assert problem_of(again) == "illegal_transition"


def test_renewing_gives_an_instance_its_idle_time_again(stand: Stand, phone: TestApp) -> None:
    echo = stand.add_service("echo")
    stand.store.services.replace(replace(echo, idle_timeout_s=60))
    started = start(phone)["instance"]
    path = f"/api/v2/instances/{started['id']}/renew"
    phone.post(path, headers=OTHER_PHONE, status=401)
    renewed = phone.post(path, headers=PHONE, status=200).json
    assert renewed["idle_at"] > started["idle_at"]


@pytest.mark.parametrize(
    ("method", "action"), [("DELETE", ""), ("POST", "/pause"), ("POST", "/resume")]
)
def test_instance_is_changed_only_as_it_was_read(
    stand: Stand, phone: TestApp, method: str, action: str
) -> None:
    stand.add_service("echo", sharing_limit=2)
    path = f"/api/v2/instances/{start(phone)['instance']['id']}"
    there, back = "pause", "resume"
    if action == "/resume":
        phone.post(f"{path}/pause", headers=PHONE)
        there, back = back, there
    tag = phone.get(path, headers=PHONE).headers["ETag"]
    phone.post(f"{path}/{there}", headers=PHONE)
    phone.post(f"{path}/{back}", headers=PHONE)

    def ask(tag: str, status: int) -> TestResponse:
        headers = PHONE | WAIT | {"If-Match": tag}
        return phone.request(path + action, method=method, headers=headers, status=status)

    assert problem_of(ask(tag, 412)) == "stale_record"
    assert problem_of(ask('"other"', 412)) == "precondition_failed"
    ask(phone.get(path, headers=PHONE).headers["ETag"], 200)


def test_stop_is_for_the_owner_and_administrators(stand: Stand, phone: TestApp) -> None:
    stand.add_service("echo")
    path = f"/api/v2/instances/{start(phone)['instance']['id']}"
    phone.delete(path, headers=OTHER_PHONE, status=401)
    stopped = phone.delete(path, headers=stand.admin | WAIT, status=200)
    assert stopped.json["state"] == "succeeded"


def test_list_shows_everybody_their_own(stand: Stand, phone: TestApp) -> None:
    stand.add_service("echo")
    mine = start(phone)["instance"]["id"]
    theirs = start(phone, headers=OTHER_PHONE)["instance"]["id"]

    def listed(headers: dict[str, str], query: str = "") -> list[str]:
        items = phone.get(f"/api/v2/instances{query}", headers=headers).json["items"]
        return [one["id"] for one in items]

    assert listed(PHONE) == [mine]
    assert listed(OTHER_PHONE) == [theirs]
    assert listed({}) == []
    assert sorted(listed(stand.admin, "?state=running&service_id=echo")) == sorted([mine, theirs])
    assert listed(stand.admin, "?state=failed") == []


def test_serial_output_cannot_command_a_terminal(stand: Stand, phone: TestApp) -> None:
    stand.add_service("echo")
    instance_id = start(phone)["instance"]["id"]
    stand.hypervisor.write_serial(InstanceId(instance_id), b"\x1b[31mpanic\x07\nend\xff")
    response = phone.get(f"/api/v2/instances/{instance_id}/serial", headers=PHONE)
    assert response.text == "[31mpanic\nend�"
    assert response.content_type == "text/plain"


def test_failed_start_says_why(stand: Stand, phone: TestApp) -> None:
    stand.add_service("echo")
    stand.probe.answer = Answer.GUEST_DIES
    failed = start(phone)
    assert failed["job"]["error"]["code"] == "guest_failed"
    assert failed["instance"]["state"] == "failed"


def test_stopping_twice_is_over(stand: Stand, phone: TestApp) -> None:
    stand.add_service("echo")
    path = f"/api/v2/instances/{start(phone)['instance']['id']}"
    phone.delete(path, headers=PHONE | WAIT, status=200)
    assert problem_of(phone.delete(path, headers=PHONE, status=409)) == "illegal_transition"
    assert stand.core.instances.instances().items[0].state is InstanceState.STOPPED
    assert stand.core.catalog.service(ServiceId("echo"))


def test_instance_of_another_host_is_shown_with_its_host_and_not_paused(
    stand: Stand, phone: TestApp
) -> None:
    elsewhere = stand.store.instances.add(
        an_instance(state=InstanceState.RUNNING, host_id=HostId("next-door"))
    )
    place = f"/api/v2/instances/{elsewhere.id}"
    shown = phone.get(place)
    refused = phone.post(f"{place}/pause", headers=stand.admin, status=409)
    assert shown.json["host_id"] == "next-door"
    assert problem_of(refused) == "on_another_host"
    assert "next-door" in refused.json["detail"]
