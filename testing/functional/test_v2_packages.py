# SPDX-License-Identifier: Apache-2.0
"""/api/v2: packages, from the export to their removal."""

import pytest
from webtest import TestApp

from pycloud.core.model.identifiers import (
    PackageId,
)
from testing.factories import a_package
from testing.functional.v2_calls import WAIT
from testing.stand import Stand


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


# -- removal ----------------------------------------------------------------------------


@pytest.fixture
def path(stand: Stand) -> str:
    """Where a package is that waits for being fetched."""
    package = stand.store.packages.add(
        a_package(id=PackageId("p"), file_name="echo.csvm", blob=stand.blobs.put(b"0123456789"))
    )
    return f"/api/v2/packages/{package.id}"


def test_package_is_removed_once(stand: Stand, phone: TestApp, path: str) -> None:
    phone.delete(path, headers=stand.admin, status=204)

    phone.get(path, headers=stand.admin, status=404)
    phone.get(f"{path}/content", headers=stand.admin, status=404)
    phone.delete(path, headers=stand.admin, status=404)


def test_package_is_removed_by_the_administrator_alone(
    stand: Stand, phone: TestApp, path: str
) -> None:
    phone.delete(path, status=401)

    phone.get(path, headers=stand.admin, status=200)


def test_package_is_removed_as_it_was_seen(stand: Stand, phone: TestApp, path: str) -> None:
    tag = phone.get(path, headers=stand.admin).headers["ETag"]

    phone.delete(path, headers=stand.admin | {"If-Match": '"99"'}, status=412)
    phone.delete(path, headers=stand.admin | {"If-Match": tag}, status=204)


def test_removal_of_a_package_is_told_in_the_events(
    stand: Stand, phone: TestApp, path: str
) -> None:
    phone.delete(path, headers=stand.admin, status=204)

    (event,) = phone.get("/api/v2/events?after=0", headers=stand.admin).json["items"]
    assert (event["kind"], event["action"], event["resource"]) == (
        "package", "removed", "package/p",
    )  # fmt: skip
