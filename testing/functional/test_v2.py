# SPDX-License-Identifier: Apache-2.0
"""/api/v2: what phones and operators do with it, and its conventions."""

import gc
import io
import json
import logging
import threading
import tracemalloc
import zipfile
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
import yaml
from webtest import TestApp, TestResponse

from pycloud.adapters.fakes import FakeClock, fake_qcow2
from pycloud.adapters.fakes.network import Answer
from pycloud.core.model.identifiers import (
    AppId,
    HostId,
    InstanceId,
    JobId,
    PackageId,
    ServiceId,
    UploadId,
)
from pycloud.core.model.runtime import InstanceState, JobState, Progress
from pycloud.web.logs import JsonLines
from pycloud.web.waiting import ENVIRON_KEY, WaitRoom
from testing.factories import a_job, a_package, a_service, an_app, an_event, an_instance, an_upload
from testing.stand import OTHER_PHONE, PHONE, Stand, make_stand, problem_of

WAIT = {"Prefer": "respond-async, wait=30"}


# -- services -----------------------------------------------------------------------


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


# -- instances ------------------------------------------------------------------------


def start(phone: TestApp, *, join: str = "fresh", headers: dict[str, str] = PHONE) -> dict:
    return phone.post_json(
        "/api/v2/instances",
        {"service_id": "echo", "join": join},
        headers=headers | WAIT,
        status=200,
    ).json


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


# -- jobs -----------------------------------------------------------------------------


def test_job_is_cancelled_and_undone(stand: Stand, phone: TestApp) -> None:
    stand.add_service("echo")
    stand.probe.answer = Answer.HELD
    started = phone.post_json("/api/v2/instances", {"service_id": "echo"}, status=202).json
    path = f"/api/v2/jobs/{started['job']['id']}"
    cancelled = phone.delete(path, headers=stand.admin | WAIT, status=200)
    late = phone.delete(path, headers=stand.admin, status=409)
    assert cancelled.json["state"] == "cancelled"
    assert problem_of(late) == "conflict"
    assert stand.hypervisor.domains() == ()


def test_job_tells_about_how_long_it_still_takes(stand: Stand, phone: TestApp) -> None:
    job = stand.store.jobs.add(
        a_job(
            state=JobState.RUNNING,
            started_at=stand.core.clock.now() - timedelta(seconds=300),
            lease_expires_at=stand.core.clock.now() + timedelta(hours=1),
            progress=Progress(done=3, total=4, unit="bytes"),
        )
    )
    assert 100 <= phone.get(f"/api/v2/jobs/{job.id}").json["eta_s"] <= 130


def test_log_tells_which_request_asked_for_a_job(stand: Stand, phone: TestApp) -> None:
    stand.add_service("echo")
    lines = io.StringIO()
    handler = logging.StreamHandler(lines)
    handler.setFormatter(JsonLines())
    logger = logging.getLogger("pycloud.core.jobs")
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    try:
        headers = {"X-Request-ID": "mine"}
        started = phone.post_json("/api/v2/instances", {"service_id": "echo"}, headers=headers)
    finally:
        logger.removeHandler(handler)
        logger.setLevel(logging.NOTSET)
    told = [json.loads(line) for line in lines.getvalue().splitlines()]
    (line,) = [one for one in told if one["event"] == "job_submitted"]
    assert (line["request_id"], line["job_id"]) == ("mine", started.json["job"]["id"])


# -- uploads --------------------------------------------------------------------------


