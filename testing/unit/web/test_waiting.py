# SPDX-License-Identifier: Apache-2.0
"""The room for requests that wait is bounded and tells how many are in it."""

from pycloud.web.waiting import WaitRoom


def test_room_is_bounded_and_places_come_back() -> None:
    told: list[int] = []
    room = WaitRoom(places=1, on_change=told.append)
    with room.place() as first, room.place() as second:
        pass
    with room.place() as third:
        pass
    assert (first, second, third) == (True, False, True)
    assert told == [1, 0, 1, 0]


def test_room_that_closes_lets_nobody_in() -> None:
    room = WaitRoom(places=5)
    room.close()
    with room.place() as taken:
        assert not taken
    assert room.closing
