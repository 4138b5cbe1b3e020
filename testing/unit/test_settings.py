# SPDX-License-Identifier: Apache-2.0
"""Reading settings: files as pserve reads them, the environment, and what is refused."""

import os
from pathlib import Path

import pytest
from paste.deploy import appconfig

from pycloud.errors import InvalidSettings
from pycloud.settings import Settings, from_deployment, load


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
