# SPDX-License-Identifier: Apache-2.0
"""/api/v2: its conventions, Jobs, events and what monitors read."""

import gc
import io
import json
import logging
import threading
import tracemalloc
from datetime import timedelta
from pathlib import Path

import pytest
import yaml
from webtest import TestApp

from pycloud.adapters.fakes import FakeClock
from pycloud.adapters.fakes.network import Answer
from pycloud.core.model.identifiers import (
    InstanceId,
    JobId,
    ServiceId,
)
from pycloud.core.model.runtime import InstanceState, JobState, Progress
from pycloud.web.logs import JsonLines
from pycloud.web.waiting import ENVIRON_KEY, WaitRoom
from testing.factories import a_job, an_event, an_instance
from testing.functional.v2_calls import WAIT
from testing.stand import Stand, make_stand, problem_of

# -- jobs -----------------------------------------------------------------------------


def test_job_is_cancelled_and_undone(stand: Stand, phone: TestApp) -> None:
    stand.add_service("echo")
    stand.probe.answer = Answer.HELD
    started = phone.post_json("/api/v2/instances", {"service_id": "echo"}, status=202).json
    path = f"/api/v2/jobs/{started['job']['id']}"
    cancelled = phone.delete(path, headers=stand.admin | WAIT, status=200)
    late = phone.delete(path, headers=stand.admin, status=409)
    assert cancelled.json["state"] == "cancelled"
    assert problem_of(late) == "conflict"
    assert stand.hypervisor.domains() == ()


def test_job_tells_about_how_long_it_still_takes(stand: Stand, phone: TestApp) -> None:
    job = stand.store.jobs.add(
        a_job(
            state=JobState.RUNNING,
            started_at=stand.core.clock.now() - timedelta(seconds=300),
            lease_expires_at=stand.core.clock.now() + timedelta(hours=1),
            progress=Progress(done=3, total=4, unit="bytes"),
        )
    )
    assert 100 <= phone.get(f"/api/v2/jobs/{job.id}").json["eta_s"] <= 130


def test_log_tells_which_request_asked_for_a_job(stand: Stand, phone: TestApp) -> None:
    stand.add_service("echo")
    lines = io.StringIO()
    handler = logging.StreamHandler(lines)
    handler.setFormatter(JsonLines())
    logger = logging.getLogger("pycloud.core.jobs")
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    try:
        headers = {"X-Request-ID": "mine"}
        started = phone.post_json("/api/v2/instances", {"service_id": "echo"}, headers=headers)
    finally:
        logger.removeHandler(handler)
        logger.setLevel(logging.NOTSET)
    told = [json.loads(line) for line in lines.getvalue().splitlines()]
    (line,) = [one for one in told if one["event"] == "job_submitted"]
    assert (line["request_id"], line["job_id"]) == ("mine", started.json["job"]["id"])


# -- system and events --------------------------------------------------------------------


def test_index_tells_who_asks(stand: Stand, phone: TestApp) -> None:
    assert phone.get("/api/v2").json["auth"] == "untrusted"
    assert phone.get("/api/v2", headers=stand.admin).json["auth"] == "trusted"
    phone.get("/api/v2", headers={"Authorization": "Bearer no"}, status=401)


def test_system_is_told(phone: TestApp) -> None:
    content = phone.get("/api/v2/system").json
    assert content["cloudlet"]["name"] == "stand"
    assert content["hypervisor"]["accelerator"] == "tcg"


def test_events_are_read_on_from_where_one_was(stand: Stand, phone: TestApp) -> None:
    log = stand.core.events
    first = log.append(an_event(kind="service")).sequence
    log.append(an_event(kind="job"))
    last = log.append(an_event(kind="service")).sequence
    content = phone.get(f"/api/v2/events?after={first}&kinds=service,app", headers=stand.admin).json
    assert [one["sequence"] for one in content["items"]] == [last]
    assert (content["last"], content["gap"]) == (last, False)


def test_events_that_were_dropped_leave_a_gap(stand: Stand, phone: TestApp) -> None:
    for _ in range(5):
        stand.core.events.append(an_event())
    stand.core.events.trim(keep=2)
    assert phone.get("/api/v2/events?after=0", headers=stand.admin).json["gap"] is True


