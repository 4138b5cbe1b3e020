# SPDX-License-Identifier: Apache-2.0
"""Cursors are opaque, fit into URLs, and cannot be forged into anything harmful."""

import base64
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pycloud.adapters.store.pages import (
    MAX_PAGE,
    Position,
    checked_limit,
    cut_page,
    read_cursor,
    write_cursor,
)
from pycloud.errors import InvalidInput

_TEXTS = st.text(st.characters(exclude_categories=["Cs"]))


@given(created_at=_TEXTS, record_id=_TEXTS)
def test_cursor_names_the_position_again_when_it_is_read(created_at, record_id):
    cursor = write_cursor(Position(created_at, record_id))

    assert re.fullmatch(r"[A-Za-z0-9_-]+", cursor)
    assert read_cursor(cursor) == (created_at, record_id)


def _encoded(text: str) -> str:
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


@pytest.mark.parametrize(
    "cursor",
    [
        "",
        "?",
        "a",
        "\u20ac",
        "AAAA=AAA",
        _encoded("nonsense"),
        _encoded("{}"),
        _encoded("[]"),
        _encoded('["one"]'),
        _encoded('["one", 2]'),
        _encoded('["a", "b", "c"]'),
        _encoded('["a", "\\ud800"]'),
        _encoded("[" * 100_000),
        base64.urlsafe_b64encode(b"\xff\xfe\xff").decode(),
    ],
)
def test_read_cursor_refuses_what_write_cursor_never_made(cursor):
    with pytest.raises(InvalidInput) as caught:
        read_cursor(cursor)

    assert caught.value.pointer == "cursor"


def test_read_cursor_means_the_beginning_when_there_is_none():
    assert read_cursor(None) is None


@pytest.mark.parametrize("limit", [0, -1])
def test_checked_limit_refuses_a_page_without_items(limit):
    with pytest.raises(InvalidInput):
        checked_limit(limit)


def test_checked_limit_caps_a_page_when_too_much_is_asked_for():
    assert checked_limit(10**30) == MAX_PAGE


@pytest.mark.parametrize(("found", "more"), [(0, False), (2, False), (3, True)])
def test_cut_page_has_a_cursor_only_when_more_was_found_than_shown(found, more):
    documents = [{"created_at": "now", "id": str(number)} for number in range(found)]

    page = cut_page(documents, lambda document: document["id"], limit=2)

    assert len(page.items) == min(found, 2)
    assert (page.next_cursor is not None) is more
