# SPDX-License-Identifier: Apache-2.0
"""A phone with the old client uses a real cloudlet: services, apps, messages, errors."""

import hashlib
import io
import random
import re
import zipfile
from collections.abc import Iterator
from typing import Any

import pytest

from pycloud.core.model.identifiers import DeviceId, ServiceId
from testing.guest import guest_image
from testing.system.callers import (
    Operator,
    Phone,
    ask_guest,
    read_answer,
    require_right_checksums,
)
from testing.system.cloudlet import Server, running_server, wait_until

PHOTO = random.Random(7).randbytes(300_001)
CALL_DEADLINE_S = 30.0


def an_apk() -> bytes:
    """Return the smallest thing that passes for an APK."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("AndroidManifest.xml", b"\x03\x00\x08\x00")
        archive.writestr("classes.dex", random.Random(3).randbytes(70_000))
    return buffer.getvalue()


APK = an_apk()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A cloudlet with one shareable Service and one App."""
    with running_server(tmp_path_factory.mktemp("phone")) as server:
        operator = Operator(server.url, server.token)
        operator.add_service(
            "demo", guest_image(), sharing_limit=2, description="Checksums", tags=["sums", "test"]
        )
        upload_id = operator.announce(len(APK))
        assert operator.append(upload_id, 0, APK).status == 204
        added = operator.call(
            "POST",
            "/apps",
            {
                "upload_id": upload_id,
                "name": "Sums",
                "service_id": "demo",
                "package_name": "org.example.sums",
                "tags": ["sums"],
                "min_os_version": "4.4",
            },
        )
        assert added.status == 201, added.text
        yield server


@pytest.fixture
def phone(server: Server) -> Phone:
    """A phone."""
    return Phone(server.port)


@pytest.fixture
def nothing_left(server: Server) -> Iterator[None]:
    """Stop afterwards what was left running, and require that nothing remains."""
    yield
    Operator(server.url, server.token).stop_all()
    server.require_agreement()


@pytest.mark.usefixtures("nothing_left")
def test_phone_gets_its_answer_from_a_cold_start_to_the_stop(server: Server, phone: Phone) -> None:
    listed = phone.get("/services").json["services"]
    assert [service["service_id"] for service in listed] == ["demo"]
    assert phone.get("/services/get", serviceId="demo").json == listed[0]
    assert listed[0]["tags"] == ["sums", "test"]
    assert listed[0]["version"] == "1"

    vm = phone.start("demo")
    assert vm["service_id"] == "demo"
    assert vm["running"] is True
    assert (vm["ip_address"], vm["fqdn"]) == ("127.0.0.1", None)
    require_right_checksums(vm["port"], PHOTO)
    assert phone.get("/system/get_messages", serviceId="demo").json == {"messages": []}

    phone.stop(vm["_id"])
    with pytest.raises(OSError, match="refused"):
        ask_guest(vm["port"], "/health")
    again = phone.get("/servicevm/stop", instanceId=vm["_id"])
    assert again.status == 404


@pytest.mark.usefixtures("nothing_left")
def test_second_phone_shares_the_service_vm_until_the_last_one_stops_it(
    server: Server, phone: Phone
) -> None:
    other, third = Phone(server.port, "phone-2"), Phone(server.port, "phone-3")
    vm = phone.start("demo", join="true")
    assert other.start("demo", join="true") == vm

    fresh = third.start("demo", join="yes")
    assert fresh["_id"] != vm["_id"]

    phone.stop(vm["_id"])
    assert ask_guest(vm["port"], "/health")
    other.stop(vm["_id"])
    with pytest.raises(OSError, match="refused"):
        ask_guest(vm["port"], "/health")


@pytest.mark.usefixtures("nothing_left")
def test_two_phones_that_ask_at_once_share_one_start(server: Server, phone: Phone) -> None:
    with (
        phone.ask("/servicevm/start", serviceId="demo", join="true") as first,
        Phone(server.port, "phone-2").ask(
            "/servicevm/start", serviceId="demo", join="true"
        ) as second,
    ):
        answers = [read_answer(first), read_answer(second)]
    assert [answer.status for answer in answers] == [200, 200]
    assert answers[0].json == answers[1].json


def test_message_reaches_the_phone_it_is_for_and_no_other(server: Server, phone: Phone) -> None:
    with server.core() as core:
        core.mailbox.put(
            DeviceId("phone-1"), ServiceId("demo"), "add-trusted-cloudlet", {"ssid": "corner"}
        )
    other = Phone(server.port, "phone-2").get("/system/get_messages", serviceId="demo")
    assert other.json == {"messages": []}
    assert phone.get("/system/get_messages", serviceId="demo").json == {
        "messages": [
            {
                "device_id": "phone-1",
                "service_id": "demo",
                "message": "add-trusted-cloudlet",
                "params": {"ssid": "corner"},
            }
        ]
    }
    assert phone.get("/system/get_messages", serviceId="demo").json == {"messages": []}


