# SPDX-License-Identifier: Apache-2.0
"""/api/v2: Apps."""

import io
import zipfile

from webtest import TestApp

from pycloud.core.model.identifiers import (
    AppId,
)
from testing.factories import an_app
from testing.stand import Stand, problem_of


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
