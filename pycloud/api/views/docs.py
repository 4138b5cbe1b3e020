# SPDX-License-Identifier: Apache-2.0
"""The explorer at /docs/api: the API description as a page that works without the internet.

The page is made on the server from `openapi.yaml` and needs no script to be read;
the small script beside it only sends requests that the reader fills in.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from markupsafe import Markup, escape
from pyramid.renderers import render
from pyramid.response import Response

from pycloud.api.contract import Document
from pycloud.errors import CloudletError, NotFound
from pycloud.web.caching import KeptBody
from pycloud.web.errors import TABLE, row_of
from pycloud.web.request import Request

CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self';"
    " img-src 'self' data:; form-action 'none'; frame-ancestors 'none'; base-uri 'none'"
)
_FILES = {"explorer.js": "text/javascript", "explorer.css": "text/css"}
_METHODS = ("get", "post", "patch", "put", "delete", "options")
_CODE = re.compile(r"`([^`]+)`")
_DEEPEST_EXAMPLE = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class ParameterDoc:
    """One parameter as the page shows it."""

    name: str
    place: str
    is_required: bool
    kind: str
    text: Markup


@dataclass(frozen=True, slots=True, kw_only=True)
class OperationDoc:
    """One operation as the page shows it."""

    id: str
    method: str
    path: str
    tag: str
    summary: str
    text: Markup
    access: str
    parameters: tuple[ParameterDoc, ...]
    body_type: str
    body_example: str
    replies: tuple[tuple[str, str, str], ...]
    """(status, description, schema name)."""
    curl: str


def explorer(request: Request) -> Response:
    """Show the page; it is made once per process."""
    kept = request.registry.bodies.body(
        "explorer", revision=0, make=lambda: KeptBody(_Page(request).body(), "")
    )
    response = Response(kept.content, content_type="text/html", charset="utf-8")
    response.headers["Content-Security-Policy"] = CONTENT_SECURITY_POLICY
    response.headers["Referrer-Policy"] = "no-referrer"
    return response


def explorer_file(request: Request) -> Response:
    """Send the style sheet or the script of the page."""
    name = request.matchdict["file_name"]
    if name not in _FILES:
        raise NotFound("file", name)
    content = files("pycloud.api").joinpath("static", name).read_bytes()
    response = Response(content, content_type=_FILES[name], charset="utf-8")
    response.headers["Cache-Control"] = "no-cache"
    return response


class _Page:
    def __init__(self, request: Request) -> None:
        self._request = request
        self._document: Document = request.registry.contract.document

    def body(self) -> bytes:
        """Render the page."""
        text = render(
            "pycloud.api:templates/explorer.jinja2",
            {
                "info": self._document["info"],
                "text": _prose(self._document["info"]["description"]),
                "cloudlet": self._request.core.cloudlet,
                "tags": self._document["tags"],
                "operations": tuple(self._operations()),
                "schemas": self._schemas(),
                "errors": _error_rows(),
            },
            request=self._request,
        )
        return str(text).encode()

    def _operations(self) -> Iterator[OperationDoc]:
        for path, item in self._document["paths"].items():
            for method in _METHODS:
                if method in item:
                    yield self._operation(path, method, item)

    def _operation(self, path: str, method: str, item: Document) -> OperationDoc:
        described = item[method]
        body_type, body_example = self._body(described)
        parameters = [*item.get("parameters", ()), *described.get("parameters", ())]
        access = _access_of(described)
        return OperationDoc(
            id=described["operationId"],
            method=method.upper(),
            path=path,
            tag=described["tags"][0],
            summary=described["summary"],
            text=_prose(described.get("description", "")),
            access=access,
            parameters=tuple(self._parameter(part) for part in parameters),
            body_type=body_type,
            body_example=body_example,
            replies=tuple(self._reply(*pair) for pair in described["responses"].items()),
            curl=_curl(method.upper(), path, body_type, body_example, access),
        )

    def _parameter(self, part: Document) -> ParameterDoc:
        part = self._resolved(part)
        return ParameterDoc(
            name=part["name"],
            place=part["in"],
            is_required=part.get("required", False),
            kind=_kind_of(part["schema"]),
            text=_prose(part.get("description", "")),
        )

    def _body(self, described: Document) -> tuple[str, str]:
        content = described.get("requestBody", {}).get("content", {})
        for media_type, part in content.items():
            if media_type != "application/json":
                return media_type, ""
            return media_type, json.dumps(self._example(part["schema"], 0), indent=2)
        return "", ""

    def _reply(self, status: str, part: Document) -> tuple[str, str, str]:
        part = self._resolved(part)
        names = (one["schema"].get("$ref", "") for one in part.get("content", {}).values())
        return status, part["description"], next(names, "").rpartition("/")[2]

    def _schemas(self) -> tuple[tuple[str, str, Markup], ...]:
        return tuple(
            (name, json.dumps(schema, indent=2), _prose(schema.get("description", "")))
            for name, schema in self._document["components"]["schemas"].items()
        )

    def _resolved(self, part: Document) -> Document:
        while "$ref" in part and len(part) == 1:
            found: Any = self._document  # Any: walks down the document
            for step in part["$ref"].removeprefix("#/").split("/"):
                found = found[step]
            part = found
        return part

    def _example(self, schema: Document, depth: int) -> object:
        """Return a value such as a reader may start from: what is required, or everything small."""
        schema = self._resolved({"$ref": schema["$ref"]}) if "$ref" in schema else schema
        if depth > _DEEPEST_EXAMPLE:
            return None
        if "enum" in schema:
            return schema["enum"][0]
        kind = schema.get("type")
        if kind == "object":
            wanted = schema.get("required") or list(schema.get("properties", {}))[:2]
            return {name: self._example(schema["properties"][name], depth + 1) for name in wanted}
        examples: Mapping[str, object] = {
            "integer": schema.get("default", schema.get("minimum", 1)),
            "boolean": schema.get("default", True),
            "array": [],
        }
        return examples.get(str(kind), "example")


def _access_of(described: Document) -> str:
    needs = described.get("security", [{}])
    if {} not in needs:
        return "administrator"
    return "owner or administrator" if len(needs) > 1 else "everybody"


def _curl(method: str, path: str, body_type: str, body_example: str, access: str) -> str:
    parts = ["curl"] + ([f"-X {method}"] if method != "GET" else [])
    if access == "administrator":
        parts.append('-H "Authorization: Bearer $TOKEN"')
    if body_type:
        parts.append(f"-H 'Content-Type: {body_type}'")
    if body_example:
        parts.append(f"-d '{json.dumps(json.loads(body_example))}'")
    return " ".join([*parts, f'"$CLOUDLET{path}"'])


def _kind_of(schema: Document) -> str:
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    if "enum" in schema:
        return " | ".join(str(value) for value in schema["enum"])
    kind = str(schema.get("type", "any"))
    return f"{kind}, {schema['default']} by default" if "default" in schema else kind


def _prose(text: str) -> Markup:
    """Return paragraphs, with what stands in backticks as code."""
    paragraphs = (part.strip() for part in text.split("\n\n"))
    shown = (
        Markup("<p>{}</p>").format(Markup(_CODE.sub(r"<code>\1</code>", str(escape(part)))))  # noqa: S704  # escaped before
        for part in paragraphs
        if part
    )
    return Markup("\n").join(shown)


def _error_rows() -> tuple[tuple[str, int, str], ...]:
    """Return (code, status, meaning) of every error that the API may answer with."""
    rows = {}
    for kind in (*TABLE, *_descendants(CloudletError)):
        if kind.code not in rows:
            meaning = (kind.__doc__ or "").strip().splitlines()[0]
            rows[kind.code] = (kind.code, row_of(kind).status, meaning)
    return tuple(sorted(rows.values()))


def _descendants(kind: type[CloudletError]) -> Iterator[type[CloudletError]]:
    for child in kind.__subclasses__():
        yield child
        yield from _descendants(child)
