# SPDX-License-Identifier: Apache-2.0
"""Two cloudlets on two machines joined by a cable, with the settings an operator would have."""

import pytest

from testing.system.network_segment import agent, segment


@pytest.fixture
def machines():
    with segment() as made:
        yield made


def is_well(problem):
    return problem is None


def sees(name):
    return lambda peers: any(peer["name"] == name for peer in peers)


def sees_not(name):
    return lambda peers: not sees(name)(peers)


def test_cloudlets_see_each_other_when_a_cable_joins_them(machines):
    machines.plug_in()
    with agent(machines.left, "left") as left, agent(machines.right, "right") as right:
        left.until("peers", sees("right"))
        right.until("peers", sees("left"))
        left.ask("load 55 speech")
        right.until("peers", lambda peers: peers[0]["services"] == ["speech"])

        (peer,) = right.ask("peers")

    assert peer["addresses"] == ["10.77.0.1"]
    assert (peer["port"], peer["api_version"], peer["load_percent"]) == (9999, "2", 55)


def whereabouts(peers):
    return {(peer["name"], *peer["addresses"]) for peer in peers}


def test_stranger_finds_both_when_it_looks_around(machines):
    both = {("left", "10.77.0.1"), ("right", "10.77.0.2")}
    machines.plug_in()
    with agent(machines.left, "left") as left, agent(machines.right, "right") as right:
        left.until("problem", is_well)

        right.until("find", lambda found: whereabouts(found) == both)


def test_cloudlets_see_each_other_when_the_cable_comes_after_the_start(machines):
    with agent(machines.left, "left") as left, agent(machines.right, "right") as right:
        left.until("problem", is_well)
        right.until("problem", is_well)

        machines.plug_in()

        (peer,) = left.until("peers", sees("right"))
        right.until("peers", sees("left"))
    assert peer["addresses"] == ["10.77.0.2"]


def test_new_cloudlet_is_seen_when_the_link_was_down_and_came_up(machines):
    machines.plug_in()
    with agent(machines.left, "left") as left:
        with agent(machines.right, "right") as right:
            left.until("peers", sees("right"))
            right.until("peers", sees("left"))
        left.until("peers", sees_not("right"))
        machines.right.run("ip", "link", "set", "cable", "down")
        with agent(machines.right, "other") as other:
            other.until("problem", is_well)

            machines.right.run("ip", "link", "set", "cable", "up")

            left.until("peers", sees("other"))
            other.until("peers", sees("left"))


def test_cloudlets_report_the_conflict_when_a_cable_joins_two_of_one_name(machines):
    with (
        agent(machines.left, "twin") as left,
        agent(machines.right, "twin", "data_dir=/nonexistent/other") as right,
    ):
        left.until("problem", is_well)
        right.until("problem", is_well)

        machines.plug_in()

        left.until("problem", lambda problem: problem is not None and "twin" in problem)
        right.until("problem", lambda problem: problem is not None and "twin" in problem)


def test_missing_interface_is_named_when_the_settings_ask_for_it(machines):
    with agent(machines.left, "left", "discovery_interfaces=cable") as left:
        left.until("problem", lambda problem: problem is not None and "cable" in problem)

        machines.plug_in()

        left.until("problem", is_well)
