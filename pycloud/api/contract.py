# SPDX-License-Identifier: Apache-2.0
"""The API description as law: what it does not describe is neither taken nor sent.

`openapi.yaml` is read once; every schema in it is compiled per operation, so that
checking a request or a reply costs microseconds. Nothing here knows what any
operation does.
"""

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn, cast
from urllib.parse import parse_qsl, quote

import yaml
from jsonschema_rs import Draft202012Validator, Registry
from pyramid.response import Response

from pycloud.errors import InvalidInput
from pycloud.web.bodies import MOST_JSON_BYTES, parse_json, read_body
from pycloud.web.caching import LONGEST_KEPT_QUERY
from pycloud.web.errors import (
    ContractBroken,
    InvalidFields,
    MalformedRequest,
    UnsupportedMediaType,
)
from pycloud.web.request import Request

_ROOT = "urn:pycloud:api"
_METHODS = ("get", "head", "post", "put", "patch", "delete", "options")
_MOST_KEPT = 4096
"""Query strings and digests of replies that are remembered as good."""
_MOST_ERRORS = 20
_INTEGER = re.compile(r"-?\d{1,18}")
_JSON = "application/json"

Document = Mapping[str, Any]  # Any: an OpenAPI document, read by this module alone.


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """One parameter of a query, a path or a header."""

    name: str
    place: str
    is_required: bool
    schema: Document
    check: Draft202012Validator

    def read(self, text: str) -> Any:  # Any: as the schema says
        """Convert and check the text of the parameter. Raises InvalidInput."""
        value = _converted(text, self.schema)
        for error in self.check.iter_errors(value):
            raise InvalidInput(f"{self.name}: {error.message}", pointer=self.name)
        return value


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """One kind of reply that an operation may give."""

    headers: tuple[str, ...]
    """Those that must be there."""
    content: Mapping[str, Draft202012Validator | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One method of one path of the description."""

    id: str
    method: str
    path: str
    parameters: tuple[Parameter, ...]
    body: Mapping[str, Draft202012Validator | None] | None
    """Media types of the body; None if there is none."""
    is_body_required: bool
    replies: Mapping[str, Reply]
    known_queries: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    known_replies: set[bytes] = field(default_factory=set)

    def names_header(self, name: str) -> bool:
        """Return whether the operation takes this header."""
        return any(p.place == "header" and p.name == name for p in self.parameters)


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """What a request brought, converted and found acceptable.

    `query` has the defaults filled in; `body` is None unless the operation takes JSON.
    """

    query: Mapping[str, Any]
    body: Any  # Any: JSON that matches the schema of the operation


class Contract:
    """The description and its operations by id."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.document: Document = yaml.load(text, Loader=_loader())  # noqa: S506  # a safe loader
        self.operations = {operation.id: operation for operation in _operations(self.document)}

    def bind(self, operation_id: str, view: Callable[[Request], Response]) -> Any:  # Any: a view
        """Return the view with its requests and replies checked; `request.checked` is set."""
        operation = self.operations[operation_id]

        def checked_view(request: Request) -> Response:
            request.checked = check_request(operation, request)
            response = view(request)
            check_reply(operation, request.environ["REQUEST_METHOD"], response)
            return response

        return checked_view


def check_request(operation: Operation, request: Request) -> Checked:
    """Check path, query, headers and body.

    Raises InvalidInput, InvalidFields, MalformedRequest, UnsupportedMediaType, BodyTooLarge.
    """
    for parameter in operation.parameters:
        if parameter.place == "path":
            parameter.read(request.matchdict[parameter.name])
        elif parameter.place == "header":
            _check_header(parameter, request)
    query = _known_query(operation, request.environ.get("QUERY_STRING", ""))
    return Checked(query=query, body=_read_json_body(operation, request))


def check_reply(operation: Operation, method: str, response: Response) -> None:
    """Raise ContractBroken unless the description allows this reply."""
    reply = operation.replies.get(str(response.status_code))
    if reply is None:
        _broken(operation, f"status {response.status_code} is not described")
    for name in reply.headers:
        if name not in response.headers:
            _broken(operation, f"header {name} is missing")
    if not reply.content:
        return
    if response.content_type not in reply.content:
        _broken(operation, f"type {response.content_type} is not described")
    validator = reply.content[response.content_type]
    if validator is None or method == "HEAD":
        return
    body = response.body
    digest = hashlib.blake2b(body, digest_size=16, key=reply_key(response)).digest()
    if digest in operation.known_replies:
        return
    for error in validator.iter_errors(json.loads(body)):
        _broken(operation, f"{_pointer(error.instance_path)}: {error.message}")
    if len(operation.known_replies) >= _MOST_KEPT:
        operation.known_replies.clear()
    operation.known_replies.add(digest)


def reply_key(response: Response) -> bytes:
    """Return what tells equal bytes of different kinds of reply apart."""
    return cast("bytes", response.status[:3].encode())  # cast: WebOb's property is loosely typed


def _broken(operation: Operation, what: str) -> NoReturn:
    raise ContractBroken(f"the reply of {operation.id} breaks the API description: {what}")


# -- reading requests ------------------------------------------------------------------


def _check_header(parameter: Parameter, request: Request) -> None:
    text = request.headers.get(parameter.name)
    if text is None:
        if parameter.is_required:
            raise InvalidInput(f"header {parameter.name} is required", pointer=parameter.name)
        return
    parameter.read(text)


def _known_query(operation: Operation, text: str) -> Mapping[str, Any]:
    query = operation.known_queries.get(text)
    if query is None:
        query = _read_query(operation, text)
        if len(text) <= LONGEST_KEPT_QUERY:
            if len(operation.known_queries) >= _MOST_KEPT:
                operation.known_queries.clear()
            operation.known_queries[text] = query
    return query


def _read_query(operation: Operation, text: str) -> Mapping[str, Any]:
    known = {p.name: p for p in operation.parameters if p.place == "query"}
    try:
        pairs = parse_qsl(text, keep_blank_values=True, errors="strict", max_num_fields=64)
    except (UnicodeDecodeError, ValueError) as exc:
        raise MalformedRequest("the query is not URL-encoded UTF-8") from exc
    values: dict[str, Any] = {}
    for name, value in pairs:
        if name not in known:
            raise InvalidInput(f"there is no parameter {name!r} here", pointer=name)
        if name in values:
            raise InvalidInput(f"parameter {name} is given twice", pointer=name)
        values[name] = known[name].read(value)
    for parameter in known.values():
        if parameter.name in values:
            continue
        if parameter.is_required:
            raise InvalidInput(f"parameter {parameter.name} is required", pointer=parameter.name)
        values[parameter.name] = parameter.schema.get("default")
    return values


def _read_json_body(operation: Operation, request: Request) -> Any:  # Any: as `Checked.body`
    if operation.body is None:
        return None
    if not request.content_length and not operation.is_body_required:
        return None
    media_type = request.content_type or _JSON
    if media_type not in operation.body:
        allowed = ", ".join(operation.body)
        raise UnsupportedMediaType(f"the body is {media_type}; this operation takes {allowed}")
    validator = operation.body[media_type]
    if validator is None:
        return None
    value = parse_json(read_body(request, limit_bytes=MOST_JSON_BYTES))
    problems = []
    for error in validator.iter_errors(value):
        problems.append((_pointer(error.instance_path), error.message))
        if len(problems) >= _MOST_ERRORS:
            break
    if problems:
        raise InvalidFields(tuple(problems))
    return value


def _converted(text: str, schema: Document) -> Any:  # Any: as the schema says
    match schema.get("type"):
        case "integer":
            return int(text) if _INTEGER.fullmatch(text) else text
        case "boolean":
            return {"true": True, "false": False}.get(text, text)
        case "array":
            return text.split(",")
        case _:
            return text


def _pointer(path: Sequence[str | int]) -> str:
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in path)


