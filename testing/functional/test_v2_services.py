# SPDX-License-Identifier: Apache-2.0
"""/api/v2: the Services of the catalogue, and what their tags guard."""

import pytest
from webtest import TestApp

from pycloud.adapters.fakes import fake_qcow2
from pycloud.core.model.identifiers import (
    ServiceId,
)
from testing.factories import a_service, an_app
from testing.functional.v2_calls import WAIT, start
from testing.stand import Stand, problem_of


def test_service_is_added_from_an_upload(stand: Stand, phone: TestApp) -> None:
    upload_id = stand.upload(phone, fake_qcow2(b"echo"))
    response = phone.post_json(
        "/api/v2/services",
        {"id": "echo", "port": 7, "tags": ["a"], "upload_id": upload_id, "prepare": False},
        headers=stand.admin | WAIT,
        status=200,
    )
    assert response.json["state"] == "succeeded"
    assert response.json["result"] == {"service_id": "echo"}
    service = phone.get("/api/v2/services/echo").json
    assert (service["port"], service["tags"]) == (7, ["a"])
    assert phone.get(f"/api/v2/service-vms/{service['service_vm_id']}").json["source"] == (
        "disk.qcow2"
    )


def test_long_work_answers_202_with_a_job(stand: Stand, phone: TestApp) -> None:
    stand.add_service("echo")
    response = phone.post("/api/v2/services/echo/prepare", headers=stand.admin, status=[200, 202])
    assert response.headers["Location"].endswith(f"/api/v2/jobs/{response.json['id']}")
    job = phone.get(response.headers["Location"], headers=WAIT).json
    assert job["state"] == "succeeded"
    assert job["created_by"] is None


def test_services_come_in_pages(stand: Stand, phone: TestApp) -> None:
    for name in ("a", "b", "c"):
        stand.add_service(name)
    first = phone.get("/api/v2/services?limit=2")
    assert [one["id"] for one in first.json["items"]] == ["a", "b"]
    link = first.headers["Link"]
    assert link.endswith('; rel="next"')
    second = phone.get(link[1 : link.index(">")])
    assert [one["id"] for one in second.json["items"]] == ["c"]
    assert second.json["next"] is None
    assert "Link" not in second.headers


def test_list_is_not_sent_again_while_nothing_changed(stand: Stand, phone: TestApp) -> None:
    stand.add_service("a")
    tag = phone.get("/api/v2/services").headers["ETag"]
    phone.get("/api/v2/services", headers={"If-None-Match": f'"other", {tag}'}, status=304)
    stand.add_service("b")
    phone.get("/api/v2/services", headers={"If-None-Match": tag}, status=200)


def test_service_is_changed_only_as_it_was_read(stand: Stand, phone: TestApp) -> None:
    stand.add_service("echo")
    tag = phone.get("/api/v2/services/echo").headers["ETag"]
    headers = stand.admin | {"If-Match": tag}
    changed = phone.patch_json("/api/v2/services/echo", {"port": 81}, headers=headers)
    late = phone.patch_json("/api/v2/services/echo", {"port": 82}, headers=headers, status=412)
    blind = phone.patch_json("/api/v2/services/echo", {"port": 82}, headers=stand.admin, status=428)
    assert changed.json["port"] == 81
    assert changed.headers["ETag"] != tag
    assert problem_of(late) == "stale_record"
    assert problem_of(blind) == "precondition_required"


@pytest.mark.parametrize("member", ["warm_count", "idle_timeout_s", "max_lifetime_s"])
def test_null_leaves_a_member_of_a_service_to_the_settings_again(
    stand: Stand, phone: TestApp, member: str
) -> None:
    stand.add_service("echo")
    headers = stand.admin | {"If-Match": "*"}
    phone.patch_json("/api/v2/services/echo", {member: 7}, headers=headers)
    changed = phone.patch_json("/api/v2/services/echo", {member: None}, headers=headers)
    assert changed.json[member] is None


