# SPDX-License-Identifier: Apache-2.0
"""HTTP to the Cloudlet API: requests, pages, problems, and files in both directions.

Every refusal becomes a Failure with the exit code that belongs to it. Proxies, netrc
files and redirects are left alone: the token goes to the server that was named, and
nowhere else.
"""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any
from urllib.parse import quote
from uuid import uuid4

import requests
from requests.adapters import BaseAdapter

from pycloud import __version__
from pycloud.cli.failures import ADVICE, ExitCode, Failure
from pycloud.cli.output import Json

BASE = "/api/v2"
_CONNECT_TIMEOUT_S = 5.0
PATIENCE_S = 60.0
"""For an answer, on top of the time that the server was asked to hold its reply."""
_PAGE_ITEMS = 500
_ATTEMPTS = 3
_RETRY_PAUSE_S = 0.5
_EXIT_CODES: Mapping[int, ExitCode] = {
    HTTPStatus.NOT_FOUND: ExitCode.NOT_FOUND,
    HTTPStatus.CONFLICT: ExitCode.CONFLICT,
    HTTPStatus.PRECONDITION_FAILED: ExitCode.CONFLICT,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One request. `key` makes it safe to send again when the connection breaks."""

    method: str
    path: str
    query: Mapping[str, str | int] | None = None
    body: Json | None = None
    content: bytes | None = None
    headers: Mapping[str, str] | None = None
    hold_s: int = 0
    """How long the server may hold the reply (Prefer: wait)."""
    streams: bool = False
    repeatable: bool = False


class Refused(Failure):
    """Carry a refusal of the server; `code` and `status` are what it answered."""

    def __init__(self, message: str, *, status: int, code: str) -> None:
        super().__init__(
            message,
            exit_code=_EXIT_CODES.get(status, ExitCode.FAILURE),
            advice=ADVICE.get(code, ""),
        )
        self.status = status
        self.code = code


class Unreachable(Failure):
    """Say that no server answers there, or that it stopped to."""

    def __init__(self, message: str, *, advice: str) -> None:
        super().__init__(message, exit_code=ExitCode.UNREACHABLE, advice=advice)


class Api:
    """One server. Not to be shared by threads."""

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        transport: BaseAdapter | None = None,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self.url = url
        self._patience_s = patience_s
        self._session = requests.Session()
        self._session.trust_env = False
        self._session.headers["User-Agent"] = f"pycloud/{__version__}"
        self._session.headers["Accept"] = "application/json, */*;q=0.1"
        if token is not None:
            self._session.headers["Authorization"] = f"Bearer {token}"
        if transport is not None:
            self._session.mount(url, transport)

    def get(self, path: str, query: Mapping[str, str | int] | None = None) -> Json:
        """Return what is at a path. Raises Refused, Unreachable."""
        return _json(self.send(Call(method="GET", path=path, query=query, repeatable=True)))

    def pages(self, path: str, query: Mapping[str, str | int] | None = None) -> Iterator[Json]:
        """Iterate over all items of a list. Raises Refused, Unreachable."""
        cursor: str | None = None
        while True:
            asked: dict[str, str | int] = {"limit": _PAGE_ITEMS, **(query or {})}
            if cursor is not None:
                asked["cursor"] = cursor
            page = self.get(path, asked)
            yield from page["items"]
            cursor = page["next"]
            if cursor is None:
                return

    def post(self, path: str, body: Json | None = None) -> Json:
        """Ask for something to be made or done, once however often it has to be sent."""
        return _json(
            self.send(
                Call(
                    method="POST",
                    path=path,
                    body=body,
                    headers={"Idempotency-Key": uuid4().hex},
                    repeatable=True,
                )
            )
        )

    def change(self, path: str, changes: Json) -> Json:
        """Change what is at a path, unless somebody else does at the same time."""
        present = self.send(Call(method="GET", path=path, repeatable=True))
        return _json(
            self.send(
                Call(
                    method="PATCH",
                    path=path,
                    body=changes,
                    headers={"If-Match": present.headers.get("ETag", "*")},
                )
            )
        )

    def delete(self, path: str, query: Mapping[str, str | int] | None = None) -> Json | None:
        """Remove, stop or cancel; return the Job if that takes one."""
        response = self.send(Call(method="DELETE", path=path, query=query))
        return _json(response) if response.content else None

    def job(self, job_id: str, *, hold_s: int) -> Json:
        """Return a Job, at its end or after `hold_s` seconds."""
        path = f"/jobs/{segment(job_id)}"
        return _json(self.send(Call(method="GET", path=path, hold_s=hold_s, repeatable=True)))

    def send(self, call: Call) -> requests.Response:
        """Send a request and return a successful answer. Raises Refused, Unreachable."""
        attempts = _ATTEMPTS if call.repeatable else 1
        for attempt in range(1, attempts + 1):
            try:
                response = self._send_once(call)
            except requests.exceptions.ConnectTimeout as exc:
                raise self._unreachable(exc) from exc
            except (requests.ConnectionError, requests.exceptions.ChunkedEncodingError) as exc:
                if attempt == attempts or _is_refused(exc):
                    raise self._unreachable(exc) from exc
                time.sleep(_RETRY_PAUSE_S)
                continue
            except requests.RequestException as exc:
                raise self._unreachable(exc) from exc
            if not response.ok or response.is_redirect:
                raise _refused(response)
            return response
        raise AssertionError("every attempt returns or raises")

    def _send_once(self, call: Call) -> requests.Response:
        headers = dict(call.headers or {})
        if call.hold_s:
            headers["Prefer"] = f"wait={call.hold_s}"
        if call.content is not None:
            headers["Content-Type"] = "application/offset+octet-stream"
        return self._session.request(
            call.method,
            self.url + BASE + call.path,
            params=dict(call.query) if call.query else None,
            json=call.body,
            data=call.content,
            headers=headers,
            timeout=(_CONNECT_TIMEOUT_S, self._patience_s + call.hold_s),
            allow_redirects=False,
            stream=call.streams,
        )

    def _unreachable(self, exc: Exception) -> Unreachable:
        if isinstance(exc, requests.exceptions.ReadTimeout):
            return Unreachable(
                f"the server at {self.url} did not answer in time",
                advice="look at its log; `pycloud doctor` on its machine may know why",
            )
        reason = "refused the connection" if _is_refused(exc) else "cannot be reached"
        return Unreachable(
            f"the server at {self.url} {reason}",
            advice="start it with `pycloud serve`, or name another one with --url",
        )


def segment(identifier: str) -> str:
    """Return an id as one part of a path, whatever it holds."""
    return quote(identifier, safe="") or "%00"


def _json(response: requests.Response) -> Json:
    try:
        content: Any = response.json()  # Any: whatever the server sent
    except requests.exceptions.JSONDecodeError as exc:
        raise _no_cloudlet(response) from exc
    if not isinstance(content, dict):
        raise _no_cloudlet(response)
    return content


def _refused(response: requests.Response) -> Failure:
    try:
        problem: Any = response.json()  # Any: whatever the server sent
        detail, code = str(problem["detail"]), str(problem["code"])
        fields = [(str(one["pointer"]), str(one["detail"])) for one in problem.get("errors", ())]
    except (requests.exceptions.JSONDecodeError, KeyError, TypeError):
        return _no_cloudlet(response)
    lines = [detail] + [f"  {name}: {said}" for name, said in fields if said != detail]
    if response.status_code >= HTTPStatus.INTERNAL_SERVER_ERROR:
        lines.append(f"  request id: {problem.get('request_id', '?')}")
    return Refused("\n".join(lines), status=response.status_code, code=code)


def _no_cloudlet(response: requests.Response) -> Failure:
    return Unreachable(
        f"{response.url} answered {response.status_code}, but not as a cloudlet does",
        advice="another program may listen there; name the cloudlet with --url",
    )


def _is_refused(exc: BaseException | None) -> bool:
    """Return whether nobody listens there, which another attempt would not change."""
    while exc is not None:
        if isinstance(exc, ConnectionRefusedError) or "NewConnectionError" in repr(exc):
            return True
        exc = exc.__cause__ or exc.__context__
    return False
