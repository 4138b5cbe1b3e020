# SPDX-License-Identifier: Apache-2.0
"""Large bodies are taken on the routes that say so, and from administrators alone."""

import pytest

from pycloud.core.access import Access
from pycloud.errors import CloudletError, Unauthenticated
from pycloud.web.bodies import MOST_JSON_BYTES
from pycloud.web.body_gate import Head, RouteGate
from pycloud.web.errors import BodyTooLarge

LIMIT_BYTES = 68 << 20
TOKEN = "clt_secret"


class OneSecret:
    """Secrets of which each is the same."""

    def read_or_create(self, _name: str) -> str:
        """Return it."""
        return TOKEN


@pytest.fixture
def gate() -> RouteGate:
    gate = RouteGate(Access(OneSecret()), limit_bytes=LIMIT_BYTES)
    gate.take_large("PATCH", "/api/v2/uploads/{upload_id}")
    return gate


def allowed(
    gate: RouteGate, method: str, path: str, authorization: str = f"Bearer {TOKEN}"
) -> tuple[int, type[CloudletError]]:
    allowance = gate.allowance(Head(method, path, authorization))
    return allowance.limit_bytes, type(allowance.excess)


def test_large_body_is_taken_from_an_administrator(gate: RouteGate) -> None:
    assert allowed(gate, "PATCH", "/api/v2/uploads/u-1") == (LIMIT_BYTES, BodyTooLarge)


@pytest.mark.parametrize("authorization", ["", "Bearer", "Bearer no", f"Basic {TOKEN}", TOKEN])
def test_large_body_is_not_taken_from_anybody_else(gate: RouteGate, authorization: str) -> None:
    found = allowed(gate, "PATCH", "/api/v2/uploads/u-1", authorization)
    assert found == (MOST_JSON_BYTES, Unauthenticated)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/api/v2/uploads/u-1"),
        ("patch", "/api/v2/uploads/u-1"),
        ("PATCH", "/api/v2/uploads/"),
        ("PATCH", "/api/v2/uploads/u/1"),
        ("PATCH", "/api/v2/uploads/u-1/"),
        ("PATCH", "/x/api/v2/uploads/u-1"),
        ("PATCH", "/api/v2/uploads/u\n/1"),
        ("PATCH", "/apiXv2/uploads/u-1"),
        ("PATCH", "/api/v2/services/echo"),
    ],
)
def test_large_body_is_not_taken_elsewhere(gate: RouteGate, method: str, path: str) -> None:
    assert allowed(gate, method, path) == (MOST_JSON_BYTES, BodyTooLarge)
