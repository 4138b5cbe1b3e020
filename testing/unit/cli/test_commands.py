# SPDX-License-Identifier: Apache-2.0
"""Commands that need no server, and what all commands have in common."""

import json
import re
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import requests
import yaml
from click.testing import CliRunner, Result

from pycloud import __version__, wiring
from pycloud.cli.failures import ADVICE, ExitCode
from pycloud.cli.main import cli
from pycloud.cli.session import Session
from pycloud.core.model.diagnosis import Finding, Verdict
from pycloud.errors import CloudletError, StoreUnavailable
from pycloud.settings import Settings
from testing.http_transports import Script, a_response


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("URL", "TOKEN", "CONFIG"):
        monkeypatch.delenv(f"PYCLOUD_{name}", raising=False)
    monkeypatch.setenv("PYCLOUD_DATA_DIR", str(tmp_path / "data"))


def run(*arguments: str, session: Session | None = None) -> Result:
    return CliRunner().invoke(cli, arguments, obj=session or Session(), prog_name="pycloud")


def all_commands(
    command: click.Command = cli, path: tuple[str, ...] = ()
) -> Iterator[tuple[str, ...]]:
    yield path
    if isinstance(command, click.Group):
        for name, child in command.commands.items():
            yield from all_commands(child, (*path, name))


@pytest.mark.parametrize("path", list(all_commands()), ids=" ".join)
def test_every_command_explains_itself(path: tuple[str, ...]) -> None:
    result = run(*path, "--help")

    assert result.exit_code == 0
    assert len(result.output.splitlines()[2].split()) > 1


@pytest.mark.parametrize("path", [path for path in all_commands() if len(path) > 1], ids=" ".join)
def test_every_command_takes_the_format_at_its_end(path: tuple[str, ...]) -> None:
    assert "--output" in run(*path, "--help").output


def test_help_begins_with_what_to_do_first() -> None:
    text = run("--help").output
    steps = re.findall(r"^ +pycloud ([a-z]+(?: [a-z]+)?)  ", text, re.MULTILINE)

    assert [step.split()[0] for step in steps] == ["doctor", "serve", "service", "cloudlet"]
    for step in steps:
        assert run(*step.split(), "--help").exit_code == 0
    for variable in ("PYCLOUD_CONFIG", "PYCLOUD_URL", "PYCLOUD_TOKEN"):
        assert variable in text


def test_package_can_be_run_as_a_program(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["__main__.py", "--version"])

    with pytest.raises(SystemExit) as ended:
        runpy.run_module("pycloud", run_name="__main__")

    assert (ended.value.code, capsys.readouterr().out) == (0, f"pycloud {__version__}\n")


def test_unknown_command_is_a_usage_error() -> None:
    assert run("servce", "list").exit_code == ExitCode.USAGE


# -- config ------------------------------------------------------------------------------


def test_config_show_tells_values_and_where_they_come_from(tmp_path: Path) -> None:
    ini = tmp_path / "a.ini"
    ini.write_text("[app:main]\npycloud.api_port = 1234\n", encoding="ascii")

    rows = json.loads(run("--config", str(ini), "config", "show", "-o", "json").stdout)

    told = {row["name"]: (row["value"], row["origin"]) for row in rows}
    assert told["pycloud.api_port"] == ("1234", str(ini))
    assert told["pycloud.data_dir"][1] == "environment PYCLOUD_DATA_DIR"
    assert told["pycloud.manager_port"] == ("9998", "default")


def test_config_show_changed_leaves_defaults_out() -> None:
    rows = yaml.safe_load(run("config", "show", "--changed", "-o", "yaml").stdout)

    assert [row["name"] for row in rows] == ["pycloud.data_dir"]


def test_config_show_hides_passwords(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYCLOUD_STORE", "mongodb://user:hush@db.example/cloudlet")

    shown = run("config", "show", "-o", "json").stdout

    assert "hush" not in shown
    assert "mongodb://user:***@db.example/cloudlet" in shown


def test_config_check_accepts_a_right_file(tmp_path: Path) -> None:
    ini = tmp_path / "a.ini"
    ini.write_text("[app:main]\npycloud.api_port = 1234\n", encoding="ascii")

    result = run("config", "check", str(ini))

    assert (result.exit_code, "it sets 1 of" in result.stdout) == (0, True)
    assert "pycloud.data_dir is taken from the environment" in result.stderr


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("pycloud.api_prt = 1", "did you mean pycloud.api_port?"),
        ("pycloud.api_port = many", "a whole number from 0 to 65535"),
        ("no key at all", "a readable .ini file"),
    ],
)
def test_config_check_says_what_is_wrong(tmp_path: Path, line: str, told: str) -> None:
    ini = tmp_path / "a.ini"
    ini.write_text(f"[app:main]\n{line}\n", encoding="ascii")

    result = run("config", "check", str(ini))

    assert (result.exit_code, result.stdout) == (ExitCode.USAGE, "")
    assert told in result.stderr