def test_upload_goes_on_where_it_stopped(stand: Stand, phone: TestApp) -> None:
    created = phone.post(
        "/api/v2/uploads", headers=stand.admin | {"Upload-Length": "6"}, status=201
    )
    path, headers = created.headers["Location"], stand.admin | {"Tus-Resumable": "1.0.0"}
    piece = headers | {"Content-Type": "application/offset+octet-stream"}
    phone.patch(path, b"abc", headers=piece | {"Upload-Offset": "0"}, status=204)
    wrong = phone.patch(path, b"xyz", headers=piece | {"Upload-Offset": "1"}, status=409)
    seen = phone.head(path, headers=headers)
    done = phone.patch(path, b"def", headers=piece | {"Upload-Offset": "3"}, status=204)
    assert problem_of(wrong) == "offset_mismatch"
    assert (seen.headers["Upload-Offset"], seen.headers["Upload-Length"]) == ("3", "6")
    assert done.headers["Upload-Offset"] == "6"
    assert done.headers["Tus-Resumable"] == "1.0.0"
    with stand.blobs.open_staged(created.json["id"], "content") as stream:
        assert stream.read() == b"abcdef"


def test_upload_takes_no_more_than_announced(stand: Stand, phone: TestApp) -> None:
    created = phone.post("/api/v2/uploads", headers=stand.admin | {"Upload-Length": "2"})
    response = phone.patch(
        created.headers["Location"],
        b"abc",
        headers=stand.admin
        | {"Upload-Offset": "0", "Content-Type": "application/offset+octet-stream"},
        status=413,
    )
    assert problem_of(response) == "quota_exceeded"


def test_upload_keeps_no_path_of_the_sender(stand: Stand, phone: TestApp) -> None:
    # ../../etc/pass<newline>wd
    name = "Li4vLi4vZXRjL3Bhc3MKd2Q="
    upload_id = stand.upload(phone, b"x", name=name)
    assert stand.core.uploads.upload(UploadId(upload_id)).file_name == "passwd"


def test_upload_that_a_job_uses_is_not_discarded(stand: Stand, phone: TestApp) -> None:
    upload_id = stand.upload(phone, b"x")
    job = stand.store.jobs.add(
        a_job(
            state=JobState.RUNNING,
            lease_expires_at=stand.core.clock.now() + timedelta(hours=1),
            resources=(f"upload/{upload_id}",),
        )
    )
    refused = phone.delete(f"/api/v2/uploads/{upload_id}", headers=stand.admin, status=409)
    assert problem_of(refused) == "conflict"
    assert job.id in refused.json["detail"]
    phone.get(f"/api/v2/uploads/{upload_id}", headers=stand.admin, status=200)


def test_upload_is_discarded(stand: Stand, phone: TestApp) -> None:
    upload_id = stand.upload(phone, b"x")
    phone.delete(f"/api/v2/uploads/{upload_id}", headers=stand.admin, status=204)
    phone.get(f"/api/v2/uploads/{upload_id}", headers=stand.admin, status=404)
    assert stand.blobs.areas() == ()


@pytest.mark.parametrize("length", ["0", "-1", "1e3", "", "abc", "9" * 30])
def test_upload_refuses_a_strange_length(stand: Stand, phone: TestApp, length: str) -> None:
    headers = stand.admin | {"Upload-Length": length}
    assert problem_of(phone.post("/api/v2/uploads", headers=headers, status=400))


def test_upload_larger_than_the_disk_is_refused_at_once(stand: Stand, phone: TestApp) -> None:
    stand.blobs.set_free_bytes(1 << 20)
    headers = stand.admin | {"Upload-Length": str(1 << 30)}
    response = phone.post("/api/v2/uploads", headers=headers, status=507)
    assert problem_of(response) == "insufficient_storage"


def test_upload_features_are_told(phone: TestApp) -> None:
    response = phone.options("/api/v2/uploads", status=204)
    assert response.headers["Tus-Extension"] == "creation,termination"


# -- apps and packages ------------------------------------------------------------------


def apk() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("AndroidManifest.xml", "x")
    return stream.getvalue()


