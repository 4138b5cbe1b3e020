# SPDX-License-Identifier: Apache-2.0
"""The wire format of old phones, to the byte."""

import hashlib
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from webtest import TestApp

from pycloud.adapters.fakes.network import Answer
from pycloud.core.model.fleet import CpuInfo, HostMetadata, MemoryInfo
from pycloud.core.model.identifiers import AppId, DeviceId, HostId, InstanceId, ServiceId
from pycloud.core.model.runtime import InstanceState, JobState, PortMapping
from pycloud.errors import HypervisorError
from pycloud.web.waiting import ENVIRON_KEY, WaitRoom
from testing.factories import a_service, an_app, an_instance
from testing.stand import PHONE, Stand, make_stand


@contextmanager
def at_work(stand: Stand) -> Iterator[Stand]:
    """Let the Jobs of a cloudlet be worked on."""
    stand.core.background.runner.start()
    try:
        yield stand
    finally:
        stand.core.background.runner.stop()


def start(phone: TestApp, query: str = "serviceId=echo&join=false") -> dict:
    return phone.get(f"/api/servicevm/start?{query}", headers=PHONE, status=200).json


# -- services -----------------------------------------------------------------------


def test_services_are_listed_to_the_byte(stand: Stand, phone: TestApp) -> None:
    service = stand.add_service("echo")
    response = phone.get("/api/services", headers=PHONE)
    assert response.status == "200 OK"
    assert response.headers["Content-Length"] == str(len(response.body))
    assert response.content_type == "application/json"
    assert response.body == (
        b'{"services":[{"_id":"echo","service_id":"echo","description":"%s","version":"%s",'
        b'"tags":[%s]}]}'
        % (
            service.description.encode(),
            service.version.encode(),
            ",".join(f'"{tag}"' for tag in service.tags).encode(),
        )
    )


def test_services_are_fresh_after_a_change(stand: Stand, phone: TestApp) -> None:
    phone.get("/api/services")
    stand.add_service("later")
    assert [one["_id"] for one in phone.get("/api/services").json["services"]] == ["later"]


def test_service_text_is_ascii_whatever_it_says(stand: Stand, phone: TestApp) -> None:
    stand.store.services.add(_described("Zürich ☃"))
    response = phone.get("/api/services")
    assert response.body.isascii()
    assert response.json["services"][0]["description"] == "Zürich ☃"


def test_service_says_null_for_what_is_missing(stand: Stand, phone: TestApp) -> None:
    stand.store.services.add(_described(""))
    assert phone.get("/api/services/get?serviceId=described").json["description"] is None


def _described(text: str):
    return a_service(id=ServiceId("described"), description=text)


@pytest.mark.parametrize(
    ("query", "status"),
    [("", 400), ("?serviceId=", 400), ("?serviceId=../x", 400), ("?serviceId=none", 404)],
)
def test_service_get_refuses_in_plain_text(phone: TestApp, query: str, status: int) -> None:
    response = phone.get(f"/api/services/get{query}", status=status)
    assert response.content_type == "text/plain"
    assert response.text.endswith("\n")


@pytest.mark.parametrize("path", ["/api//services", "//api/services", "/api///services"])
def test_double_slashes_are_taken_for_one(phone: TestApp, path: str) -> None:
    assert phone.get(path, extra_environ={"PATH_INFO": path}).json == {"services": []}


def test_unknown_parameters_are_ignored(phone: TestApp) -> None:
    phone.get("/api/services?colour=blue", status=200)


def test_authorization_is_not_looked_at(phone: TestApp) -> None:
    phone.get("/api/services", headers={"Authorization": "Bearer nonsense"}, status=200)


def test_nothing_redirects(phone: TestApp) -> None:
    for path in ("/api/services/", "/api/servicevm/start/", "/api"):
        response = phone.get(path, expect_errors=True)
        assert response.status_int == 404


# -- starting and stopping ----------------------------------------------------------


def test_start_answers_when_the_service_has(stand: Stand, phone: TestApp) -> None:
    stand.add_service("echo")
    answer = start(phone)
    instance = stand.core.instances.instance(InstanceId(answer["_id"]))
    assert list(answer) == [
        "_id",
        "service_id",
        "running",
        "port",
        "ip_address",
        "vnc_address",
        "ssh_port",
        "fqdn",
    ]
    assert answer["service_id"] == "echo"
    assert answer["running"] is True
    assert answer["port"] == instance.published_port()
    assert answer["ip_address"] == "192.0.2.10"
    assert (answer["vnc_address"], answer["ssh_port"], answer["fqdn"]) == (None, None, None)
    assert instance.device_id == "phone-1"
    assert instance.owner == "device:phone-1"


