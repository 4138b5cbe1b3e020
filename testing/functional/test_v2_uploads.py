# SPDX-License-Identifier: Apache-2.0
"""/api/v2: uploads in pieces."""

from datetime import timedelta

import pytest
from webtest import TestApp

from pycloud.core.model.identifiers import (
    HostId,
    UploadId,
)
from pycloud.core.model.runtime import JobState
from testing.factories import a_job, an_upload
from testing.stand import Stand, problem_of


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
