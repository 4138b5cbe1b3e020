# SPDX-License-Identifier: Apache-2.0
"""The command line against the real Cloudlet API on behaving twins of the ports."""

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests
from click.testing import CliRunner, Result

from pycloud.adapters.fakes import fake_qcow2
from pycloud.adapters.fakes.network import Answer
from pycloud.cli.failures import ExitCode
from pycloud.cli.main import cli
from pycloud.cli.session import Session
from testing.http_transports import WsgiTransport
from testing.stand import Stand

Run = Callable[..., Result]


@pytest.fixture
def run(stand: Stand) -> Run:
    """Run a command as the administrator of the stand."""
    transport = WsgiTransport(stand.api())

    def invoke(*arguments: str, token: str | None = stand.token) -> Result:
        session = Session(url="http://192.0.2.10:9999", token=token, transport=transport)
        return CliRunner().invoke(cli, arguments, obj=session, prog_name="pycloud")

    return invoke


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.qcow2"
    path.write_bytes(fake_qcow2(b"speech"))
    return path


def an_apk() -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("AndroidManifest.xml", b"binary")
    return content.getvalue()


def done(result: Result) -> Result:
    assert (result.exit_code, result.exception) == (0, None), result.output
    return result


def read(result: Result) -> Any:  # Any: decoded JSON
    return json.loads(done(result).stdout)


def add(run: Run, image: Path, service_id: str = "speech", *more: str) -> Result:
    return run("service", "add", str(image), "--id", service_id, "--port", "8080", *more)


# -- services ------------------------------------------------------------------------------


def test_service_is_added_prepared_and_shown(run: Run, image: Path) -> None:
    added = add(run, image, "speech", "--tag", "a", "--tag", "b", "--memory", "512")

    assert done(added).stdout == "service speech was added\n"
    assert "Preparing speech: succeeded" in added.stderr
    shown = read(run("service", "show", "speech", "-o", "json"))
    assert (shown["tags"], shown["ideal_memory_mib"]) == (["a", "b"], 512)
    assert shown["service_vms"][0]["memory"] is not None
    assert shown["service_vms"][0]["source"] == "disk.qcow2"


def test_service_show_reads_well(run: Run, image: Path) -> None:
    done(add(run, image, "speech", "--no-prepare"))

    shown = done(run("service", "show", "speech")).stdout

    assert "no (run `pycloud service prepare`)" in shown
    assert "made from              disk.qcow2" in shown


def test_service_add_without_waiting_returns_the_job(run: Run, image: Path) -> None:
    job = read(add(run, image, "speech", "--no-wait", "-o", "json"))

    ended = read(run("job", "wait", job["id"], "-o", "json"))
    assert (job["kind"], ended["state"]) == ("service.add", "succeeded")


def test_service_whose_id_is_taken_is_refused_before_the_upload(run: Run, image: Path) -> None:
    done(add(run, image))

    again = add(run, image)

    assert again.exit_code == ExitCode.CONFLICT
    assert "Sending" not in again.stderr


def test_broken_image_is_refused_with_the_reason(run: Run, tmp_path: Path) -> None:
    broken = tmp_path / "broken.img"
    broken.write_bytes(b"no disk" * 1000)

    result = add(run, broken)

    assert result.exit_code == ExitCode.FAILURE
    assert "error: " in result.stderr
    assert "-> " in result.stderr


def test_bad_id_is_refused_and_the_upload_discarded(run: Run, stand: Stand, image: Path) -> None:
    result = add(run, image, "no spaces allowed")

    assert result.exit_code == ExitCode.FAILURE
    assert stand.store.uploads.count() == 0


def test_service_is_changed(run: Run, image: Path) -> None:
    done(add(run, image, "speech", "--tag", "old"))

    done(run("service", "update", "speech", "--description", "hears", "--no-tags"))

    (listed,) = read(run("service", "list", "-o", "json"))
    assert (listed["description"], listed["tags"]) == ("hears", [])


