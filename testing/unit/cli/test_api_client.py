# SPDX-License-Identifier: Apache-2.0
"""How refusals, broken connections and pages of the API reach the commands."""

import pytest
import requests

from pycloud.cli.api_client import Api, Call, Refused, Unreachable, segment
from pycloud.cli.failures import ExitCode
from testing.http_transports import Reply, Script, a_problem, a_response

URL = "http://192.0.2.1:9999"


def an_api(*replies: Reply, token: str | None = None) -> tuple[Api, Script]:
    script = Script(replies=list(replies))
    return Api(URL, token=token, transport=script), script


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pycloud.cli.api_client._RETRY_PAUSE_S", 0)


@pytest.mark.parametrize(
    ("status", "code", "exit_code"),
    [
        (404, "not_found", ExitCode.NOT_FOUND),
        (409, "service_in_use", ExitCode.CONFLICT),
        (412, "precondition_failed", ExitCode.CONFLICT),
        (401, "unauthenticated", ExitCode.FAILURE),
        (422, "image_refused", ExitCode.FAILURE),
        (503, "capacity_exceeded", ExitCode.FAILURE),
        (599, "internal", ExitCode.FAILURE),
    ],
)
def test_refusal_carries_its_exit_code(status: int, code: str, exit_code: ExitCode) -> None:
    api, _ = an_api(a_problem(status, code))

    with pytest.raises(Refused) as caught:
        api.get("/services")

    assert (caught.value.exit_code, caught.value.code) == (exit_code, code)
    assert f"said of {code}" in caught.value.message


def test_refusal_names_the_fields_that_are_wrong() -> None:
    errors = [{"pointer": "/port", "detail": "has to be a number"}]
    api, _ = an_api(a_problem(422, "invalid_input", errors=errors))

    with pytest.raises(Refused, match="/port: has to be a number"):
        api.post("/services", {})


def test_server_error_names_the_request_id() -> None:
    api, _ = an_api(a_problem(500, "internal"))

    with pytest.raises(Refused, match="request id: r-1"):
        api.get("/system")


@pytest.mark.parametrize(
    "answer",
    [
        a_response(200, b"<html>"),
        a_response(200, ["a list"]),
        a_response(404, b"no such page"),
        a_response(302, b"", headers={"Location": "http://elsewhere.example/"}),
    ],
)
def test_answer_of_another_program_counts_as_no_cloudlet(answer: requests.Response) -> None:
    api, _ = an_api(answer)

    with pytest.raises(Unreachable, match="not as a cloudlet does") as caught:
        api.get("/services")

    assert caught.value.exit_code == ExitCode.UNREACHABLE


def test_refused_connection_is_told_at_once() -> None:
    api, script = an_api(requests.ConnectionError(ConnectionRefusedError(111)))
    script.replies[0].__cause__ = ConnectionRefusedError(111)  # type: ignore[union-attr]

    with pytest.raises(Unreachable, match="refused the connection"):
        api.get("/services")

    assert len(script.seen) == 1


def test_broken_connection_is_tried_again_with_the_same_key() -> None:
    api, script = an_api(requests.ConnectionError("reset"), a_response(202, {"id": "j"}))

    job = api.post("/instances", {"service_id": "speech"})

    keys = {request.headers["Idempotency-Key"] for request in script.seen}
    assert (job, len(script.seen), len(keys)) == ({"id": "j"}, 2, 1)


def test_deletion_is_not_repeated_when_the_connection_breaks() -> None:
    api, script = an_api(requests.ConnectionError("reset"))

    with pytest.raises(Unreachable):
        api.delete("/services/speech")

    assert len(script.seen) == 1


def test_slow_answer_is_told_as_such() -> None:
    api, _ = an_api(requests.exceptions.ReadTimeout())

    with pytest.raises(Unreachable, match="did not answer in time"):
        api.get("/system")


def test_pages_are_followed_to_the_end() -> None:
    api, script = an_api(
        a_response(200, {"items": [{"id": "a"}], "next": "c/1"}),
        a_response(200, {"items": [{"id": "b"}], "next": None}),
    )

    found = [item["id"] for item in api.pages("/services", {"state": "running"})]

    assert found == ["a", "b"]
    assert "cursor=c%2F1" in str(script.seen[1].url)
    assert all("state=running" in str(request.url) for request in script.seen)


def test_change_names_the_version_it_was_made_from() -> None:
    api, script = an_api(a_response(200, {}, headers={"ETag": '"7"'}), a_response(200, {"id": "a"}))

    api.change("/services/a", {"description": "new"})

    assert (script.seen[1].method, script.seen[1].headers["If-Match"]) == ("PATCH", '"7"')


def test_token_is_sent_and_nothing_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://proxy.example:3128")
    api, script = an_api(a_response(200, {}), token="clt_secret")

    api.get("/system")

    assert script.seen[0].headers["Authorization"] == "Bearer clt_secret"
    assert str(script.seen[0].url).startswith(URL)


def test_waiting_is_asked_of_the_server() -> None:
    api, script = an_api(a_response(200, {"id": "j"}))

    api.job("j", hold_s=3)

    assert script.seen[0].headers["Prefer"] == "wait=3"


@pytest.mark.parametrize(
    ("identifier", "expected"),
    [("a.b-c_1", "a.b-c_1"), ("../x?y#z", "..%2Fx%3Fy%23z"), ("", "%00")],
)
def test_segment_keeps_an_id_within_its_part_of_the_path(identifier: str, expected: str) -> None:
    assert segment(identifier) == expected


def test_redirect_is_not_followed() -> None:
    api, script = an_api(a_response(307, b"{}", headers={"Location": "http://elsewhere.example/"}))

    with pytest.raises(Unreachable):
        api.send(Call(method="GET", path="/system"))

    assert len(script.seen) == 1
