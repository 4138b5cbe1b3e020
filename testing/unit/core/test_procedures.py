# SPDX-License-Identifier: Apache-2.0
"""Every long operation there is, held against the rules for writing one."""

import pytest

from pycloud.core.jobs import Recovery
from pycloud.core.model.runtime import JobKind
from testing.composed import a_core

PROCEDURES = a_core().core.background.runner.procedures
WITHOUT_EFFECT = {
    "ready": "waits for an answer",
    "rehearse": "the domain that answers is the one that `load` undoes",
    "capture": "its one record is written last, and the memory in it is whole by then",
    "save": "ends the domain that `boot` undoes; its files lie in the Job's staging area",
    "pack": "writes into the Job's staging area",
}
"""Steps of procedures that are rolled back which need no undo of their own, and why."""


def rolled_back():
    return [
        (kind, step)
        for kind, procedure in PROCEDURES.items()
        if procedure.recovery is Recovery.ROLL_BACK
        for step in procedure.steps
    ]


def test_every_kind_of_job_has_a_procedure():
    assert set(PROCEDURES) == set(JobKind)


@pytest.mark.parametrize("kind", JobKind)
def test_procedure_is_registered_under_its_own_kind(kind):
    assert PROCEDURES[kind].kind is kind


@pytest.mark.parametrize("kind", JobKind)
def test_steps_have_unique_names(kind):
    names = [step.name for step in PROCEDURES[kind].steps]

    assert len(set(names)) == len(names)


@pytest.mark.parametrize("kind", JobKind)
def test_procedure_says_from_where_on_it_cannot_be_cancelled(kind):
    assert any(step.final for step in PROCEDURES[kind].steps)


@pytest.mark.parametrize(
    ("kind", "step"), rolled_back(), ids=lambda value: getattr(value, "name", value)
)
def test_step_that_is_rolled_back_has_an_undo(kind, step):
    assert step.undo is not None or step.final or step.name in WITHOUT_EFFECT


def test_second_procedure_of_a_kind_is_refused():
    runner = a_core().core.background.runner

    with pytest.raises(ValueError, match=r"instance\.start"):
        runner.register([PROCEDURES[JobKind.INSTANCE_START]])
