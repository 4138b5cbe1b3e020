# SPDX-License-Identifier: Apache-2.0
"""The stop of an Instance: always finished, never undone, whatever was half gone already."""

from dataclasses import dataclass

from pycloud.core.guests import Guests
from pycloud.core.instances.records import InstanceRecords
from pycloud.core.instances.starting import stopped
from pycloud.core.jobs import Lane, Procedure, Recovery, Step, StepContext
from pycloud.core.machines import domain_id_of
from pycloud.core.model.identifiers import InstanceId
from pycloud.core.model.runtime import JobKind


@dataclass(frozen=True, slots=True, kw_only=True)
class Stopping:
    """The procedure of JobKind.INSTANCE_STOP; every step is idempotent."""

    records: InstanceRecords
    guests: Guests

    def procedure(self) -> Procedure:
        """Return the body of the Job."""
        return Procedure(
            kind=JobKind.INSTANCE_STOP,
            lane=Lane.STOPS,
            recovery=Recovery.ROLL_FORWARD,
            steps=(
                Step(name="power_off", run=self._power_off, final=True),
                Step(name="destroy", run=self._destroy),
                Step(name="free", run=self._free),
                Step(name="record", run=self._record),
            ),
        )

    def _power_off(self, context: StepContext) -> None:
        if context.job.arguments.get("mode") == "graceful":
            self.guests.hypervisor.shut_down(
                domain_id_of(_id(context)), timeout_s=self.guests.options.stop_timeout_s
            )

    def _destroy(self, context: StepContext) -> None:
        self.guests.hypervisor.destroy(domain_id_of(_id(context)), _id(context))

    def _free(self, context: StepContext) -> None:
        self.guests.placement.release(_id(context))

    def _record(self, context: StepContext) -> None:
        self.records.change(_id(context), stopped, by=context.job.created_by)


def _id(context: StepContext) -> InstanceId:
    return InstanceId(context.job.arguments["instance_id"])
