# SPDX-License-Identifier: Apache-2.0
"""Notes for devices, each delivered exactly once."""

from uuid import uuid4

from pycloud.core.model.identifiers import DeviceId, ServiceId
from pycloud.core.model.runtime import Message
from pycloud.core.ports import Clock, Store
from pycloud.errors import NotFound, StaleRecord

_MOST_REMEMBERED = 10_000


class Mailbox:
    """Messages waiting for devices. Safe to use from several threads and servers."""

    def __init__(self, *, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        # Phones ask every few seconds and there is hardly ever anything, so an empty
        # box is remembered under the revision that was read before it was seen empty.
        self._empty: dict[tuple[DeviceId, ServiceId], int] = {}

    def put(
        self, device_id: DeviceId, service_id: ServiceId, message: str, params: dict[str, str]
    ) -> Message:
        """Leave a message for one device about one Service."""
        return self._store.messages.add(
            Message(
                id=uuid4().hex,
                device_id=device_id,
                service_id=service_id,
                message=message,
                params=params,
                created_at=self._clock.now(),
            )
        )

    def take(self, device_id: DeviceId, service_id: ServiceId) -> tuple[Message, ...]:
        """Hand out what waits, oldest first; nobody is given the same message again."""
        revision = self._store.messages.revision()
        if self._empty.get((device_id, service_id)) == revision:
            return ()
        waiting = self._store.messages.find({"device_id": device_id, "service_id": service_id})
        if not waiting.items:
            self._remember_empty((device_id, service_id), revision)
        return tuple(message for message in waiting.items if self._claim(message))

    def _remember_empty(self, box: tuple[DeviceId, ServiceId], revision: int) -> None:
        if len(self._empty) >= _MOST_REMEMBERED:
            self._empty.clear()
        self._empty[box] = revision

    def _claim(self, message: Message) -> bool:
        try:
            self._store.messages.remove(message.id, generation=message.generation)
        except (NotFound, StaleRecord):
            return False
        return True
