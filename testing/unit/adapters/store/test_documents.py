# SPDX-License-Identifier: Apache-2.0
"""Records survive the way into a JSON document and back; nothing else passes for one."""

import json
import math
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pycloud.adapters.store.documents import checked_text, clamped, codec_for
from pycloud.adapters.store.kinds import KINDS
from pycloud.core.model.runtime import Event, Instance, InstanceState, Job, Message, Phase
from pycloud.errors import InvalidInput, StoreError
from testing.factories import A_MOMENT, a_job, a_message, an_event, an_instance
from testing.samples import drawn, empty, full

STORED_CLASSES = [*(kind.record_class for kind in KINDS), Event]
LONE_SURROGATE = "\ud800"


@pytest.mark.parametrize("record_class", STORED_CLASSES)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_codec_gives_every_record_back_when_it_went_through_json(record_class, data):
    record = data.draw(drawn(record_class))
    codec = codec_for(record_class)

    document = json.loads(json.dumps(codec.encode(record), allow_nan=False))

    assert codec.decode(document) == record


@pytest.mark.parametrize("sample", [full, empty])
@pytest.mark.parametrize("record_class", STORED_CLASSES)
def test_codec_gives_back_optional_fields_when_all_or_none_are_set(record_class, sample):
    record = sample(record_class)
    codec = codec_for(record_class)

    assert codec.decode(json.loads(json.dumps(codec.encode(record)))) == record


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_encoded_times_sort_as_the_times_do_when_zones_differ(data):
    earlier, later = sorted(
        (data.draw(drawn(Event)) for _ in range(2)), key=lambda event: event.time
    )
    encode = codec_for(Event).encode

    assert encode(earlier)["time"] <= encode(later)["time"]


def test_encode_writes_a_time_in_utc_with_microseconds_when_it_has_another_zone():
    time = datetime(2024, 5, 17, 14, 30, tzinfo=timezone(timedelta(hours=2)))

    assert codec_for(Event).encode(an_event(time=time))["time"] == "2024-05-17T12:30:00.000000Z"


def test_encode_writes_plain_values_when_fields_have_types_of_their_own():
    document = codec_for(Instance).encode(an_instance(state=InstanceState.RUNNING))

    assert type(document["state"]) is str
    assert document["state"] == "running"


def test_encode_writes_mappings_as_pairs_when_keys_are_awkward():
    document = codec_for(Message).encode(a_message(params={"$a.b\x00": "1"}))

    assert document["params"] == [["$a.b\x00", "1"]]


def test_decoded_mapping_is_not_shared_with_the_document_it_came_from():
    codec = codec_for(Message)
    params = {"a": "1"}
    document = codec.encode(a_message(params=params))

    params["a"] = "2"

    assert codec.decode(document).params == {"a": "1"}


@pytest.mark.parametrize(
    ("record", "pointer"),
    [
        (a_message(message=LONE_SURROGATE), "/message"),
        (a_message(params={LONE_SURROGATE: ""}), "/params"),
        (a_message(params={"": LONE_SURROGATE}), "/params"),
        (an_instance(users=2**63), "/users"),
        (an_instance(users=-(2**63) - 1), "/users"),
        (an_instance(users=True), "/users"),
        (an_instance(users="1"), "/users"),
        (an_instance(address=7), "/address"),
        (an_instance(state="sleeping"), "/state"),
        (an_event(time=A_MOMENT.replace(tzinfo=None)), "/time"),
        (a_job(may_cancel=1), "/may_cancel"),
        (a_job(arguments=[("a", "b")]), "/arguments"),
        (
            an_instance(
                timeline=(
                    Phase(name="a", begin_ms=0, duration_ms=1),
                    Phase(name="b", begin_ms=0, duration_ms=math.nan),
                )
            ),
            "/timeline/1/duration_ms",
        ),
        (
            an_instance(timeline=(Phase(name="a", begin_ms=math.inf, duration_ms=1),)),
            "/timeline/0/begin_ms",
        ),
        (
            an_instance(timeline=(Phase(name="a", begin_ms="0", duration_ms=1),)),
            "/timeline/0/begin_ms",
        ),
    ],
)
def test_encode_refuses_a_value_when_no_store_could_hold_it(record, pointer):
    with pytest.raises(InvalidInput) as caught:
        codec_for(type(record)).encode(record)

    assert caught.value.pointer == pointer


