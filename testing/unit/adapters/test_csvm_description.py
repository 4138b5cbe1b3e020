# SPDX-License-Identifier: Apache-2.0
"""`service.json`: gaps that old forms left are understood, nonsense is refused."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pycloud.adapters.csvm.description import parse_description
from pycloud.core.model.catalog import Readiness
from pycloud.core.model.identifiers import ServiceId
from pycloud.errors import PackageRefused
from testing.old_packages import OLD_DESCRIPTION


def draft_of(**changes):
    return parse_description(json.dumps(OLD_DESCRIPTION | changes).encode()).draft


@pytest.mark.parametrize(
    ("changes", "field", "expected"),
    [
        ({"port": 80}, "port", 80),
        ({"port": " 80 "}, "port", 80),
        ({"version": None}, "version", "1"),
        ({"version": 2}, "version", "2"),
        ({"description": None}, "description", ""),
        ({"tags": None}, "tags", ()),
        ({"tags": "a, b,,a"}, "tags", ("a", "b")),
        ({"tags": ["a,b", " c "]}, "tags", ("a", "b", "c")),
        ({"num_users": 0}, "sharing_limit", 10_000),
        ({"num_users": None}, "sharing_limit", 1),
        ({"num_users": 5}, "sharing_limit", 5),
        ({"min_memory": "", "ideal_memory": ""}, "min_memory_mib", 128),
        ({"min_memory": "", "ideal_memory": "64"}, "min_memory_mib", 64),
        ({"min_memory": "2048", "ideal_memory": None}, "ideal_memory_mib", 2048),
        ({"min_memory": "2048", "ideal_memory": "512"}, "min_memory_mib", 512),
        ({"unknown": {"a": [1]}}, "port", 10191),
        ({"pycloud": {"unknown": 1}}, "readiness", Readiness.AUTO),
    ],
)
def test_description_is_understood_when_old_forms_left_gaps(changes, field, expected):
    assert getattr(draft_of(**changes), field) == expected


@pytest.mark.parametrize("written", [None, "", "my service", "../etc", ["speech"], "x" * 5000])
def test_id_that_is_not_allowed_here_is_replaced_by_the_one_given(written):
    content = json.dumps(OLD_DESCRIPTION | {"service_id": written}).encode()

    description = parse_description(content, service_id=ServiceId("mine"))

    assert description.draft.id == "mine"


def test_refused_id_says_that_another_one_can_be_given():
    with pytest.raises(PackageRefused, match="--id"):
        draft_of(service_id="my service")


@pytest.mark.parametrize(
    "changes",
    [
        {"service_id": None},
        {"service_id": ""},
        {"service_id": "../etc"},
        {"service_id": ["speech"]},
        {"port": None},
        {"port": 0},
        {"port": 65536},
        {"port": "http"},
        {"port": True},
        {"port": 80.5},
        {"port": "٨٠"},
        {"num_users": -1},
        {"min_memory": 10**9},
        {"ideal_memory": "lots"},
        {"tags": 5},
        {"tags": [5]},
        {"tags": ["x"] * 100},
        {"description": "x" * 5000},
        {"description": "\x00"},
        {"description": "\ud800"},
        {"description": {"a": 1}},
        {"vm_image": None},
        {"vm_image": []},
        {"vm_image": {"disk_image": None}},
        {"vm_image": {"disk_image": 5, "state_image": []}},
        {"pycloud": []},
        {"pycloud": {"readiness": "soon"}},
        {"pycloud": {"vcpus": 100_000}},
    ],
)
def test_description_is_refused_when_a_value_makes_no_sense(changes):
    with pytest.raises(PackageRefused) as refusal:
        draft_of(**changes)

    assert refusal.value.reason == "description"


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b"[" * 60_000, b"\xff", b'{"a":' * 9000]
)
def test_description_is_refused_when_it_is_no_object(content):
    with pytest.raises(PackageRefused):
        parse_description(content)


@settings(max_examples=100, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from([*OLD_DESCRIPTION, "pycloud"]),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(st.sampled_from(["disk_image", "vcpus", "readiness"]), inner)
            ),
            max_leaves=5,
        ),
    )
)
def test_any_description_gives_a_draft_or_a_refusal(changes):
    try:
        draft = draft_of(**changes)
    except PackageRefused:
        return

    assert 1 <= draft.port <= 65535
    assert draft.min_memory_mib <= draft.ideal_memory_mib