def test_phone_downloads_the_app_that_the_list_describes(phone: Phone) -> None:
    (app,) = phone.get("/apps", osName="Android", osVersion="5.0", tags="sums,other").json["apps"]
    assert app["md5sum"] == hashlib.md5(APK, usedforsecurity=False).hexdigest()
    assert re.fullmatch(r"[A-Za-z0-9 ._-]{1,64}", app["name"])

    apk = phone.get("/apps/get", appId=app["_id"])
    assert apk.headers["content-type"] == "application/vnd.android.package-archive"
    assert apk.headers["content-disposition"] == 'attachment; filename="Sums.apk"'
    assert apk.body == APK


def test_phone_is_offered_no_app_that_its_system_cannot_run(phone: Phone) -> None:
    assert phone.get("/apps", osName="Android", osVersion="4.0").json == {"apps": []}


def test_phone_can_rank_the_cloudlet(phone: Phone) -> None:
    described = phone.get("/system", services="T", apps="T").json
    memory, cpu = described["memory_info"], described["cpu_info"]
    assert 0 < memory["free_memory"] <= memory["max_memory"]
    assert cpu["max_cores"] >= 1
    assert cpu["speed"] > 0
    assert [service["service_id"] for service in described["services"]] == ["demo"]
    assert [app["name"] for app in described["apps"]] == ["Sums"]


@pytest.mark.parametrize(
    ("path", "query", "status"),
    [
        ("/services/get", {"serviceId": "nothing"}, 404),
        ("/servicevm/start", {}, 400),
        ("/servicevm/start", {"serviceId": "nothing"}, 400),
        ("/servicevm/start", {"serviceId": "../../etc/passwd"}, 400),
        ("/servicevm/stop", {}, 400),
        ("/servicevm/stop", {"instanceId": "nothing"}, 404),
        ("/apps/get", {}, 400),
        ("/apps/get", {"appId": "nothing"}, 404),
        ("/nothing", {}, 404),
    ],
)
def test_phone_is_told_errors_in_plain_text(
    phone: Phone, path: str, query: dict[str, str], status: int
) -> None:
    answer = phone.get(path, **query)
    assert answer.status == status
    assert answer.headers["content-type"].startswith("text/plain")
    assert answer.text.strip()
    assert "{" not in answer.text


def test_old_peer_may_double_the_slash(phone: Phone) -> None:
    assert phone.get("//services").json == phone.get("/services").json


@pytest.mark.usefixtures("nothing_left")
def test_start_is_given_back_when_its_phone_goes_away(server: Server, phone: Phone) -> None:
    operator = Operator(server.url, server.token)
    with phone.ask("/servicevm/start", serviceId="demo"):
        instance_id = wait_until(
            lambda: an_instance(operator, state="starting"), CALL_DEADLINE_S, server.log_text
        )["id"]
    wait_until(
        lambda: operator.instance(instance_id)["state"] == "stopped",
        CALL_DEADLINE_S,
        lambda: str(operator.instance(instance_id)),
    )


@pytest.mark.usefixtures("nothing_left")
def test_shared_start_goes_on_when_one_of_its_phones_goes_away(
    server: Server, phone: Phone
) -> None:
    operator = Operator(server.url, server.token)
    leaving = phone.ask("/servicevm/start", serviceId="demo", join="true")
    with Phone(server.port, "phone-2").ask(
        "/servicevm/start", serviceId="demo", join="true"
    ) as staying:
        wait_until(
            lambda: an_instance(operator, state="starting", users=2),
            CALL_DEADLINE_S,
            server.log_text,
        )
        leaving.close()
        answer = read_answer(staying)
    assert answer.status == 200, answer.text
    require_right_checksums(answer.json["port"], PHOTO)
    wait_until(
        lambda: operator.instance(answer.json["_id"])["users"] == 1,
        CALL_DEADLINE_S,
        lambda: "the use of the phone that left is still counted",
    )


def an_instance(operator: Operator, **wanted: object) -> dict[str, Any] | None:
    """Return an Instance that looks as wanted, None if there is none yet."""
    for found in operator.get("/instances?limit=200")["items"]:
        if all(found[name] == value for name, value in wanted.items()):
            return dict(found)
    return None