# -- completion ---------------------------------------------------------------------------


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script_for_the_shell(shell: str) -> None:
    result = run("completion", shell)

    assert (result.exit_code, "_PYCLOUD_COMPLETE" in result.stdout) == (0, True)


def completed(words: str, incomplete: str, session: Session) -> list[str]:
    result = CliRunner().invoke(
        cli,
        obj=session,
        prog_name="pycloud",
        env={
            "_PYCLOUD_COMPLETE": "bash_complete",
            "COMP_WORDS": f"pycloud {words} {incomplete}",
            "COMP_CWORD": str(len(words.split()) + 1),
        },
        complete_var="_PYCLOUD_COMPLETE",
    )
    assert (result.exit_code, result.stderr) == (0, "")
    return [line.partition(",")[2] for line in result.stdout.splitlines() if line]


def test_completion_offers_ids_from_the_server() -> None:
    page = {"items": [{"id": "speech"}, {"id": "spell"}, {"id": "faces"}], "next": None}
    session = Session(transport=Script(answer=lambda _request: a_response(200, page)))

    assert completed("service show", "sp", session) == ["speech", "spell"]


def test_completion_is_quiet_without_a_server() -> None:
    script = Script(answer=lambda _request: requests.ConnectionError())
    session = Session(transport=script)

    assert completed("service show", "", session) == []


# -- doctor --------------------------------------------------------------------------------


def findings(*verdicts: Verdict) -> list[Finding]:
    return [
        Finding(name=f"check {verdict}", verdict=verdict, detail="seen", fix="sudo mend it")
        for verdict in verdicts
    ]


@pytest.fixture
def diagnosis(monkeypatch: pytest.MonkeyPatch) -> list[Finding]:
    found: list[Finding] = []

    def diagnose(settings: Settings) -> Iterator[Finding]:
        yield from found

    monkeypatch.setattr(wiring, "diagnose", diagnose)
    return found


@pytest.mark.parametrize(
    ("verdicts", "exit_code", "told"),
    [
        ((Verdict.OK,), 0, "Everything is as it should be"),
        ((Verdict.OK, Verdict.WARN), 0, "1 of these could be better"),
        ((Verdict.FAIL, Verdict.WARN), 1, "1 of these failed"),
    ],
)
def test_doctor_sums_up(
    diagnosis: list[Finding], verdicts: tuple[Verdict, ...], exit_code: int, told: str
) -> None:
    diagnosis.extend(findings(*verdicts))

    result = run("doctor")

    assert result.exit_code == exit_code
    assert told in result.stdout
    assert "-> sudo mend it" in result.stdout


def test_doctor_writes_a_document_for_scripts(diagnosis: list[Finding]) -> None:
    diagnosis.extend(findings(Verdict.OK, Verdict.FAIL))

    result = run("doctor", "--output", "json")

    document = json.loads(result.stdout)
    assert (result.exit_code, document["healthy"]) == (1, False)
    assert document["findings"][1] == {
        "name": "check fail",
        "verdict": "fail",
        "detail": "seen",
        "fix": "sudo mend it",
    }


# -- errors --------------------------------------------------------------------------------


def raising(error: BaseException) -> Session:
    def answer(_request: object) -> BaseException:
        return error

    return Session(transport=Script(answer=answer))  # type: ignore[arg-type]


def test_error_of_pycloud_becomes_a_message_with_advice() -> None:
    result = run("service", "list", session=raising(StoreUnavailable("the store is gone")))

    assert result.exit_code == ExitCode.FAILURE
    assert result.stderr.splitlines() == [
        "error: the store is gone",
        f"  -> {ADVICE['store_unavailable']}",
    ]


def test_interrupt_ends_with_130() -> None:
    result = run("service", "list", session=raising(KeyboardInterrupt()))

    assert (result.exit_code, result.stderr) == (ExitCode.INTERRUPTED, "interrupted\n")


def test_advice_is_only_given_for_codes_that_exist() -> None:
    def codes(kind: type[CloudletError]) -> set[str]:
        return {kind.code}.union(*(codes(child) for child in kind.__subclasses__()))

    import pycloud.web.errors  # noqa: F401, PLC0415  # defines some of the codes

    assert set(ADVICE) <= codes(CloudletError)


def test_bad_setting_is_a_usage_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYCLOUD_API_PORT", "many")

    result = run("service", "list")

    assert result.exit_code == ExitCode.USAGE
    assert "pycloud.api_port = 'many'" in result.stderr
