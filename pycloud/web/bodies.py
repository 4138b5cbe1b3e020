# SPDX-License-Identifier: Apache-2.0
"""Read request bodies with a limit on everything: length, depth, numbers, characters."""

import json
import re
from typing import Any, BinaryIO, NoReturn, cast

from pycloud.web.errors import BodyTooLarge, MalformedRequest
from pycloud.web.request import Request

MOST_JSON_BYTES = 256 * 1024
DEEPEST_JSON = 32
_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*"|[\[\]{}]', re.DOTALL)
_OPENING = frozenset(b"[{")
_CLOSING = frozenset(b"]}")


def read_body(request: Request, *, limit_bytes: int = MOST_JSON_BYTES) -> bytes:
    """Return the body. Raises BodyTooLarge before reading more than the limit."""
    if (request.content_length or 0) > limit_bytes:
        raise BodyTooLarge(f"the body may have at most {limit_bytes} bytes")
    return cast("bytes", request.body)  # cast: WebOb; it can be read again afterwards


def body_stream(request: Request) -> BinaryIO:
    """Return the body as a stream that ends where the body does."""
    return cast("BinaryIO", request.body_file)  # cast: WebOb bounds it by Content-Length


def parse_json(content: bytes) -> Any:  # Any: JSON; the API description says what it must be
    """Parse JSON text. Raises MalformedRequest, also for what would hurt later on."""
    _check_depth(content)
    try:
        value = json.loads(content, parse_float=_number, parse_constant=_refuse_constant)
        if b"\\u" in content:
            # An escaped half of a surrogate pair parses, yet no UTF-8 can hold it.
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as exc:
        raise MalformedRequest(f"the body is not JSON: {_first_line(exc)}") from exc
    return value


def _check_depth(content: bytes) -> None:
    depth = 0
    for match in _TOKEN.finditer(content):
        first = content[match.start()]
        if first in _OPENING:
            depth += 1
            if depth > DEEPEST_JSON:
                raise MalformedRequest(f"the body nests deeper than {DEEPEST_JSON} levels")
        elif first in _CLOSING:
            depth -= 1


def _number(text: str) -> int | float:
    """Return a number; one without a fraction is an integer, however it is written.

    JSON Schema has it so, and what was accepted as an integer has to be one afterwards.
    """
    value = float(text)
    return int(value) if value.is_integer() else value


def _refuse_constant(name: str) -> NoReturn:
    message = f"{name} is not a JSON number"
    raise ValueError(message)


def _first_line(exc: Exception) -> str:
    return (str(exc).splitlines() or [type(exc).__name__])[0][:200]