def test_app_lives_from_upload_to_removal(stand: Stand, phone: TestApp) -> None:
    content = apk()
    added = phone.post_json(
        "/api/v2/apps",
        {"name": "Speech", "upload_id": stand.upload(phone, content), "tags": ["audio"]},
        headers=stand.admin,
        status=201,
    )
    path = added.headers["Location"]
    changed = phone.patch_json(
        path, {"app_version": "2"}, headers=stand.admin | {"If-Match": added.headers["ETag"]}
    )
    assert changed.json["app_version"] == "2"
    assert phone.get(f"{path}/content").body == content
    phone.delete(path, headers=stand.admin | {"If-Match": added.headers["ETag"]}, status=412)
    phone.delete(path, headers=stand.admin | {"If-Match": changed.headers["ETag"]}, status=204)
    phone.get(path, status=404)


def test_apps_are_filtered_and_paged(stand: Stand, phone: TestApp) -> None:
    for name in ("a", "b", "c"):
        phone.post_json(
            "/api/v2/apps",
            {"name": name, "upload_id": stand.upload(phone, apk()), "tags": [name, "all"]},
            headers=stand.admin,
        )
    first = phone.get("/api/v2/apps?tags=b,c&limit=1").json
    second = phone.get(f"/api/v2/apps?tags=b,c&limit=1&cursor={first['next']}").json
    assert [one["name"] for one in first["items"] + second["items"]] == ["b", "c"]
    assert second["next"] is None
    assert problem_of(phone.get("/api/v2/apps?cursor=lost", status=400)) == "invalid_input"


def test_pages_of_apps_go_on_when_the_last_of_a_page_is_removed(
    stand: Stand, phone: TestApp
) -> None:
    same_time = stand.core.clock.now()
    for name in ("d", "b", "a", "c"):
        stand.store.apps.add(an_app(id=AppId(name), created_at=same_time))
    first = phone.get("/api/v2/apps?limit=2").json
    stand.store.apps.remove(first["items"][-1]["id"])
    second = phone.get(f"/api/v2/apps?limit=2&cursor={first['next']}").json
    assert [one["id"] for one in first["items"] + second["items"]] == ["a", "b", "c", "d"]
    assert second["next"] is None


def add_package(stand: Stand, content: bytes = b"0123456789") -> str:
    package = stand.store.packages.add(
        a_package(id=PackageId("p"), file_name="echo.csvm", blob=stand.blobs.put(content))
    )
    return f"/api/v2/packages/{package.id}/content"


@pytest.mark.parametrize(
    ("wanted", "body", "content_range"),
    [
        ("bytes=0-3", b"0123", "bytes 0-3/10"),
        ("bytes=4-", b"456789", "bytes 4-9/10"),
        ("bytes=-3", b"789", "bytes 7-9/10"),
        ("bytes=8-99", b"89", "bytes 8-9/10"),
        ("bytes=0-1,4-5", b"0123456789", None),
        ("bytes=5-4", b"0123456789", None),
        ("lines=1-2", b"0123456789", None),
    ],
)
def test_package_is_downloaded_in_ranges(
    stand: Stand, phone: TestApp, wanted: str, body: bytes, content_range: str | None
) -> None:
    path = add_package(stand)
    status = 200 if content_range is None else 206
    response = phone.get(path, headers=stand.admin | {"Range": wanted}, status=status)
    assert response.headers.get("Content-Range") == content_range
    assert response.body == body
    assert response.headers["Content-Length"] == str(len(body))
    assert response.headers["Accept-Ranges"] == "bytes"


@pytest.mark.parametrize("wanted", ["bytes=10-", "bytes=-0"])
def test_range_that_holds_nothing_is_refused(stand: Stand, phone: TestApp, wanted: str) -> None:
    path = add_package(stand)
    refused = phone.get(path, headers=stand.admin | {"Range": wanted}, status=416)
    assert refused.headers["Content-Range"] == "bytes */10"


def test_range_of_another_content_is_answered_in_full(stand: Stand, phone: TestApp) -> None:
    path = add_package(stand)
    tag = phone.head(path, headers=stand.admin).headers["ETag"]
    part = phone.get(path, headers=stand.admin | {"Range": "bytes=2-", "If-Range": tag})
    full = phone.get(path, headers=stand.admin | {"Range": "bytes=2-", "If-Range": '"old"'})
    assert (part.status_int, full.status_int) == (206, 200)