def test_service_is_left_to_the_settings_again(run: Run, image: Path) -> None:
    done(add(run, image, "speech", "--no-prepare", "--warm-count", "3", "--idle-timeout", "60"))

    done(run("service", "update", "speech", "--warm-count", "auto", "--idle-timeout", "auto"))

    (listed,) = read(run("service", "list", "-o", "json"))
    assert (listed["warm_count"], listed["idle_timeout_s"]) == (None, None)


def test_update_of_the_machine_says_that_instant_starts_come_back(run: Run, image: Path) -> None:
    done(add(run, image, "speech"))

    changed = done(run("service", "update", "speech", "--memory", "512"))

    (job,) = (
        one
        for one in read(run("job", "list", "-o", "json"))
        if one["id"] in changed.stderr and one["kind"] == "service.prepare"
    )
    done(run("job", "wait", job["id"]))
    shown = read(run("service", "show", "speech", "-o", "json"))
    assert shown["service_vms"][0]["memory"]["memory_mib"] == 512


@pytest.mark.parametrize("count", ["-1", "some", ""])
def test_count_that_is_neither_number_nor_auto_is_a_usage_error(run: Run, count: str) -> None:
    assert run("service", "update", "speech", "--warm-count", count).exit_code == ExitCode.USAGE


def test_option_of_a_service_is_left_to_the_settings_again(run: Run, image: Path) -> None:
    done(add(run, image, "speech", "--warm-count", "3", "--idle-timeout", "60"))

    done(run("service", "update", "speech", "--unset", "warm-count"))

    shown = read(run("service", "show", "speech", "-o", "json"))
    assert (shown["warm_count"], shown["idle_timeout_s"]) == (None, 60)


def test_update_without_a_change_is_a_usage_error(run: Run) -> None:
    assert run("service", "update", "speech").exit_code == ExitCode.USAGE


def test_service_with_instances_is_removed_only_on_request(run: Run, image: Path) -> None:
    done(add(run, image))
    done(run("instance", "start", "speech"))

    refused = run("service", "remove", "speech")

    assert (refused.exit_code, "--stop-instances" in refused.stderr) == (ExitCode.CONFLICT, True)
    done(run("service", "remove", "speech", "--stop-instances"))
    assert read(run("service", "list", "-o", "json")) == []


def test_service_is_exported_and_imported_under_another_id(
    run: Run, image: Path, tmp_path: Path
) -> None:
    done(add(run, image))
    package = tmp_path / "speech.csvm"

    exported = done(run("service", "export", "speech", str(package)))

    assert exported.stdout.startswith(f"{package} holds ")
    done(run("service", "import", str(package), "--id", "copy"))
    assert [one["id"] for one in read(run("service", "list", "-o", "json"))] == ["speech", "copy"]


def test_exported_package_is_removed_from_the_server_when_it_has_arrived(
    run: Run, image: Path, stand: Stand, tmp_path: Path
) -> None:
    done(add(run, image))

    done(run("service", "export", "speech", str(tmp_path / "speech.csvm")))

    assert stand.store.packages.count() == 0


def test_exported_package_that_is_kept_is_listed_fetched_and_removed(
    run: Run, image: Path, tmp_path: Path
) -> None:
    done(add(run, image))
    first, second = tmp_path / "first.csvm", tmp_path / "second.csvm"

    kept = read(run("service", "export", "speech", str(first), "--keep", "-o", "json"))

    (listed,) = read(run("package", "list", "-o", "json"))
    done(run("package", "download", kept["id"], str(second)))
    done(run("package", "remove", kept["id"]))
    assert (listed, second.read_bytes()) == (kept, first.read_bytes())
    assert read(run("package", "list", "-o", "json")) == []


def test_package_that_cannot_be_written_here_stays_on_the_server(
    run: Run, image: Path, stand: Stand, tmp_path: Path
) -> None:
    done(add(run, image))

    failed = run("service", "export", "speech", str(tmp_path / ("long" * 64)))

    (package,) = stand.store.packages.find().items
    assert failed.exit_code != ExitCode.OK
    assert f"pycloud package download {package.id}" in failed.stderr


