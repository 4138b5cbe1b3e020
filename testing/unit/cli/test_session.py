# SPDX-License-Identifier: Apache-2.0
"""Which server commands talk to, and to whom the administrator's token is shown."""

from pathlib import Path

import pytest

from pycloud import wiring
from pycloud.cli.failures import ExitCode, Failure
from pycloud.cli.session import Session
from testing.http_transports import Script, a_response


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A configuration whose data directory holds a token."""
    (tmp_path / "admin.token").write_text("clt_own\n", encoding="ascii")
    path = tmp_path / "cloudlet.ini"
    path.write_text(
        f"[app:main]\npycloud.data_dir = {tmp_path}\npycloud.api_port = 12345\n", encoding="ascii"
    )
    return path


def sent_token(session: Session) -> str | None:
    script = Script(answer=lambda _request: a_response(200, {}))
    session.transport = script
    session.api.get("")
    return script.seen[0].headers.get("Authorization")


def test_server_is_the_one_of_the_settings_on_this_machine(config: Path) -> None:
    assert Session(config=config).api.url == "http://127.0.0.1:12345"


def test_server_is_at_the_address_on_which_the_settings_let_it_listen(config: Path) -> None:
    config.write_text("[a]\npycloud.api_host = 192.0.2.9\n", encoding="ascii")

    assert Session(config=config).api.url == "http://192.0.2.9:9999"


@pytest.mark.parametrize(
    "url", [None, "http://127.0.0.1:80", "http://localhost:1", "http://[::1]:1"]
)
def test_own_token_is_used_for_servers_on_this_machine(config: Path, url: str | None) -> None:
    assert sent_token(Session(config=config, url=url)) == "Bearer clt_own"


@pytest.mark.parametrize("url", ["http://192.0.2.1:9999", "http://cloudlet.example:9999"])
def test_own_token_is_never_sent_to_another_machine(config: Path, url: str) -> None:
    assert sent_token(Session(config=config, url=url)) is None


def test_given_token_goes_to_the_server_that_was_named(config: Path) -> None:
    session = Session(config=config, url="http://192.0.2.1:9999", token="clt_given")

    assert sent_token(session) == "Bearer clt_given"


def test_missing_token_is_no_error(config: Path) -> None:
    (config.parent / "admin.token").unlink()

    assert sent_token(Session(config=config)) is None


@pytest.mark.parametrize(
    "url", ["127.0.0.1:9999", "ftp://a:1", "http://", "http://a:b", "http://a:0", "http://a:99999"]
)
def test_url_of_no_server_is_a_usage_error(config: Path, url: str) -> None:
    with pytest.raises(Failure, match="not the URL of a server") as caught:
        _ = Session(config=config, url=url).api

    assert caught.value.exit_code == ExitCode.USAGE


def test_token_lies_where_the_server_puts_it(config: Path) -> None:
    settings = Session(config=config).settings

    assert wiring.admin_token_path(settings).read_text(encoding="ascii").strip() == "clt_own"
