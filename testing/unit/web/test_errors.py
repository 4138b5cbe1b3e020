# SPDX-License-Identifier: Apache-2.0
"""One table says which status an error gets; every error of ours is in it or below it."""

import http
import re
from collections.abc import Iterator

import pytest

from pycloud import errors
from pycloud.errors import CloudletError
from pycloud.web.errors import TABLE, row_of


def descendants(kind: type[CloudletError]) -> Iterator[type[CloudletError]]:
    for child in kind.__subclasses__():
        if child.__module__.startswith("pycloud."):
            yield child
            yield from descendants(child)


def test_every_row_has_a_status_that_exists() -> None:
    for row in TABLE.values():
        assert http.HTTPStatus(row.status) >= 400


def test_every_error_has_a_code_that_fits_a_url() -> None:
    for kind in descendants(CloudletError):
        assert re.fullmatch(r"[a-z][a-z_]*", kind.code), kind


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        (errors.NotFound, 404),
        (errors.DuplicateRecord, 409),
        (errors.NoFreePort, 503),
        (errors.BlobCorrupt, 500),
        (errors.DomainNotFound, 500),
        (ValueError, 500),
    ],
)
def test_error_gets_the_status_of_its_nearest_ancestor(kind: type[Exception], status: int) -> None:
    assert row_of(kind).status == status


@pytest.mark.parametrize(
    "kind", [errors.StoreError, errors.ToolFailed, errors.HypervisorError, errors.SchemaTooNew]
)
def test_what_is_broken_inside_is_not_told(kind: type[CloudletError]) -> None:
    assert not row_of(kind).is_public