def test_service_goes_out_and_comes_in_again(stand: Stand, phone: TestApp) -> None:
    stand.add_service("echo")
    exported = phone.post_json(
        "/api/v2/packages", {"service_id": "echo"}, headers=stand.admin | WAIT
    ).json
    assert exported["state"] == "succeeded", exported
    path = f"/api/v2/packages/{exported['result']['package_id']}"
    content = phone.get(f"{path}/content", headers=stand.admin).body
    imported = phone.post_json(
        "/api/v2/imports",
        {"upload_id": stand.upload(phone, content), "service_id": "again", "prepare": False},
        headers=stand.admin | WAIT,
    ).json
    assert imported["state"] == "succeeded", imported
    assert phone.get("/api/v2/services/again").json["id"] == "again"
    assert [one["id"] for one in phone.get("/api/v2/packages", headers=stand.admin).json["items"]]


# -- system and events --------------------------------------------------------------------


def test_index_tells_who_asks(stand: Stand, phone: TestApp) -> None:
    assert phone.get("/api/v2").json["auth"] == "untrusted"
    assert phone.get("/api/v2", headers=stand.admin).json["auth"] == "trusted"
    phone.get("/api/v2", headers={"Authorization": "Bearer no"}, status=401)


def test_system_is_told(phone: TestApp) -> None:
    content = phone.get("/api/v2/system").json
    assert content["cloudlet"]["name"] == "stand"
    assert content["hypervisor"]["accelerator"] == "tcg"


def test_events_are_read_on_from_where_one_was(stand: Stand, phone: TestApp) -> None:
    log = stand.core.events
    first = log.append(an_event(kind="service")).sequence
    log.append(an_event(kind="job"))
    last = log.append(an_event(kind="service")).sequence
    content = phone.get(f"/api/v2/events?after={first}&kinds=service,app", headers=stand.admin).json
    assert [one["sequence"] for one in content["items"]] == [last]
    assert (content["last"], content["gap"]) == (last, False)


def test_events_that_were_dropped_leave_a_gap(stand: Stand, phone: TestApp) -> None:
    for _ in range(5):
        stand.core.events.append(an_event())
    stand.core.events.trim(keep=2)
    assert phone.get("/api/v2/events?after=0", headers=stand.admin).json["gap"] is True


def test_reader_waits_for_the_next_event(stand: Stand, phone: TestApp) -> None:
    timer = threading.Timer(0.05, lambda: stand.core.events.append(an_event(kind="app")))
    timer.start()
    content = phone.get("/api/v2/events", headers=stand.admin | {"Prefer": "wait=30"}).json
    timer.join()
    assert [one["kind"] for one in content["items"]] == ["app"]


def test_reader_without_a_place_is_answered_at_once(stand: Stand, phone: TestApp) -> None:
    phone.extra_environ[ENVIRON_KEY] = WaitRoom(places=0)
    content = phone.get("/api/v2/events", headers=stand.admin | {"Prefer": "wait=60"}).json
    assert content["items"] == []


# -- bad input ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"{", 400, "malformed_request"),
        (b"", 400, "malformed_request"),
        (b"\xff\xfe", 400, "malformed_request"),
        (b'{"service_id": NaN}', 400, "malformed_request"),
        (b'{"service_id": "\\ud800"}', 400, "malformed_request"),
        (b"[" * 100_000, 400, "malformed_request"),
        (b'{"a":' * 40 + b"1" + b"}" * 40, 400, "malformed_request"),
        (b"9" * 5000, 400, "malformed_request"),
        (b"[]", 422, "invalid_input"),
        (b"{}", 422, "invalid_input"),
        (b'{"service_id": 7}', 422, "invalid_input"),
        (b'{"service_id": "../etc"}', 422, "invalid_input"),
        (b'{"service_id": "a", "colour": 1}', 422, "invalid_input"),
        (b'{"service_id": "%s"}' % (b"a" * 300_000), 413, "body_too_large"),
    ],
)
def test_bad_body_is_refused(phone: TestApp, body: bytes, status: int, code: str) -> None:
    response = phone.post("/api/v2/instances", body, content_type="application/json", status=status)
    assert problem_of(response) == code