def test_start_tells_the_cloudlets_name_of_a_forwarded_guest(tmp_path: Path) -> None:
    with at_work(make_stand(tmp_path, fqdn="box.example.org")) as stand:
        stand.add_service("echo")
        answer = start(stand.api())
    assert (answer["ip_address"], answer["fqdn"]) == ("192.0.2.10", "box.example.org")


def test_start_tells_a_bridged_guests_own_address_and_port(tmp_path: Path) -> None:
    with at_work(make_stand(tmp_path, fqdn="box.example.org", network_bridge="br0")) as stand:
        stand.add_service("echo")
        client = stand.api()
        answer = start(client)
        shown = client.get(f"/api/v2/instances/{answer['_id']}").json
    # The name is that of the cloudlet, which does not serve on the guest's port.
    assert (answer["ip_address"], answer["port"], answer["fqdn"]) == ("192.0.2.100", 8080, None)
    assert (shown["address"], shown["port"], shown["ports"]) == ("192.0.2.100", 8080, [])


def test_start_does_not_tell_this_hosts_name_of_a_guest_on_another(tmp_path: Path) -> None:
    with at_work(make_stand(tmp_path, fqdn="box.example.org")) as stand:
        stand.add_service("echo", sharing_limit=2)
        stand.store.instances.add(
            an_instance(
                state=InstanceState.RUNNING,
                service_id=ServiceId("echo"),
                host_id=HostId("next-door"),
                address="192.0.2.11",
                ports=(PortMapping(guest_port=8080, host_port=20001),),
                sharing_limit=2,
            )
        )
        answer = start(stand.api(), "serviceId=echo&join=true")
    assert (answer["ip_address"], answer["port"], answer["fqdn"]) == ("192.0.2.11", 20001, None)


@pytest.mark.parametrize("query", ["", "?serviceId=", "?serviceId=nobody", "?serviceId=%2e%2e"])
def test_start_answers_400_for_what_cannot_be_started(phone: TestApp, query: str) -> None:
    response = phone.get(f"/api/servicevm/start{query}", status=400)
    assert response.content_type == "text/plain"


@pytest.mark.parametrize("join", ["true", "T", "t", "Y", "YES", "yes", "TRUE"])
def test_start_joins_when_told_to(stand: Stand, phone: TestApp, join: str) -> None:
    stand.add_service("echo", sharing_limit=2)
    first = start(phone, f"serviceId=echo&join={join}")
    second = start(phone, f"serviceId=echo&join={join}")
    assert second == first
    assert stand.core.instances.instance(InstanceId(first["_id"])).users == 2


@pytest.mark.parametrize("join", ["false", "F", "no", "1", ""])
def test_start_is_fresh_otherwise(stand: Stand, phone: TestApp, join: str) -> None:
    stand.add_service("echo", sharing_limit=2)
    assert start(phone, f"serviceId=echo&join={join}") != start(
        phone, f"serviceId=echo&join={join}"
    )


def test_failed_start_answers_500_with_the_reason(stand: Stand, phone: TestApp) -> None:
    stand.add_service("echo")
    stand.probe.answer = Answer.GUEST_DIES
    response = phone.get("/api/servicevm/start?serviceId=echo", status=500)
    assert response.text == "the guest stopped before its service answered\n"
    assert response.content_type == "text/plain"


def test_start_says_nothing_of_what_is_broken_inside(stand: Stand, phone: TestApp) -> None:
    stand.add_service("echo")
    stand.hypervisor.fail_next("start", HypervisorError("cannot open /secret/disk"))
    response = phone.get("/api/servicevm/start?serviceId=echo", status=500)
    assert response.content_length == len(response.body)


def test_start_is_not_begun_when_too_many_wait_already(stand: Stand, phone: TestApp) -> None:
    stand.add_service("echo")
    phone.extra_environ[ENVIRON_KEY] = WaitRoom(places=0)
    refusal = phone.get("/api/servicevm/start?serviceId=echo", status=500)
    assert "too many clients wait" in refusal.text
    assert stand.core.instances.instances().items == ()


