# SPDX-License-Identifier: Apache-2.0
"""Cut the records of a kind, ordered by (`created_at`, `id`), into pages.

A cursor names the last record of a page by its place in that order, not by a count,
so records that come and go between two pages neither repeat nor hide others. It is
opaque to callers and not secret.
"""

import base64
import binascii
import json
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

from pycloud.adapters.store.documents import Document, checked_text
from pycloud.core.ports import Slice
from pycloud.errors import InvalidInput

R = TypeVar("R")

MAX_PAGE = 100_000
"""Records in one page, whatever is asked for: a page is built in memory."""


class Position(NamedTuple):
    """A place in the order of records; tuples compare as the order does."""

    created_at: str
    id: str


def position_of(document: Document) -> Position:
    """Return where a document stands in the order of its kind."""
    return Position(document["created_at"], document["id"])


def write_cursor(position: Position) -> str:
    """Return the cursor of the page behind this position; fit for a URL as it is."""
    text = json.dumps(position, ensure_ascii=True, separators=(",", ":"))
    return base64.urlsafe_b64encode(text.encode("ascii")).rstrip(b"=").decode("ascii")


def read_cursor(cursor: str | None) -> Position | None:
    """Return the position that a cursor names. Raises InvalidInput for a broken one."""
    if cursor is None:
        return None
    try:
        padded = cursor.encode("ascii") + b"=" * (-len(cursor) % 4)
        match json.loads(base64.b64decode(padded, altchars=b"-_", validate=True)):
            case [str(created_at), str(record_id)]:
                return Position(
                    checked_text(created_at, pointer="cursor"),
                    checked_text(record_id, pointer="cursor"),
                )
            case _:
                raise InvalidInput(_BROKEN_CURSOR, pointer="cursor")
    # RecursionError: what a client sends as a cursor may nest deeply.
    except (ValueError, binascii.Error, RecursionError) as exc:
        raise InvalidInput(_BROKEN_CURSOR, pointer="cursor") from exc


_BROKEN_CURSOR = "the cursor is broken; take it unchanged from the page before"


def checked_limit(limit: int) -> int:
    """Return the size of a page, capped. Raises InvalidInput unless it is positive."""
    if limit < 1:
        raise InvalidInput("a page has at least one item", pointer="limit")
    return min(limit, MAX_PAGE)


def cut_page(
    documents: Sequence[Document], decode: Callable[[Document], R], *, limit: int
) -> Slice[R]:
    """Make a page out of up to `limit` + 1 documents: one too many means there are more."""
    shown = documents[:limit]
    more = len(documents) > limit
    return Slice(
        items=tuple(map(decode, shown)),
        next_cursor=write_cursor(position_of(shown[-1])) if more else None,
    )
