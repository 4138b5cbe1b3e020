# SPDX-License-Identifier: Apache-2.0
"""Reading settings: files as pserve reads them, the environment, and what is refused."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from paste.deploy import appconfig

from pycloud.cli.main import cli
from pycloud.errors import InvalidSettings
from pycloud.settings import Settings, from_deployment, from_mapping, load

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("PYCLOUD_"):
            monkeypatch.delenv(name)


def read(tmp_path: Path, text: str) -> Settings:
    path = tmp_path / "cloudlet.ini"
    path.write_text(text, encoding="utf-8")
    return load(path).settings


# -- files ---------------------------------------------------------------------------------


def test_defaults_are_read_when_the_file_has_nothing_else(tmp_path: Path) -> None:
    assert read(tmp_path, "[DEFAULT]\npycloud.api_port = 9000\n").api_port == 9000


def test_unknown_setting_is_refused_among_the_defaults(tmp_path: Path) -> None:
    with pytest.raises(InvalidSettings, match=r"did you mean pycloud\.api_port"):
        read(tmp_path, "[DEFAULT]\npycloud.api_prt = 9000\n")


@pytest.mark.parametrize(
    "text",
    [
        "[DEFAULT]\npycloud.api_port = 8000\n[app:main]\n",
        "[app:main]\npycloud.api_port = 8000\n",
        "[DEFAULT]\npycloud.api_port = 9000\n[app:main]\nset pycloud.api_port = 8000\n",
        "[app:main]\nset pycloud.api_port = 8000\n",
    ],
)
def test_file_means_what_it_means_to_pserve(tmp_path: Path, text: str) -> None:
    whole = (
        text
        + "paste.app_factory = pycloud.api:main\n"
        + "[server:main]\nuse = egg:pycloud#server\npycloud.name = box\n"
    )

    assert read(tmp_path, whole).api_port == 8000
    as_pserve_reads_it = appconfig(f"config:{tmp_path}/cloudlet.ini")
    assert as_pserve_reads_it["pycloud.api_port"] == "8000"


def test_defaults_come_first_wherever_they_stand(tmp_path: Path) -> None:
    text = "[app:main]\nset pycloud.api_port = 8000\n[DEFAULT]\npycloud.api_port = 9000\n"

    assert read(tmp_path, text).api_port == 8000


def test_later_section_wins(tmp_path: Path) -> None:
    text = "[app:main]\npycloud.api_port = 8000\n[server:main]\npycloud.api_port = 8001\n"

    assert read(tmp_path, text).api_port == 8001


def test_setting_that_pserve_would_pass_over_is_refused(tmp_path: Path) -> None:
    text = "[DEFAULT]\npycloud.api_port = 9000\n[app:main]\npycloud.api_port = 8000\n"

    with pytest.raises(InvalidSettings, match=r"api_port = '8000'.*\[DEFAULT\] sets it as well"):
        read(tmp_path, text)


def test_setting_may_be_repeated_with_the_value_of_the_defaults(tmp_path: Path) -> None:
    text = "[DEFAULT]\npycloud.api_port = 9000\n[app:main]\npycloud.api_port = 9000\n"

    assert read(tmp_path, text).api_port == 9000


@pytest.mark.parametrize(
    ("written", "meant"),
    [("%(here)s/var", "{folder}/var"), ("/a%%b", "/a%b"), ("/a%b", "/a%b")],
)
def test_percent_signs_mean_what_they_mean_to_pserve(
    tmp_path: Path, written: str, meant: str
) -> None:
    settings = read(tmp_path, f"[app:main]\npycloud.data_dir = {written}\n")

    assert str(settings.data_dir) == meant.format(folder=tmp_path)


def test_app_under_pserve_is_told_what_pserve_passes_over(tmp_path: Path) -> None:
    path = tmp_path / "cloudlet.ini"
    path.write_text("[DEFAULT]\npycloud.api_port = 9000\n[app:main]\npycloud.api_port = 8000\n")
    as_pserve_gives = {"__file__": str(path), "here": str(tmp_path), "pycloud.api_port": "9000"}

    with pytest.raises(InvalidSettings, match="8000"):
        from_deployment(as_pserve_gives, {}, origin="[app:main]")


def test_app_under_pserve_has_its_own_settings_before_the_defaults() -> None:
    loaded = from_deployment(
        {"pycloud.api_port": "9000", "pycloud.name": "a"},
        {"pycloud.name": "b"},
        origin="[app:main]",
    )

    assert (loaded.settings.api_port, loaded.settings.name) == (9000, "b")


# -- the environment -----------------------------------------------------------------------


def test_environment_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYCLOUD_API_PORT", "8000")

    assert from_mapping({"pycloud.api_port": "9000"}).settings.api_port == 8000


@pytest.mark.parametrize(
    ("variable", "meant"),
    [
        ("PYCLOUD_API_PRT", "PYCLOUD_API_PORT"),
        ("PYCLOUD_DATADIR", "PYCLOUD_DATA_DIR"),
        ("PYCLOUD_TOKN", "PYCLOUD_TOKEN"),
        ("PYCLOUD_api_port", "PYCLOUD_API_PORT"),
    ],
)
def test_misspelt_variable_is_refused_without_its_value(
    monkeypatch: pytest.MonkeyPatch, variable: str, meant: str
) -> None:
    monkeypatch.setenv(variable, "a secret, maybe")

    with pytest.raises(InvalidSettings) as caught:
        load(None)

    assert caught.value.key == variable
    assert f"did you mean {meant}?" in caught.value.message
    assert "secret" not in caught.value.message


def variables_of(command: click.Command) -> Iterator[str]:
    for parameter in command.params:
        if isinstance(parameter.envvar, str):
            yield parameter.envvar
    if isinstance(command, click.Group):
        for child in command.commands.values():
            yield from variables_of(child)


def variables_of_tools() -> Iterator[str]:
    for place in (
        "scripts/setup.sh",
        "scripts/test.sh",
        "testing/cache.py",
        "testing/mongo_server.py",
    ):
        yield from re.findall(r"\bPYCLOUD_[A-Z_]+\b", (ROOT / place).read_text(encoding="utf-8"))


@pytest.mark.parametrize("variable", sorted({*variables_of(cli), *variables_of_tools()}))
def test_variable_with_another_use_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, "something")

    assert load(None).settings == Settings()


# -- values that can be judged by themselves -------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("api_host", "0.0.0.0"),
        ("api_host", "192.0.2.1"),
        ("manager_host", "127.0.0.1"),
        ("publish_bind", "0.0.0.0"),
        ("publish_address", "auto"),
        ("publish_address", "192.0.2.1"),
        ("fqdn", ""),
        ("fqdn", "box"),
        ("fqdn", "box.example.org"),
        ("fqdn", "box.local."),
        ("fqdn", "192.0.2.1"),
        ("fqdn", "3box.example.org"),
        ("discovery_interfaces", ""),
        ("discovery_interfaces", "eth0 wlp2s0 br-lan vlan.7"),
        ("store", "memory:"),
        ("store", "sqlite:///"),
        ("store", "sqlite:////srv/pycloud/store.sqlite3"),
        ("store", "sqlite:///~/store.sqlite3"),
        ("store", "mongodb://localhost"),
        ("store", "mongodb://db.example.org:27017/cloudlet?replicaSet=a"),
        ("store", "mongodb://a.example.org,b.example.org:27018/cloudlet"),
        ("store", "mongodb://user:p%40ss@[2001:db8::1]:27017/cloudlet"),
        ("store", "mongodb://%2Frun%2Fmongodb.sock/cloudlet"),
        ("store", "mongodb+srv://cluster.example.org/cloudlet"),
        ("hypervisor", "fake:"),
        ("hypervisor", "qemu:///session"),
        ("hypervisor", "qemu:///system"),
        ("hypervisor", "qemu+unix:///session?socket=/run/user/7/libvirt-sock"),
        ("hypervisor", "qemu+ssh://somebody@host.example.org/system"),
        ("port_range", "20000-20999"),
        ("data_dir", "~/cloudlet"),
    ],
)
def test_right_value_is_taken(name: str, text: str) -> None:
    from_mapping({f"pycloud.{name}": text})


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("api_host", "999.1.1.1"),
        ("api_host", "1.2.3"),
        ("api_host", "010.0.0.1"),
        ("api_host", "224.0.0.251"),
        ("api_host", "255.255.255.255"),
        ("api_host", "auto"),
        ("manager_host", "127.0.0.256"),
        ("publish_bind", "1.2.3.400"),
        ("publish_address", "999.1.1.1"),
        ("publish_address", "0.0.0.0"),
        ("publish_address", "239.1.2.3"),
        ("fqdn", "999.1.1.1"),
        ("fqdn", "1.2.3"),
        ("fqdn", "a..b"),
        ("fqdn", "."),
        ("fqdn", "-a.example.org"),
        ("fqdn", "a-.example.org"),
        ("fqdn", "a" * 64 + ".example.org"),
        ("fqdn", ".".join(["a" * 63] * 4)),
        ("discovery_interfaces", "eth0,wlan0"),
        ("discovery_interfaces", "eth0 an-interface-name-that-is-too-long"),
        ("store", "sqlite:///store.sqlite3"),
        ("store", "sqlite:///~no-such-user-here/store.sqlite3"),
        ("store", "sqlite://store.sqlite3"),
        ("store", "mongodb:///"),
        ("store", "mongodb:///cloudlet"),
        ("store", "mongodb://host:port/db"),
        ("store", "mongodb://host:70000/db"),
        ("store", "mongodb://host:0/db"),
        ("store", "mongodb://host/a b"),
        ("store", "mongodb://host/a.b"),
        ("store", "mongodb://999.1.1.1/db"),
        ("store", "mongodb://[2001:db8::g]/db"),
        ("store", "mongodb://a,,b/db"),
        ("hypervisor", "qemu:///sesion"),
        ("hypervisor", "qemu://session"),
        ("hypervisor", "qemu://"),
        ("hypervisor", "qemu:/system"),
        ("hypervisor", "xen:///system"),
        ("port_range", "20000"),
        ("port_range", "20999-20000"),
        ("port_range", "1000-2000"),
        ("port_range", "60000-65536"),
        ("data_dir", "relative"),
        ("data_dir", "~no-such-user-here/x"),
    ],
)
def test_wrong_value_is_refused_with_what_is_allowed(name: str, text: str) -> None:
    with pytest.raises(InvalidSettings) as caught:
        from_mapping({f"pycloud.{name}": text})

    assert caught.value.key == f"pycloud.{name}"
    assert caught.value.allowed


@pytest.mark.parametrize("text", ["mongodb://user:se@cret@host/db", "mongo://user:secret@host/db"])
def test_password_is_not_quoted_when_the_value_is_wrong(text: str) -> None:
    with pytest.raises(InvalidSettings) as caught:
        from_mapping({"pycloud.store": text})

    assert "cret" not in caught.value.message
    assert "host/db" in caught.value.message