def test_stop_is_done_when_too_many_wait_already(stand: Stand, phone: TestApp) -> None:
    stand.add_service("echo")
    instance_id = start(phone)["_id"]
    phone.extra_environ[ENVIRON_KEY] = WaitRoom(places=0)
    response = phone.get(f"/api/servicevm/stop?instanceId={instance_id}", status=200)
    assert response.body == b"{}"
    assert _eventually_over(stand)


def test_start_is_given_back_when_the_client_leaves(stand: Stand) -> None:
    stand.add_service("echo")
    stand.probe.answer = Answer.HELD
    has_left = threading.Event()
    phone = stand.api()
    phone.extra_environ["waitress.client_disconnected"] = has_left.is_set
    answered = threading.Thread(
        target=lambda: phone.get("/api/servicevm/start?serviceId=echo", status=500)
    )
    answered.start()
    has_left.set()
    answered.join(timeout=30)
    assert _eventually_over(stand)
    assert stand.hypervisor.domains() == ()


def _eventually_over(stand: Stand) -> bool:
    deadline = time.monotonic() + 30
    over = {InstanceState.STOPPED, InstanceState.FAILED}
    while time.monotonic() < deadline:
        found = stand.core.instances.instances().items
        jobs = stand.core.jobs.jobs().items
        final = all(job.state not in {JobState.QUEUED, JobState.RUNNING} for job in jobs)
        if found and final and all(one.state in over for one in found):
            return True
        time.sleep(0.02)
    return False


def test_stop_stops_the_last_user(stand: Stand, phone: TestApp) -> None:
    stand.add_service("echo", sharing_limit=2)
    instance_id = start(phone, "serviceId=echo&join=true")["_id"]
    start(phone, "serviceId=echo&join=true")
    first = phone.get(f"/api/servicevm/stop?instanceId={instance_id}", status=200)
    still = stand.core.instances.instance(InstanceId(instance_id)).state
    second = phone.get(f"/api/servicevm/stop?instanceId={instance_id}", status=200)
    assert first.body == second.body == b"{}"
    assert still is InstanceState.RUNNING
    assert stand.core.instances.instance(InstanceId(instance_id)).state is InstanceState.STOPPED


@pytest.mark.parametrize(
    ("query", "status"), [("", 400), ("?instanceId=", 400), ("?instanceId=none", 404)]
)
def test_stop_refuses_what_is_not_there(phone: TestApp, query: str, status: int) -> None:
    assert phone.get(f"/api/servicevm/stop{query}", status=status).content_type == "text/plain"


def test_stop_answers_404_the_second_time(stand: Stand, phone: TestApp) -> None:
    stand.add_service("echo")
    instance_id = start(phone)["_id"]
    phone.get(f"/api/servicevm/stop?instanceId={instance_id}", status=200)
    phone.get(f"/api/servicevm/stop?instanceId={instance_id}", status=404)


@pytest.mark.parametrize(
    "path",
    [
        "/api/servicevm/start?serviceId=echo",
        "/api/servicevm/stop?instanceId=x",
        "/api/system/get_messages?serviceId=echo",
    ],
)
def test_head_changes_nothing(stand: Stand, phone: TestApp, path: str) -> None:
    stand.add_service("echo")
    response = phone.head(path, status=405)
    assert response.headers["Allow"] == "GET"
    assert stand.core.instances.instances().items == ()


def test_head_of_a_list_has_its_length(phone: TestApp) -> None:
    response = phone.head("/api/services", status=200)
    assert response.headers["Content-Length"] == "15"
    assert response.body == b""


def test_post_is_refused(phone: TestApp) -> None:
    assert phone.post("/api/services", status=405).content_type == "text/plain"


# -- apps ---------------------------------------------------------------------------


def add_app(stand: Stand, content: bytes = b"apk", **fields: object):
    return stand.store.apps.add(
        an_app(
            blob=stand.blobs.put(content),
            md5sum=hashlib.md5(content, usedforsecurity=False).hexdigest(),
            **fields,
        )
    )


def test_apps_are_listed_with_every_field(stand: Stand, phone: TestApp) -> None:
    app = add_app(stand, description="")
    listed = phone.get("/api/apps?osName=Android&osVersion=14&tags=").json["apps"]
    assert listed == [
        {
            "_id": app.id,
            "name": app.name,
            "service_id": app.service_id,
            "description": None,
            "package_name": app.package_name,
            "min_android_version": app.min_os_version or None,
            "md5sum": app.md5sum,
            "app_version": app.app_version,
            "tags": list(app.tags),
        }
    ]