def test_reader_waits_for_the_next_event(stand: Stand, phone: TestApp) -> None:
    timer = threading.Timer(0.05, lambda: stand.core.events.append(an_event(kind="app")))
    timer.start()
    content = phone.get("/api/v2/events", headers=stand.admin | {"Prefer": "wait=30"}).json
    timer.join()
    assert [one["kind"] for one in content["items"]] == ["app"]


def test_reader_without_a_place_is_answered_at_once(stand: Stand, phone: TestApp) -> None:
    phone.extra_environ[ENVIRON_KEY] = WaitRoom(places=0)
    content = phone.get("/api/v2/events", headers=stand.admin | {"Prefer": "wait=60"}).json
    assert content["items"] == []


# -- bad input ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"{", 400, "malformed_request"),
        (b"", 400, "malformed_request"),
        (b"\xff\xfe", 400, "malformed_request"),
        (b'{"service_id": NaN}', 400, "malformed_request"),
        (b'{"service_id": "\\ud800"}', 400, "malformed_request"),
        (b"[" * 100_000, 400, "malformed_request"),
        (b'{"a":' * 40 + b"1" + b"}" * 40, 400, "malformed_request"),
        (b"9" * 5000, 400, "malformed_request"),
        (b"[]", 422, "invalid_input"),
        (b"{}", 422, "invalid_input"),
        (b'{"service_id": 7}', 422, "invalid_input"),
        (b'{"service_id": "../etc"}', 422, "invalid_input"),
        (b'{"service_id": "a", "colour": 1}', 422, "invalid_input"),
        (b'{"service_id": "%s"}' % (b"a" * 300_000), 413, "body_too_large"),
    ],
)
def test_bad_body_is_refused(phone: TestApp, body: bytes, status: int, code: str) -> None:
    response = phone.post("/api/v2/instances", body, content_type="application/json", status=status)
    assert problem_of(response) == code


def test_wrong_types_are_pointed_at(stand: Stand, phone: TestApp) -> None:
    response = phone.post_json(
        "/api/v2/services",
        {"id": "a", "port": "80", "tags": ["ok", 5], "upload_id": "u"},
        headers=stand.admin,
        status=422,
    )
    assert {one["pointer"] for one in response.json["errors"]} == {"/port", "/tags/1"}


def test_whole_number_is_an_integer_however_it_is_written(stand: Stand, phone: TestApp) -> None:
    stand.add_service("echo")
    headers = stand.admin | {"If-Match": "*", "Content-Type": "application/json"}
    phone.patch("/api/v2/services/echo", b'{"port": 8080.0}', headers=headers)
    assert type(stand.core.catalog.service(ServiceId("echo")).port) is int


@pytest.mark.parametrize("port", [b"1e400", b"1e300", b"-1e400", b"80.5"])
def test_number_that_is_no_port_is_refused(stand: Stand, phone: TestApp, port: bytes) -> None:
    stand.add_service("echo")
    headers = stand.admin | {"If-Match": "*", "Content-Type": "application/json"}
    body = b'{"port": ' + port + b"}"
    refused = phone.patch("/api/v2/services/echo", body, headers=headers, status=422)
    assert problem_of(refused) == "invalid_input"


def test_values_that_make_no_sense_together_are_pointed_at(stand: Stand, phone: TestApp) -> None:
    body = {
        "id": "a",
        "port": 80,
        "min_memory_mib": 512,
        "ideal_memory_mib": 256,
        "upload_id": stand.upload(phone, b"x"),
    }
    response = phone.post_json("/api/v2/services", body, headers=stand.admin, status=422)
    assert response.json["errors"][0]["pointer"] == "/ideal_memory_mib"


def test_form_is_not_json(phone: TestApp) -> None:
    response = phone.post("/api/v2/instances", {"service_id": "a"}, status=415)
    assert problem_of(response) == "unsupported_media_type"


@pytest.mark.parametrize(
    "query",
    ["colour=1", "limit=0", "limit=501", "limit=x", "limit=1&limit=2", "cursor=", "limit=%ff"],
)
def test_bad_query_is_refused(phone: TestApp, query: str) -> None:
    assert problem_of(phone.get(f"/api/v2/services?{query}", status=400))