# -- compiling the description ------------------------------------------------------------


def _loader() -> Any:  # Any: the C loader exists only where libyaml does
    return getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Compiler:
    def __init__(self, document: Document) -> None:
        self._document = document
        self._registry = Registry([(_ROOT, dict(document))])
        self._compiled: dict[str, Draft202012Validator] = {}

    def resolved(self, part: Document, where: str) -> tuple[Document, str]:
        """Follow a reference to where the part itself stands."""
        reference = part.get("$ref")
        if reference is None:
            return part, where
        found: Any = self._document  # Any: walks down the document
        for step in reference.removeprefix("#/").split("/"):
            found = found[step.replace("~1", "/").replace("~0", "~")]
        return found, reference

    def validator(self, where: str) -> Draft202012Validator:
        """Compile the schema that stands at this JSON pointer."""
        if where not in self._compiled:
            self._compiled[where] = Draft202012Validator(
                {"$ref": _ROOT + quote(where, safe="#/~")},
                registry=self._registry,
                validate_formats=True,
                mask="the value",
            )
        return self._compiled[where]

    def content(self, part: Document, where: str) -> dict[str, Draft202012Validator | None]:
        """Compile the schemas of every media type; only JSON has one that is checked."""
        return {
            media_type: self.validator(f"{where}/content/{_escaped(media_type)}/schema")
            if media_type.endswith("json") and "schema" in description
            else None
            for media_type, description in part.get("content", {}).items()
        }

    def parameter(self, part: Document, where: str) -> Parameter:
        """Compile one parameter."""
        part, where = self.resolved(part, where)
        schema, _ = self.resolved(part["schema"], "")
        return Parameter(
            name=part["name"],
            place=part["in"],
            is_required=part.get("required", False),
            schema=schema,
            check=self.validator(f"{where}/schema"),
        )

    def reply(self, part: Document, where: str) -> Reply:
        """Compile one reply."""
        part, where = self.resolved(part, where)
        required = []
        for name, header in part.get("headers", {}).items():
            if self.resolved(header, "")[0].get("required", False):
                required.append(name)
        return Reply(headers=tuple(required), content=self.content(part, where))


def _operations(document: Document) -> list[Operation]:
    compiler = _Compiler(document)
    return [
        _operation(compiler, path, method, item)
        for path, item in document["paths"].items()
        for method in _METHODS
        if method in item
    ]


def _operation(compiler: _Compiler, path: str, method: str, item: Document) -> Operation:
    description = item[method]
    where = f"#/paths/{_escaped(path)}"
    parameters = [
        compiler.parameter(part, f"{base}/parameters/{index}")
        for base, holder in ((where, item), (f"{where}/{method}", description))
        for index, part in enumerate(holder.get("parameters", ()))
    ]
    body = description.get("requestBody")
    return Operation(
        id=description["operationId"],
        method=method.upper(),
        path=path,
        parameters=tuple(parameters),
        body=None if body is None else compiler.content(body, f"{where}/{method}/requestBody"),
        is_body_required=body is not None and body.get("required", False),
        replies={
            status: compiler.reply(part, f"{where}/{method}/responses/{status}")
            for status, part in description["responses"].items()
        },
    )


def _escaped(part: str) -> str:
    return part.replace("~", "~0").replace("/", "~1")
