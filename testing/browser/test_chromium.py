# SPDX-License-Identifier: Apache-2.0
"""Which Chromium the tests take, shown with stand-ins."""

from pathlib import Path

import pytest

from testing.browser.chromium import find_chromium

WRAPPER_WITHOUT_SNAP = "echo requires the chromium snap to be installed >&2; exit 1"


def put_program(path: Path, body: str) -> str:
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return str(path)


def test_chromium_is_taken_from_the_snap_when_the_wrapper_does_not_work(tmp_path: Path) -> None:
    wrapper = put_program(tmp_path / "chromium-browser", WRAPPER_WITHOUT_SNAP)
    snap = put_program(tmp_path / "chromium", '[ "$1" = --version ] && echo Chromium 1')

    assert find_chromium([str(tmp_path / "absent"), wrapper, snap]) == snap


@pytest.mark.parametrize("there", [True, False])
def test_chromium_that_is_missing_is_explained(tmp_path: Path, there: bool) -> None:
    wrapper = tmp_path / "chromium-browser"
    if there:
        put_program(wrapper, WRAPPER_WITHOUT_SNAP)

    with pytest.raises(AssertionError, match="snapd has to run") as raised:
        find_chromium([str(wrapper)])

    assert (str(wrapper) in str(raised.value)) is there
