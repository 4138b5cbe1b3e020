# SPDX-License-Identifier: Apache-2.0
"""The law is applied: what the description does not say is neither taken nor sent."""

import pytest
from pyramid.response import Response

from pycloud.api.contract import Contract
from pycloud.errors import InvalidInput
from pycloud.web.errors import (
    ContractBroken,
    InvalidFields,
    MalformedRequest,
    UnsupportedMediaType,
)
from pycloud.web.request import Request

TEXT = """
openapi: 3.1.0
info: {title: t, version: "1"}
paths:
  /things/{thing_id}:
    parameters:
      - {name: thing_id, in: path, required: true, schema: {$ref: "#/components/schemas/Id"}}
    post:
      operationId: do
      parameters:
        - {name: limit, in: query, schema: {type: integer, minimum: 1, default: 5}}
        - {name: fast, in: query, schema: {type: boolean}}
        - {name: tags, in: query, schema: {type: array, items: {type: string, minLength: 1}}}
        - {name: X-Count, in: header, required: true, schema: {type: integer}}
      requestBody:
        required: true
        content: {application/json: {schema: {$ref: "#/components/schemas/Thing"}}}
      responses:
        "200":
          description: ok
          headers: {ETag: {required: true, schema: {type: string}}}
          content: {application/json: {schema: {$ref: "#/components/schemas/Thing"}}}
components:
  schemas:
    Id: {type: string, pattern: "^[a-z]+$"}
    Thing:
      type: object
      required: [name]
      properties: {name: {type: string}, parts: {type: array, items: {type: integer}}}
"""


def ask(
    query: str = "",
    *,
    body: bytes = b'{"name": "a"}',
    thing_id: str = "abc",
    content_type: str = "application/json",
    reply: Response | None = None,
) -> tuple[Request, Response]:
    request = Request.blank(f"/things/{thing_id}?{query}", method="POST", body=body)
    request.matchdict = {"thing_id": thing_id}
    request.headers["X-Count"] = "3"
    request.content_type = content_type
    response = reply or Response(
        b'{"name": "a"}', content_type="application/json", headerlist=None, etag="1"
    )
    view = Contract(TEXT).bind("do", lambda _request: response)
    return request, view(request)


def test_query_is_converted_and_defaults_are_filled_in() -> None:
    request, _ = ask("fast=true&tags=a,b")
    assert request.checked.query == {"limit": 5, "fast": True, "tags": ["a", "b"]}
    assert request.checked.body == {"name": "a"}


@pytest.mark.parametrize(
    "query",
    ["limit=0", "limit=x", "limit=1.0", "fast=yes", "tags=a,,b", "more=1", "limit=1&limit=1"],
)
def test_bad_query_is_refused(query: str) -> None:
    with pytest.raises(InvalidInput):
        ask(query)


def test_query_that_is_not_utf8_is_refused() -> None:
    with pytest.raises(MalformedRequest):
        ask("limit=%ff")


def test_bad_path_is_refused() -> None:
    with pytest.raises(InvalidInput):
        ask(thing_id="ABC")


def test_bad_body_is_pointed_at() -> None:
    with pytest.raises(InvalidFields) as caught:
        ask(body=b'{"name": 1, "parts": [1, "secret"]}')
    assert {pointer for pointer, _ in caught.value.fields} == {"/name", "/parts/1"}
    assert "secret" not in str(caught.value.fields)


def test_body_of_another_type_is_refused() -> None:
    with pytest.raises(UnsupportedMediaType):
        ask(content_type="text/plain")


@pytest.mark.parametrize(
    "reply",
    [
        Response(b'{"name": 1}', content_type="application/json", etag="1"),
        Response(b'{"name": "a"}', content_type="application/json"),
        Response(b'{"name": "a"}', content_type="text/plain", etag="1"),
        Response(b'{"name": "a"}', content_type="application/json", etag="1", status=201),
    ],
    ids=["schema", "header", "type", "status"],
)
def test_reply_that_is_not_described_is_not_sent(reply: Response) -> None:
    with pytest.raises(ContractBroken):
        ask(reply=reply)