def test_wrong_types_are_pointed_at(stand: Stand, phone: TestApp) -> None:
    response = phone.post_json(
        "/api/v2/services",
        {"id": "a", "port": "80", "tags": ["ok", 5], "upload_id": "u"},
        headers=stand.admin,
        status=422,
    )
    assert {one["pointer"] for one in response.json["errors"]} == {"/port", "/tags/1"}


def test_whole_number_is_an_integer_however_it_is_written(stand: Stand, phone: TestApp) -> None:
    stand.add_service("echo")
    headers = stand.admin | {"If-Match": "*", "Content-Type": "application/json"}
    phone.patch("/api/v2/services/echo", b'{"port": 8080.0}', headers=headers)
    assert type(stand.core.catalog.service(ServiceId("echo")).port) is int


@pytest.mark.parametrize("port", [b"1e400", b"1e300", b"-1e400", b"80.5"])
def test_number_that_is_no_port_is_refused(stand: Stand, phone: TestApp, port: bytes) -> None:
    stand.add_service("echo")
    headers = stand.admin | {"If-Match": "*", "Content-Type": "application/json"}
    body = b'{"port": ' + port + b"}"
    refused = phone.patch("/api/v2/services/echo", body, headers=headers, status=422)
    assert problem_of(refused) == "invalid_input"


def test_values_that_make_no_sense_together_are_pointed_at(stand: Stand, phone: TestApp) -> None:
    body = {
        "id": "a",
        "port": 80,
        "min_memory_mib": 512,
        "ideal_memory_mib": 256,
        "upload_id": stand.upload(phone, b"x"),
    }
    response = phone.post_json("/api/v2/services", body, headers=stand.admin, status=422)
    assert response.json["errors"][0]["pointer"] == "/ideal_memory_mib"


def test_form_is_not_json(phone: TestApp) -> None:
    response = phone.post("/api/v2/instances", {"service_id": "a"}, status=415)
    assert problem_of(response) == "unsupported_media_type"


@pytest.mark.parametrize(
    "query",
    ["colour=1", "limit=0", "limit=501", "limit=x", "limit=1&limit=2", "cursor=", "limit=%ff"],
)
def test_bad_query_is_refused(phone: TestApp, query: str) -> None:
    assert problem_of(phone.get(f"/api/v2/services?{query}", status=400))


@pytest.mark.parametrize("path", ["/api/v2/apps?tags=", "/api/apps?tags="])
def test_long_queries_are_not_remembered(phone: TestApp, path: str) -> None:
    def ask(number: int) -> None:
        phone.get(path + ",".join([f"{number:0250}"] * 64))

    tracemalloc.start()
    try:
        # The client itself remembers the last 128 addresses that it took apart.
        for number in range(150):
            ask(number)
        before_bytes, _ = tracemalloc.get_traced_memory()
        for number in range(150, 250):
            ask(number)
        gc.collect()
        after_bytes, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # Each of them is 16 kB long.
    assert after_bytes - before_bytes < 800_000


def test_method_that_is_not_there_is_refused(phone: TestApp) -> None:
    response = phone.put_json("/api/v2/services", {}, status=405)
    assert problem_of(response) == "method_not_allowed"
    assert response.headers["Allow"] == "GET, POST, HEAD"


