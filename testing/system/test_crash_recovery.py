# SPDX-License-Identifier: Apache-2.0
"""kill -9 of a server in every step of every Job leaves nothing lost and nothing orphaned.

The steps are read from the procedures that are really registered, so that a
new step is tested by being written, and a new JobKind without a scenario fails.
"""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from pycloud.core.jobs import Procedure, Step
from pycloud.core.model.runtime import JobKind, JobState
from pycloud.settings import from_mapping
from pycloud.wiring import build_core
from testing.guest import guest_image
from testing.system.crash.agreement import await_agreement
from testing.system.crash.cloudlets import (
    OPERATOR,
    SERVICE,
    WAIT_S,
    add_request,
    running_core,
    settings_for,
    upload,
)
from testing.system.crash.scenarios import BROKEN, IMAGE, PACKAGE, SCENARIOS

MIDWAY = {
    (JobKind.INSTANCE_START, "boot"),
    (JobKind.INSTANCE_STOP, "destroy"),
    (JobKind.SERVICE_ADD, "normalise"),
    (JobKind.SERVICE_IMPORT, "unpack"),
    (JobKind.SERVICE_PREPARE, "boot"),
    (JobKind.SERVICE_PREPARE, "capture"),
    (JobKind.SERVICE_EXPORT, "save"),
    (JobKind.SERVICE_EXPORT, "pack"),
    (JobKind.SERVICE_REMOVE, "stop"),
    (JobKind.WARM_FILL, "load"),
}
"""Steps whose effect takes long enough to be cut in its middle."""


def _procedures_of_a_server(root: Path) -> Mapping[JobKind, Procedure]:
    core = build_core(
        from_mapping(
            {
                "pycloud.data_dir": str(root),
                "pycloud.store": "memory:",
                "pycloud.hypervisor": "fake:",
                "pycloud.discovery": "off",
            }
        ).settings
    )
    return core.background.runner.procedures


def _moments(procedure: Procedure, step: Step) -> Iterator[str]:
    yield "end"
    if (procedure.kind, step.name) in MIDWAY:
        yield "midway"
    # Its undo comes last, when all the others have been made.
    if step is next((each for each in procedure.steps if each.undo is not None), None):
        yield "undo"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "step" not in metafunc.fixturenames:
        return
    root = Path(metafunc.config.rootpath) / ".pytest_cache" / "procedures"
    procedures = _procedures_of_a_server(root)
    cases = [
        (name, step.name, moment)
        for name, scenario in SCENARIOS.items()
        for step in procedures[scenario.kind].steps
        for moment in _moments(procedures[scenario.kind], step)
    ]
    ids = ["-".join(case).replace(" ", "_") for case in cases]
    metafunc.parametrize(("name", "step", "moment"), cases, ids=ids)


def test_every_job_kind_has_a_crash_scenario(tmp_path: Path) -> None:
    kinds = {scenario.kind for scenario in SCENARIOS.values()}
    assert set(_procedures_of_a_server(tmp_path)) == kinds == set(JobKind)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A data directory with a prepared demo Service, and a folder with files to bring in."""
    data_dir = tmp_path_factory.mktemp("template") / "data"
    files = tmp_path_factory.mktemp("files")
    shutil.copyfile(guest_image(), files / IMAGE)
    with running_core(settings_for(data_dir)) as core:
        job = core.intake.request_add(add_request(upload(core, files / IMAGE)), by=OPERATOR)
        assert core.jobs.wait(job.id, timeout_s=WAIT_S).state is JobState.SUCCEEDED
        job = core.jobs.wait(
            core.templates.request_prepare(SERVICE, by=OPERATOR).id, timeout_s=WAIT_S
        )
        assert job.state is JobState.SUCCEEDED, job.failure
        job = core.jobs.wait(core.exports.request_export(SERVICE, by=OPERATOR).id, timeout_s=WAIT_S)
        assert job.state is JobState.SUCCEEDED, job.failure
        package = core.exports.list_packages().items[0]
        with core.exports.open(package) as stream, (files / PACKAGE).open("wb") as copy:
            shutil.copyfileobj(stream, copy)
        core.exports.remove(package.id)
    return data_dir, files


@pytest.fixture
def data_dir(template: tuple[Path, Path], tmp_path: Path) -> Iterator[Path]:
    """A cloudlet of its own; content is shared by hard links, as it is read-only."""
    copy = tmp_path / "data"
    subprocess.run(
        ["cp", "-a", "--link", "--", str(template[0]), str(copy)], check=True, timeout=60
    )
    for path in (copy).glob("store.sqlite3*"):
        path.unlink()
        shutil.copyfile(template[0] / path.name, path)
    yield copy
    core = build_core(settings_for(copy))
    for domain in core.instances.guests.hypervisor.domains():
        core.instances.guests.hypervisor.destroy(domain.id, domain.owner)
    core.background.stop()


def test_a_killed_server_leaves_nothing_half_done(
    name: str, step: str, moment: str, data_dir: Path, template: tuple[Path, Path]
) -> None:
    scenario = SCENARIOS[name]
    settings = settings_for(data_dir, warm_total=scenario.warm_total)
    if scenario.set_up is not None:
        with running_core(settings) as core:
            scenario.set_up(core)
    earlier = _job_ids(data_dir)

    _kill_a_server(data_dir, template[1], (name, step, moment))

    with running_core(settings) as core:
        await_agreement(core)
        jobs = core.jobs.jobs(limit=500).items
        cut = next(job for job in jobs if job.kind is scenario.kind and job.id not in earlier)
        scenario.judge(core, cut)
        if moment == "undo":
            assert (cut.state, cut.failure.message) == (JobState.FAILED, BROKEN)


def test_conversion_that_a_killed_server_began_goes_on(
    data_dir: Path, template: tuple[Path, Path], tmp_path: Path
) -> None:
    # One MiB a second, so that the tool would go on for half a minute without its server.
    tool = tmp_path / "slow" / "qemu-img"
    tool.parent.mkdir()
    tool.write_text(f'#!/bin/sh\nshift\nexec {shutil.which("qemu-img")} convert -r 1M "$@"\n')
    tool.chmod(0o755)
    slow = {**os.environ, "PATH": f"{tool.parent}:{os.environ['PATH']}"}
    earlier = _job_ids(data_dir)

    cut = ("add", "normalise", "later")
    _kill_a_server(data_dir, template[1], cut, environment=slow)

    with running_core(settings_for(data_dir)) as core:
        await_agreement(core)
        (job,) = [job for job in core.jobs.jobs(limit=500).items if job.id not in earlier]
        SCENARIOS["add"].judge(core, job)


def _kill_a_server(
    data_dir: Path,
    files: Path,
    cut: tuple[str, str, str],
    *,
    environment: Mapping[str, str] | None = None,
) -> None:
    """Let a server run into its death at a moment of a step."""
    victim = subprocess.run(
        [
            sys.executable,
            "-m",
            "testing.system.crash.victim",
            *(str(data_dir), str(files), *cut),
        ],
        timeout=120,
        check=False,
        capture_output=True,
        text=True,
        env=environment,
    )
    assert victim.returncode == -signal.SIGKILL, victim.stderr


def _job_ids(data_dir: Path) -> set[str]:
    core = build_core(settings_for(data_dir))
    return {job.id for job in core.jobs.jobs(limit=500).items}