class WithoutRemoval(WsgiTransport):
    """Loses the connection for every removal."""

    def send(self, request: requests.PreparedRequest, **options: Any) -> requests.Response:
        if request.method == "DELETE":
            raise requests.ConnectionError("gone")
        return super().send(request, **options)


def test_export_is_done_though_the_package_stays_on_the_server(
    run: Run, image: Path, stand: Stand, tmp_path: Path
) -> None:
    done(add(run, image))
    transport = WithoutRemoval(stand.api())
    session = Session(url="http://192.0.2.10:9999", token=stand.token, transport=transport)

    result = CliRunner().invoke(
        cli, ["service", "export", "speech", str(tmp_path / "x.csvm")], obj=session
    )

    (package,) = stand.store.packages.find().items
    assert f"pycloud package remove {package.id}" in done(result).stderr


def test_export_into_a_missing_folder_asks_nothing_of_the_server(run: Run, stand: Stand) -> None:
    result = run("service", "export", "speech", "/no/such/folder/x.csvm")

    assert (result.exit_code, stand.store.jobs.count()) == (ExitCode.USAGE, 0)


# -- instances ------------------------------------------------------------------------------


@pytest.fixture
def instance(run: Run, image: Path) -> dict[str, Any]:  # Any: decoded JSON
    done(add(run, image))
    started: dict[str, Any] = read(run("instance", "start", "speech", "-o", "json"))
    return started


def test_instance_start_tells_where_it_is_reached_and_where_the_time_went(
    run: Run, image: Path
) -> None:
    done(add(run, image))

    started = done(run("instance", "start", "speech")).stdout

    assert "reached at              192.0.2.10:2" in started
    assert "PHASE" in started


def test_instance_start_can_share_a_running_one(run: Run, image: Path) -> None:
    done(add(run, image, "speech", "--sharing-limit", "2"))
    first = read(run("instance", "start", "speech", "--share", "-o", "json"))

    second = read(run("instance", "start", "speech", "--share", "-o", "json"))

    assert (second["id"], second["users"]) == (first["id"], 2)


def test_instance_is_paused_resumed_and_stopped(run: Run, instance: dict[str, Any]) -> None:
    told = [
        done(run("instance", verb, instance["id"])).stdout
        for verb in ("renew", "pause", "resume", "stop")
    ]

    assert [line.split(maxsplit=2)[2] for line in told] == [
        "stays until it is stopped\n",
        "is paused\n",
        "is running\n",
        "was stopped\n",
    ]
    assert "nothing runs" in done(run("instance", "list")).stderr
    assert [one["state"] for one in read(run("instance", "list", "--all", "-o", "json"))] == [
        "stopped"
    ]


def test_instance_list_shows_where_each_is_reached(run: Run, instance: dict[str, Any]) -> None:
    listed = done(run("instance", "list", "--service", "speech")).stdout

    assert f"{instance['address']}:{instance['port']}" in listed


def test_serial_output_is_printed(run: Run, stand: Stand, instance: dict[str, Any]) -> None:
    stand.hypervisor.write_serial(instance["id"], b"booted\r\nready")

    assert done(run("instance", "log", instance["id"])).stdout == "booted\nready\n"


def test_instance_start_without_waiting_returns_at_once(
    run: Run, stand: Stand, image: Path
) -> None:
    done(add(run, image))
    stand.probe.answer = Answer.HELD

    begun = read(run("instance", "start", "speech", "--no-wait", "-o", "json"))

    assert begun["state"] in {"requested", "starting"}


def test_guest_that_dies_at_its_start_says_what_to_look_at(
    run: Run, stand: Stand, image: Path
) -> None:
    done(add(run, image))
    stand.probe.answer = Answer.GUEST_DIES

    failed = run("instance", "start", "speech")

    assert failed.exit_code == ExitCode.FAILURE
    assert "the guest stopped before its service answered" in failed.stderr
    assert "pycloud instance log" in failed.stderr


