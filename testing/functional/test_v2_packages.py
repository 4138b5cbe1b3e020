# SPDX-License-Identifier: Apache-2.0
"""Packages that are no longer needed go before their time."""

import pytest
from webtest import TestApp

from pycloud.core.model.identifiers import PackageId
from testing.factories import a_package
from testing.stand import Stand


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