def test_apps_are_chosen_by_any_tag(stand: Stand, phone: TestApp) -> None:
    add_app(stand, id=AppId("a"), tags=("maps", "speech"))
    add_app(stand, id=AppId("b"), tags=("games",))
    listed = phone.get("/api/apps?tags=speech,sound").json["apps"]
    assert [one["_id"] for one in listed] == ["a"]


def test_app_is_downloaded_whole(stand: Stand, phone: TestApp) -> None:
    app = add_app(stand, b"PK content", file_name='x"\r\nSet-Cookie: a=b.apk')
    response = phone.get(f"/api/apps/get?appId={app.id}", headers={"Range": "bytes=0-1"})
    assert response.status_int == 200
    assert response.body == b"PK content"
    assert response.headers["Content-Length"] == "10"
    assert response.content_type == "application/vnd.android.package-archive"
    assert (
        response.headers["Content-Disposition"] == 'attachment; filename="x___Set-Cookie_ a_b.apk"'
    )


@pytest.mark.parametrize(("query", "status"), [("", 400), ("?appId=none", 404)])
def test_app_get_refuses_what_is_not_there(phone: TestApp, query: str, status: int) -> None:
    assert phone.get(f"/api/apps/get{query}", status=status).content_type == "text/plain"


# -- the cloudlet -------------------------------------------------------------------


def test_system_is_told_to_the_byte(phone: TestApp) -> None:
    assert phone.get("/api/system").body == (
        b'{"memory_info":{"max_memory":17179869184,"free_memory":8589934592},'
        b'"cpu_info":{"max_cores":4,"usage":12.5,"speed":2400.0,"cache":8192}}'
    )


def test_system_never_tells_zero_cores_or_speed(stand: Stand, phone: TestApp) -> None:
    stand.sensors.figures = HostMetadata(
        memory=MemoryInfo(max_bytes=1, free_bytes=1),
        cpu=CpuInfo(max_cores=0, usage_percent=0.0, speed_mhz=0.0, cache_kib=0),
    )
    cpu = phone.get("/api/system").json["cpu_info"]
    assert cpu["max_cores"] == 1
    assert cpu["speed"] > 0


@pytest.mark.parametrize("word", ["T", "true", "Y", "yes"])
def test_system_brings_lists_when_told_to(stand: Stand, phone: TestApp, word: str) -> None:
    stand.add_service("echo")
    add_app(stand)
    content = phone.get(f"/api/system?services={word}&apps={word}").json
    assert content["services"] == phone.get("/api/services").json["services"]
    assert content["apps"] == phone.get("/api/apps").json["apps"]


def test_messages_are_handed_out_once(stand: Stand, phone: TestApp) -> None:
    device, service = DeviceId("phone-1"), ServiceId("echo")
    stand.core.mailbox.put(device, service, "add-trusted-cloudlet", {"ssid": "field"})
    stand.core.mailbox.put(DeviceId("phone-2"), service, "not for you", {})
    first = phone.get("/api/system/get_messages?serviceId=echo", headers=PHONE)
    second = phone.get("/api/system/get_messages?serviceId=echo", headers=PHONE)
    assert first.json == {
        "messages": [
            {
                "device_id": "phone-1",
                "service_id": "echo",
                "message": "add-trusted-cloudlet",
                "params": {"ssid": "field"},
            }
        ]
    }
    assert second.body == b'{"messages":[]}'


@pytest.mark.parametrize("device", ["", "../../etc", "a b", "x" * 65])
def test_messages_are_none_for_a_strange_device(phone: TestApp, device: str) -> None:
    response = phone.get("/api/system/get_messages?serviceId=echo", headers={"X-Device-ID": device})
    assert response.body == b'{"messages":[]}'


@pytest.mark.parametrize(
    "path", ["/api/nothing", "/api/services/%ff", "/api/services/get?serviceId=%ff"]
)
def test_errors_are_plain_text_everywhere(phone: TestApp, path: str) -> None:
    response = phone.get(path, expect_errors=True)
    assert response.status_int in {400, 404}
    assert response.content_type == "text/plain"
