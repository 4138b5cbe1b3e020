# SPDX-License-Identifier: Apache-2.0
"""How long a Job still takes, as far as that can be known."""

from datetime import timedelta

import pytest

from pycloud.core.model.runtime import JobState, Progress
from testing.factories import A_MOMENT, a_job

RUNNING, QUEUED, SUCCEEDED = JobState.RUNNING, JobState.QUEUED, JobState.SUCCEEDED


@pytest.mark.parametrize(
    ("state", "done", "total", "passed_s", "left_s"),
    [
        (RUNNING, 25, 100, 10, 30),
        (RUNNING, 1, 3, 1, 2),
        (RUNNING, 99, 100, 10, 1),
        (RUNNING, 100, 100, 10, 0),
        (RUNNING, 0, 100, 10, None),
        (RUNNING, 7, 0, 10, None),
        (RUNNING, 101, 100, 10, None),
        (RUNNING, 25, 100, -10, 0),
        (QUEUED, 25, 100, 10, None),
        (SUCCEEDED, 25, 100, 10, None),
    ],
)
def test_left_is_estimated_from_progress_and_running_time(
    state: JobState, done: int, total: int, passed_s: int, left_s: int | None
) -> None:
    progress = Progress(done=done, total=total, unit="bytes")
    job = a_job(state=state, progress=progress, started_at=A_MOMENT)
    assert job.left_s(A_MOMENT + timedelta(seconds=passed_s)) == left_s


def test_left_is_unknown_before_the_job_has_begun() -> None:
    job = a_job(state=RUNNING, progress=Progress(done=1, total=2), started_at=None)
    assert job.left_s(A_MOMENT) is None
