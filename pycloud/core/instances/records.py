# SPDX-License-Identifier: Apache-2.0
"""Changes of Instance records: by compare-and-swap, through the state table, with an event."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from pycloud.core.model.identifiers import InstanceId, Principal
from pycloud.core.model.runtime import Event, Instance, InstanceState
from pycloud.core.ports import Clock, Store
from pycloud.errors import StaleRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceRecords:
    """The records of all Instances. Safe to use from several threads and servers."""

    store: Store
    clock: Clock

    def get(self, instance_id: InstanceId) -> Instance:
        """Return an Instance. Raises NotFound."""
        return self.store.instances.get(instance_id)

    def change(
        self, instance_id: InstanceId, change: Callable[[Instance], Instance], *, by: Principal
    ) -> Instance:
        """Apply `change` to the newest record until nobody else was faster.

        A change of state has to be in the table and is recorded as an event. Raises
        NotFound, IllegalTransition and whatever `change` raises.
        """
        while True:
            before = self.get(instance_id)
            after = change(before)
            if after == before:
                return before
            if after.state is not before.state:
                before.check_transition(after.state)
            try:
                stored = self.store.instances.replace(replace(after, updated_at=self.clock.now()))
            except StaleRecord:
                continue
            if stored.state is not before.state:
                self.record(stored, by=by)
            return stored

    def move(self, instance_id: InstanceId, state: InstanceState, *, by: Principal) -> Instance:
        """Go to `state`; nothing happens if it is there already. Raises IllegalTransition."""
        return self.change(instance_id, lambda found: replace(found, state=state), by=by)

    def record(self, instance: Instance, *, by: Principal) -> None:
        """Append an event that says in which state the Instance is now."""
        data = {"state": str(instance.state), "service_id": str(instance.service_id)}
        if instance.failure is not None:
            data |= {"code": instance.failure.code, "message": instance.failure.message}
        self.store.events.append(
            Event(
                time=self.clock.now(),
                kind="instance",
                action=str(instance.state),
                resource=f"instance/{instance.id}",
                actor=by,
                data=data,
            )
        )