def test_unknown_error_says_nothing_but_its_id(
    stand: Stand, phone: TestApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> int:
        message = "secret /path"
        raise RuntimeError(message)

    monkeypatch.setattr(stand.store.services, "revision", broken)
    response = phone.get("/api/v2/services", headers={"X-Request-ID": "mine"}, status=500)
    assert problem_of(response) == "internal"
    assert response.json["request_id"] == "mine"
    assert "secret" not in response.text


def test_reply_that_breaks_the_description_is_not_sent(
    stand: Stand, phone: TestApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand.store.instances.add(an_instance(id=InstanceId("i"), job_id=JobId("j")))
    monkeypatch.setattr("pycloud.api.views.instances.instance_json", lambda *_: {"id": "i"})
    response = phone.get("/api/v2/instances/i", status=500)
    assert problem_of(response) == "contract_broken"


def test_request_id_of_the_caller_is_kept_if_it_is_sensible(phone: TestApp) -> None:
    kept = phone.get("/healthz", headers={"X-Request-ID": "abc-1"})
    replaced = phone.get("/healthz", headers={"X-Request-ID": "a b\tc"})
    assert kept.headers["X-Request-ID"] == "abc-1"
    assert len(replaced.headers["X-Request-ID"]) == 16


# -- monitors -----------------------------------------------------------------------------


def test_readyz_names_what_is_missing(stand: Stand, phone: TestApp) -> None:
    stand.core.health.look()
    phone.get("/readyz", status=200)
    stand.blobs.set_free_bytes(0)
    stand.core.health.look()
    response = phone.get("/readyz", status=503)
    assert {one["name"]: one["ok"] for one in response.json["checks"]}["disk"] is False
    assert "detail" not in response.json["checks"][0]


def test_metrics_count_requests_instances_and_starts(stand: Stand, phone: TestApp) -> None:
    stand.add_service("echo")
    monitor = stand.api(address="127.0.0.1")
    monitor.post_json("/api/v2/instances", {"service_id": "echo"}, headers=WAIT, status=200)
    monitor.get("/metrics")
    text = monitor.get("/metrics").text
    assert 'pycloud_http_requests_total{method="POST",route="v2.instances",status="200"} 1' in text
    assert 'pycloud_instances{state="running"} 1.0' in text
    assert 'pycloud_start_seconds_count{method="cold"} 1.0' in text


def test_metrics_do_not_read_all_records_at_every_scrape(tmp_path: Path) -> None:
    clock = FakeClock()
    stand = make_stand(tmp_path, clock=clock)
    monitor = stand.api(address="127.0.0.1")

    def running_instances() -> str:
        text = monitor.get("/metrics").text
        (line,) = [one for one in text.splitlines() if 'instances{state="running"}' in one]
        return line.rpartition(" ")[2]

    before = running_instances()
    stand.store.instances.add(an_instance(state=InstanceState.RUNNING))
    clock.advance(7)
    within = running_instances()
    clock.advance(1)
    assert (before, within, running_instances()) == ("0.0", "0.0", "1.0")


def test_description_is_served_in_both_forms(phone: TestApp) -> None:
    as_yaml = yaml.safe_load(phone.get("/api/v2/openapi.yaml").body)
    assert json.loads(phone.get("/api/v2/openapi.json").body) == as_yaml


def test_stopping_twice_is_over(stand: Stand, phone: TestApp) -> None:
    stand.add_service("echo")
    path = f"/api/v2/instances/{start(phone)['instance']['id']}"
    phone.delete(path, headers=PHONE | WAIT, status=200)
    assert problem_of(phone.delete(path, headers=PHONE, status=409)) == "illegal_transition"
    assert stand.core.instances.instances().items[0].state is InstanceState.STOPPED
    assert stand.core.catalog.service(ServiceId("echo"))


# -- several hosts on one store -----------------------------------------------------------------


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


def test_piece_of_an_upload_on_another_host_is_refused_as_such(
    stand: Stand, phone: TestApp
) -> None:
    upload = stand.store.uploads.add(an_upload(host_id=HostId("next-door")))
    refused = phone.patch(
        f"/api/v2/uploads/{upload.id}",
        b"x",
        headers=stand.admin
        | {"Upload-Offset": "0", "Content-Type": "application/offset+octet-stream"},
        status=409,
    )
    assert problem_of(refused) == "on_another_host"
