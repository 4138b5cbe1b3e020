# SPDX-License-Identifier: Apache-2.0
"""Services travel between real cloudlets as packages, also as those of the original pycloud."""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from testing.guest import guest_image
from testing.old_packages import OLD_DESCRIPTION, old_package
from testing.system.callers import Operator, require_right_checksums
from testing.system.cloudlet import Server, running_server

CONTENT = random.Random(13).randbytes(150_001)


@pytest.fixture(scope="module")
def sender(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A cloudlet with a Service to give away."""
    with running_server(tmp_path_factory.mktemp("sender"), {"name": "sender"}) as server:
        Operator(server.url, server.token).add_service(
            "demo", guest_image(), description="Travels", tags=["far"], sharing_limit=3
        )
        yield server


@pytest.fixture(scope="module")
def receiver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A cloudlet with nothing on it."""
    with running_server(tmp_path_factory.mktemp("receiver"), {"name": "receiver"}) as server:
        yield server


@pytest.fixture
def importer(receiver: Server) -> Iterator[Operator]:
    """The operator of the receiver."""
    operator = Operator(receiver.url, receiver.token)
    yield operator
    operator.stop_all()
    receiver.require_agreement()


def imported(importer: Operator, package: Path, **fields: Any) -> dict[str, Any]:
    """Import a package and return its Job."""
    wanted = {"upload_id": importer.upload(package), "prepare": False, **fields}
    return importer.done(importer.call("POST", "/imports", wanted))


def test_service_starts_from_its_memory_on_the_cloudlet_it_was_brought_to(
    sender: Server, importer: Operator, tmp_path: Path
) -> None:
    exporter = Operator(sender.url, sender.token)
    job = exporter.done(exporter.call("POST", "/packages", {"service_id": "demo"}))
    package_id = job["result"]["package_id"]
    download = exporter.call("GET", f"/packages/{package_id}/content")
    assert download.status == 200
    assert int(download.headers["content-length"]) == len(download.body)
    package = tmp_path / "demo.csvm"
    package.write_bytes(download.body)
    exporter.done(exporter.call("DELETE", "/services/demo"))
    sender.require_agreement()

    job = imported(importer, package)
    assert job["result"]["memory"] == "imported"
    service = importer.get("/services/demo")
    assert (service["description"], service["tags"]) == ("Travels", ["far"])
    assert service["sharing_limit"] == 3

    first, second = importer.start("demo"), importer.start("demo")
    assert [first["start_method"], second["start_method"]] == ["restore", "restore"]
    for instance in (first, second):
        require_right_checksums(instance["port"], CONTENT)


def test_old_package_boots_cold_and_gets_a_fresh_memory_when_its_own_is_unusable(
    importer: Operator, tmp_path: Path
) -> None:
    package = tmp_path / "speech.csvm"
    described = OLD_DESCRIPTION | {"port": "8080", "ideal_memory": "160", "min_memory": "128"}
    package.write_bytes(old_package(described, disk=guest_image().read_bytes()))

    job = imported(importer, package, prepare=True)
    assert job["result"]["memory"].startswith("not used: ")
    cold = importer.start("speech")
    assert cold["start_method"] in {"cold", "clone"}
    require_right_checksums(cold["port"], CONTENT)

    importer.done(importer.call("GET", f"/jobs/{job['result']['prepare_job']}"))
    quick = importer.start("speech")
    assert quick["start_method"] == "clone"
    require_right_checksums(quick["port"], CONTENT)


def test_import_takes_another_name_beside_the_service_that_has_it(
    importer: Operator, tmp_path: Path
) -> None:
    package = tmp_path / "twice.csvm"
    described = OLD_DESCRIPTION | {"service_id": "twice", "port": "8080"}
    package.write_bytes(old_package(described, disk=guest_image().read_bytes()))
    imported(importer, package)

    upload_id = importer.upload(package)
    refused = importer.job(
        importer.call("POST", "/imports", {"upload_id": upload_id, "prepare": False})
    )
    assert refused["error"]["code"] == "already_exists", refused
    renamed = {"upload_id": upload_id, "service_id": "twice-2", "prepare": False}
    importer.done(importer.call("POST", "/imports", renamed))
    assert importer.get("/services/twice-2")["port"] == 8080