@pytest.mark.parametrize("path", ["/api/v2/apps?tags=", "/api/apps?tags="])
def test_long_queries_are_not_remembered(phone: TestApp, path: str) -> None:
    def ask(number: int) -> None:
        phone.get(path + ",".join([f"{number:0250}"] * 64))

    tracemalloc.start()
    try:
        # The client itself remembers the last 128 addresses that it took apart.
        for number in range(150):
            ask(number)
        before_bytes, _ = tracemalloc.get_traced_memory()
        for number in range(150, 250):
            ask(number)
        gc.collect()
        after_bytes, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # Each of them is 16 kB long.
    assert after_bytes - before_bytes < 800_000


def test_method_that_is_not_there_is_refused(phone: TestApp) -> None:
    response = phone.put_json("/api/v2/services", {}, status=405)
    assert problem_of(response) == "method_not_allowed"
    assert response.headers["Allow"] == "GET, POST, HEAD"


def test_unknown_error_says_nothing_but_its_id(
    stand: Stand, phone: TestApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> int:
        message = "secret /path"
        raise RuntimeError(message)

    monkeypatch.setattr(stand.store.services, "revision", broken)
    response = phone.get("/api/v2/services", headers={"X-Request-ID": "mine"}, status=500)
    assert problem_of(response) == "internal"
    assert response.json["request_id"] == "mine"
    assert "secret" not in response.text


def test_reply_that_breaks_the_description_is_not_sent(
    stand: Stand, phone: TestApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand.store.instances.add(an_instance(id=InstanceId("i"), job_id=JobId("j")))
    monkeypatch.setattr("pycloud.api.views.instances.instance_json", lambda *_: {"id": "i"})
    response = phone.get("/api/v2/instances/i", status=500)
    assert problem_of(response) == "contract_broken"


def test_request_id_of_the_caller_is_kept_if_it_is_sensible(phone: TestApp) -> None:
    kept = phone.get("/healthz", headers={"X-Request-ID": "abc-1"})
    replaced = phone.get("/healthz", headers={"X-Request-ID": "a b\tc"})
    assert kept.headers["X-Request-ID"] == "abc-1"
    assert len(replaced.headers["X-Request-ID"]) == 16


# -- monitors -----------------------------------------------------------------------------


def test_readyz_names_what_is_missing(stand: Stand, phone: TestApp) -> None:
    stand.core.health.look()
    phone.get("/readyz", status=200)
    stand.blobs.set_free_bytes(0)
    stand.core.health.look()
    response = phone.get("/readyz", status=503)
    assert {one["name"]: one["ok"] for one in response.json["checks"]}["disk"] is False
    assert "detail" not in response.json["checks"][0]


def test_metrics_count_requests_instances_and_starts(stand: Stand, phone: TestApp) -> None:
    stand.add_service("echo")
    monitor = stand.api(address="127.0.0.1")
    monitor.post_json("/api/v2/instances", {"service_id": "echo"}, headers=WAIT, status=200)
    monitor.get("/metrics")
    text = monitor.get("/metrics").text
    assert 'pycloud_http_requests_total{method="POST",route="v2.instances",status="200"} 1' in text
    assert 'pycloud_instances{state="running"} 1.0' in text
    assert 'pycloud_start_seconds_count{method="cold"} 1.0' in text


def test_metrics_do_not_read_all_records_at_every_scrape(tmp_path: Path) -> None:
    clock = FakeClock()
    stand = make_stand(tmp_path, clock=clock)
    monitor = stand.api(address="127.0.0.1")

    def running_instances() -> str:
        text = monitor.get("/metrics").text
        (line,) = [one for one in text.splitlines() if 'instances{state="running"}' in one]
        return line.rpartition(" ")[2]

    before = running_instances()
    stand.store.instances.add(an_instance(state=InstanceState.RUNNING))
    clock.advance(7)
    within = running_instances()
    clock.advance(1)
    assert (before, within, running_instances()) == ("0.0", "0.0", "1.0")


def test_description_is_served_in_both_forms(phone: TestApp) -> None:
    as_yaml = yaml.safe_load(phone.get("/api/v2/openapi.yaml").body)
    assert json.loads(phone.get("/api/v2/openapi.json").body) == as_yaml
