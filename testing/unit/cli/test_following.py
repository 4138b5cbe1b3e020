# SPDX-License-Identifier: Apache-2.0
"""Following a Job: to success, to failure, and what Ctrl-C does."""

import pytest
from rich.progress import Progress

from pycloud.cli.api_client import Api
from pycloud.cli.failures import ExitCode, Failure, Quiet
from pycloud.cli.following import _Bar, follow, follow_with_sequel
from pycloud.cli.output import Format, Json, Printer
from testing.http_transports import Reply, Script, a_problem, a_response


def a_job(**members: object) -> Json:
    return {
        "id": "j1",
        "kind": "service.add",
        "state": "running",
        "stage": "normalise",
        "progress": {"done": 1, "total": 4, "unit": "bytes"},
        "resources": ["service/speech", "upload/u1"],
        "result": {},
        "error": None,
        **members,
    }


def an_api(*replies: Reply) -> tuple[Api, Script]:
    script = Script(replies=list(replies))
    return Api("http://192.0.2.1:1", transport=script), script


def answered(**members: object) -> Reply:
    return a_response(200, a_job(**members))


def test_job_is_followed_to_its_end(capsys: pytest.CaptureFixture[str]) -> None:
    api, _ = an_api(
        answered(stage="publish"), answered(stage="publish"), answered(state="succeeded")
    )

    ended = follow(api, a_job(), Printer(Format.TABLE))

    assert ended["state"] == "succeeded"
    assert capsys.readouterr().err.splitlines() == [
        "Adding speech: converting the disk",
        "Adding speech: recording",
        "Adding speech: succeeded",
    ]


@pytest.mark.parametrize(
    ("code", "exit_code"),
    [
        ("image_refused", ExitCode.FAILURE),
        ("already_exists", ExitCode.CONFLICT),
        ("not_found", ExitCode.NOT_FOUND),
    ],
)
def test_failed_job_ends_the_command_with_its_reason(code: str, exit_code: ExitCode) -> None:
    api, _ = an_api(answered(state="failed", error={"code": code, "message": "the reason"}))

    with pytest.raises(Failure, match=r"the reason .*stage normalise") as caught:
        follow(api, a_job(), Printer(Format.TABLE))

    assert caught.value.exit_code == exit_code


def test_job_cancelled_by_somebody_else_is_a_failure() -> None:
    api, _ = an_api(answered(state="cancelled"))

    with pytest.raises(Failure, match="was cancelled"):
        follow(api, a_job(), Printer(Format.TABLE))


def test_interrupt_cancels_the_job_and_waits_until_it_is_undone(
    capsys: pytest.CaptureFixture[str],
) -> None:
    api, script = an_api(
        KeyboardInterrupt,
        a_response(202, a_job(cancel_requested=True)),
        answered(cancel_requested=True),
        answered(state="cancelled"),
    )

    with pytest.raises(Quiet) as caught:
        follow(api, a_job(), Printer(Format.TABLE))

    assert caught.value.exit_code == ExitCode.INTERRUPTED
    assert [request.method for request in script.seen] == ["GET", "DELETE", "GET", "GET"]
    assert "cancelled; what it did so far was undone" in capsys.readouterr().err


def test_interrupt_past_the_point_of_no_return_says_how_it_ended(
    capsys: pytest.CaptureFixture[str],
) -> None:
    api, _ = an_api(
        KeyboardInterrupt, a_problem(409, "conflict"), answered(), answered(state="succeeded")
    )

    with pytest.raises(Quiet):
        follow(api, a_job(), Printer(Format.TABLE))

    assert "too late to cancel" in capsys.readouterr().err


def test_second_interrupt_leaves_and_says_where_to_look(capsys: pytest.CaptureFixture[str]) -> None:
    api, _ = an_api(KeyboardInterrupt, a_response(202, a_job()), answered(), KeyboardInterrupt)

    with pytest.raises(Quiet):
        follow(api, a_job(), Printer(Format.TABLE))

    assert "pycloud job show j1" in capsys.readouterr().err


def test_preparation_that_a_job_began_is_followed_too() -> None:
    prepared = a_job(id="j1-prepare", kind="service.prepare", state="succeeded")
    api, script = an_api(a_response(200, prepared))
    added = a_job(state="succeeded", result={"prepare_job": "j1-prepare"})

    finished = follow_with_sequel(api, added, Printer(Format.TABLE))

    assert finished["id"] == "j1"
    assert str(script.seen[0].url).endswith("/jobs/j1-prepare")


@pytest.mark.parametrize(
    ("total", "eta_s", "shown"),
    [(4, 40, "1 B of 4 B, about 40 s left"), (4, None, "1 B of 4 B"), (0, None, "")],
)
def test_bar_tells_how_much_is_done_and_left(total: int, eta_s: int | None, shown: str) -> None:
    with Progress() as progress:
        bar = _Bar(progress, progress.add_task("", stage="", amount=""))
        bar.show(a_job(progress={"done": 1, "total": total, "unit": "bytes"}, eta_s=eta_s))
    assert progress.tasks[0].fields["amount"] == shown