class InterruptedWhileFollowing(WsgiTransport):
    """Lets Ctrl-C come at the first look at a Job."""

    interrupted = False

    def send(self, request: requests.PreparedRequest, **options: Any) -> requests.Response:
        if "/jobs/" in str(request.url) and not self.interrupted:
            self.interrupted = True
            raise KeyboardInterrupt
        return super().send(request, **options)


def test_interrupt_cancels_the_start_and_leaves_nothing(
    run: Run, stand: Stand, image: Path
) -> None:
    done(add(run, image))
    stand.probe.answer = Answer.HELD
    transport = InterruptedWhileFollowing(stand.api())
    session = Session(url="http://192.0.2.10:9999", token=stand.token, transport=transport)

    result = CliRunner().invoke(cli, ["instance", "start", "speech"], obj=session)

    assert (result.exit_code, result.stdout) == (ExitCode.INTERRUPTED, "")
    assert "cancelled; what it did so far was undone" in result.stderr
    assert stand.hypervisor.domains() == ()


@pytest.mark.parametrize(
    "arguments",
    [
        ("service", "show"),
        ("service", "prepare"),
        ("service", "remove"),
        ("instance", "show"),
        ("instance", "start"),
        ("instance", "stop"),
        ("instance", "log"),
        ("job", "show"),
        ("job", "cancel"),
        ("app", "show"),
        ("app", "remove"),
        ("package", "remove"),
    ],
    ids=" ".join,
)
def test_unknown_id_ends_with_not_found(run: Run, arguments: tuple[str, ...]) -> None:
    result = run(*arguments, "nobody")

    assert (result.exit_code, result.stdout) == (ExitCode.NOT_FOUND, "")
    assert result.stderr.startswith("error: ")


# -- apps, jobs, the cloudlet -----------------------------------------------------------------


def test_app_is_added_listed_fetched_and_removed(run: Run, tmp_path: Path) -> None:
    package, fetched = tmp_path / "Speech.apk", tmp_path / "fetched.apk"
    package.write_bytes(an_apk())

    added = read(run("app", "add", str(package), "--tag", "x", "-o", "json"))

    assert (added["name"], added["tags"]) == ("Speech", ["x"])
    done(run("app", "download", added["id"], str(fetched)))
    assert fetched.read_bytes() == package.read_bytes()
    assert "Speech" in done(run("app", "list")).stdout
    done(run("app", "remove", added["id"]))
    assert read(run("app", "list", "-o", "json")) == []


def test_jobs_are_listed_by_state(run: Run, image: Path) -> None:
    done(add(run, image, "speech", "--no-prepare"))

    listed = read(run("job", "list", "--state", "succeeded", "-o", "json"))

    assert [job["kind"] for job in listed] == ["service.add"]
    assert "service.add" in done(run("job", "list")).stdout


def test_finished_job_cannot_be_cancelled(run: Run, image: Path) -> None:
    job = read(add(run, image, "speech", "--no-prepare", "-o", "json"))

    assert run("job", "cancel", job["id"]).exit_code == ExitCode.CONFLICT


def test_status_shows_who_and_how(run: Run) -> None:
    shown = done(run("cloudlet", "status")).stdout

    assert "name                stand" in shown
    assert "192.0.2.10:9999" in shown


def test_peers_that_the_server_sees_are_listed(run: Run) -> None:
    assert read(run("cloudlet", "discover", "--from-server", "-o", "json")) == []


@pytest.mark.parametrize(
    ("token", "code"), [(None, ExitCode.FAILURE), ("clt_wrong", ExitCode.FAILURE)]
)
def test_change_without_the_token_says_how_to_get_it(
    run: Run, image: Path, token: str | None, code: ExitCode
) -> None:
    result = run("service", "add", str(image), "--id", "a", "--port", "1", token=token)

    assert result.exit_code == code
    assert "token" in result.stderr
