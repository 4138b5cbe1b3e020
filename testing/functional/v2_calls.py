# SPDX-License-Identifier: Apache-2.0
"""Calls of /api/v2 that several tests make."""

from webtest import TestApp

from testing.stand import PHONE

WAIT = {"Prefer": "respond-async, wait=30"}
"""Lets a reply wait for the end of its Job."""


def start(phone: TestApp, *, join: str = "fresh", headers: dict[str, str] = PHONE) -> dict:
    """Start an Instance of the Service `echo` and return the reply."""
    return phone.post_json(
        "/api/v2/instances",
        {"service_id": "echo", "join": join},
        headers=headers | WAIT,
        status=200,
    ).json