def test_null_is_no_value_for_what_a_service_has_to_have(stand: Stand, phone: TestApp) -> None:
    stand.add_service("echo")
    headers = stand.admin | {"If-Match": "*"}
    response = phone.patch_json(
        "/api/v2/services/echo", {"port": None}, headers=headers, status=422
    )
    assert problem_of(response) == "invalid_input"


def test_null_parts_an_app_from_its_service(stand: Stand, phone: TestApp) -> None:
    app = stand.store.apps.add(an_app(service_id=ServiceId("echo")))
    changed = phone.patch_json(
        f"/api/v2/apps/{app.id}", {"service_id": None}, headers=stand.admin | {"If-Match": "*"}
    )
    assert changed.json["service_id"] is None


def test_change_of_the_machine_tells_which_job_prepares_it_anew(
    stand: Stand, phone: TestApp
) -> None:
    stand.add_service("echo")
    phone.post("/api/v2/services/echo/prepare", headers=stand.admin | WAIT, status=200)
    changed = phone.patch_json(
        "/api/v2/services/echo", {"vcpus": 2}, headers=stand.admin | {"If-Match": "*"}
    )
    job = phone.get(f"/api/v2/jobs/{changed.json['prepare_job']}", headers=WAIT).json
    assert (job["kind"], job["state"]) == ("service.prepare", "succeeded")
    (stored,) = phone.get("/api/v2/services/echo/service-vms").json["items"]
    assert stored["memory"]["vcpus"] == 2


def test_change_of_words_prepares_nothing(stand: Stand, phone: TestApp) -> None:
    stand.add_service("echo")
    changed = phone.patch_json(
        "/api/v2/services/echo", {"version": "2"}, headers=stand.admin | {"If-Match": "*"}
    )
    assert changed.json["prepare_job"] is None


def test_strange_tag_never_matches(stand: Stand, phone: TestApp) -> None:
    stand.add_service("echo")
    for tag in ('W/"1"', '"x"', "1", '"99999999999999999999"'):
        response = phone.patch_json(
            "/api/v2/services/echo",
            {"port": 81},
            headers=stand.admin | {"If-Match": tag},
            status=412,
        )
        assert problem_of(response) == "precondition_failed"


def test_tag_of_a_service_that_was_removed_is_not_that_of_the_next_one(
    stand: Stand, phone: TestApp
) -> None:
    path = "/api/v2/services/echo"
    stand.add_service("echo")
    tag = phone.get(path).headers["ETag"]
    stand.store.services.remove("echo")
    stand.store.services.add(a_service(id=ServiceId("echo"), created_at=stand.core.clock.now()))
    headers = stand.admin | {"If-Match": tag}
    phone.get(path, headers={"If-None-Match": tag}, status=200)
    changed = phone.patch_json(path, {"port": 81}, headers=headers, status=412)
    removed = phone.delete(path, headers=headers, status=412)
    assert problem_of(changed) == problem_of(removed) == "precondition_failed"


def test_any_of_several_tags_may_match_but_no_weak_one(stand: Stand, phone: TestApp) -> None:
    path = "/api/v2/services/echo"
    stand.add_service("echo")
    tag = phone.get(path).headers["ETag"]
    weak = stand.admin | {"If-Match": f'"other", W/{tag}'}
    phone.patch_json(path, {"port": 81}, headers=weak, status=412)
    strong = stand.admin | {"If-Match": f'"other", {tag}'}
    phone.patch_json(path, {"port": 81}, headers=strong, status=200)


def test_service_in_use_is_not_removed_unless_told_so(stand: Stand, phone: TestApp) -> None:
    stand.add_service("echo")
    start(phone)
    refused = phone.delete("/api/v2/services/echo", headers=stand.admin, status=409)
    removed = phone.delete(
        "/api/v2/services/echo?instances=stop", headers=stand.admin | WAIT, status=200
    )
    assert problem_of(refused) == "service_in_use"
    assert removed.json["state"] == "succeeded"
    phone.get("/api/v2/services/echo", status=404)