def _changed(**changes: Any) -> dict[str, Any]:
    return {**codec_for(Job).encode(a_job()), **changes}


@pytest.mark.parametrize(
    ("document", "complaint"),
    [
        (_changed(shoe_size=43), "unknown field 'shoe_size'"),
        (_changed(progress={"done": 1, "speed": 2}), "/progress: unknown field 'speed'"),
        (_changed(id=7), "/id: text"),
        (_changed(state="dozing"), "/state: one of queued"),
        (_changed(state=["queued"]), "/state: one of queued"),
        (_changed(attempts="3"), "/attempts: a whole number"),
        (_changed(attempts=True), "/attempts: a whole number"),
        (_changed(may_cancel=1), "/may_cancel: true or false"),
        (_changed(created_at="yesterday"), "/created_at: an RFC 3339 time"),
        (_changed(created_at=None), "/created_at: an RFC 3339 time"),
        (_changed(created_at="2024-05-17T12:00:00"), "/created_at: a time with a time zone"),
        (_changed(arguments={"a": "b"}), "/arguments: a list of pairs"),
        (_changed(arguments=[["a", 1]]), "/arguments: text"),
        (_changed(arguments=None), "/arguments: a list of pairs"),
        (_changed(resources="service/a"), "/resources: a list"),
        (_changed(resources=["a", 7]), "/resources/1: text"),
        (_changed(failure=[]), "/failure: an object"),
        (_changed(failure={"code": "x"}), "/failure: a field is missing"),
        ({"id": "job"}, "/: a field is missing"),
        ([], "/: an object"),
    ],
)
def test_decode_says_where_and_what_when_a_document_does_not_fit(document, complaint):
    with pytest.raises(StoreError) as caught:
        codec_for(Job).decode(document)

    assert complaint in caught.value.message


def test_decode_takes_the_default_when_an_older_document_lacks_the_field():
    codec = codec_for(Job)
    document = codec.encode(a_job(id="job", attempts=3))
    del document["attempts"]

    assert codec.decode(document) == a_job(id="job", attempts=0)


def test_decode_takes_a_whole_number_when_a_float_is_expected():
    codec = codec_for(Phase)

    phase = codec.decode({"name": "boot", "begin_ms": 0, "duration_ms": 2})

    assert type(phase.duration_ms) is float


@pytest.mark.parametrize(
    "hint",
    [bytes, int | str, int | str | None, tuple[int, str], dict[str, int], list[str], set[str]],
)
def test_codec_refuses_to_be_compiled_when_a_type_has_no_document_form(hint):
    fresh = dataclass(frozen=True)(type("Fresh", (), {"__annotations__": {"field": hint}}))

    with pytest.raises(TypeError):
        codec_for(fresh)


def test_codec_refuses_to_be_compiled_when_the_class_is_no_dataclass():
    with pytest.raises(TypeError):
        codec_for(int)


def test_checked_text_names_the_parameter_when_text_is_not_unicode():
    with pytest.raises(InvalidInput) as caught:
        checked_text(LONE_SURROGATE, pointer="device_id")

    assert caught.value.pointer == "device_id"


@pytest.mark.parametrize(
    ("given_value", "expected"),
    [(5, 5), (2**70, 2**63 - 1), (-(2**70), -(2**63))],
)
def test_clamped_stays_within_64_bits_when_clients_send_more(given_value, expected):
    assert clamped(given_value) == expected
