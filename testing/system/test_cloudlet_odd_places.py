# SPDX-License-Identifier: Apache-2.0
"""A cloudlet whose data directory has a name that programs like to take for something else."""

from pathlib import Path

from testing.guest import guest_image
from testing.system.callers import Operator, require_right_checksums
from testing.system.cloudlet import running_server

CONTENT = b"found anyway\n" * 100
NAME = "a, b=c 'd' \"e\" <f> & %g é"


def test_guests_start_cold_and_from_memory_whatever_the_directory_is_called(
    tmp_path: Path,
) -> None:
    with running_server(tmp_path, {"data_dir": str(tmp_path / NAME)}) as server:
        operator = Operator(server.url, server.token)
        operator.add_service("demo", guest_image())
        cold = operator.start("demo")
        require_right_checksums(cold["port"], CONTENT)
        assert operator.call("GET", f"/instances/{cold['id']}/serial").text.strip()

        operator.done(operator.call("POST", "/services/demo/prepare"))
        quick = operator.start("demo")
        require_right_checksums(quick["port"], CONTENT)
        assert [cold["start_method"], quick["start_method"]] == ["cold", "clone"]
        operator.stop_all()
        server.require_agreement()
