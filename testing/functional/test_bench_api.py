# SPDX-License-Identifier: Apache-2.0
"""The measurement of the API: it compares the same bytes, and both sides in the same way."""

from contextlib import ExitStack

import pytest

from testing.bench import api
from testing.bench.table import ratios

PACE = api.Pace(seconds=0.1, rounds=2)


@pytest.fixture(scope="module")
def ports(tmp_path_factory):
    """Our server and the bare one."""
    with ExitStack() as stack:
        yield api.both_sides(stack, tmp_path_factory.mktemp("bench"))


@pytest.mark.parametrize("path", [path for path, _ in api.PATHS])
def test_both_sides_answer_with_the_same_bytes(ports, path):
    ours, bare = (api.fetch(port, path) for port in ports)

    assert ours
    assert ours == bare


@pytest.mark.parametrize("keeps_alive", [True, False])
def test_both_sides_answer_under_load(ports, keeps_alive):
    load = api.Load(clients=4, keeps_alive=keeps_alive)

    pairs = api.in_pairs(ports, api.PATHS[0][0], load, PACE)

    assert len(pairs) == PACE.rounds
    assert all(one.requests_per_s > 0 for pair in pairs for one in pair)


def test_each_side_is_first_in_every_other_pair(monkeypatch):
    asked = []

    class StandIn:
        def __init__(self, port, _path, _load):
            self._port = port

        def run(self, _seconds):
            asked.append(self._port)
            return api.Measured(self._port, 0.0)

    monkeypatch.setattr(api, "Loader", StandIn)
    load = api.Load(clients=1, keeps_alive=True)

    pairs = api.in_pairs((1, 2), "/", load, api.Pace(seconds=1.0, rounds=3))

    assert asked == [1, 2, 2, 1, 1, 2]
    assert [(ours.requests_per_s, bare.requests_per_s) for ours, bare in pairs] == [(1, 2)] * 3


def test_a_ratio_tells_where_the_middle_half_of_the_rounds_lies():
    assert ratios([0.5, 0.6, 0.7, 0.8, 2.0]) == "0.70 (0.60-0.80)"
    assert ratios([0.7]) == "0.70"
