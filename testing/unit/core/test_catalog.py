# SPDX-License-Identifier: Apache-2.0
"""The catalogue: only Services that make sense, changed by one at a time."""

from dataclasses import replace
from functools import partial

import pytest

from pycloud.core.access import ADMIN
from pycloud.core.catalog import ServiceChanges
from pycloud.core.drafts import draft_from_text, draft_of, draft_to_text
from pycloud.core.model.catalog import OsType, Readiness
from pycloud.core.model.identifiers import ServiceId
from pycloud.errors import DuplicateRecord, InvalidInput, NotFound, StaleRecord
from testing.factories import HISTOGRAM, a_service, a_service_draft, a_service_vm
from testing.unit.core.races import at_once


def update(composed, generation=None, **changes):
    return composed.core.catalog.update_service(
        HISTOGRAM, ServiceChanges(**changes), generation=generation, by=ADMIN
    )


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("port", 0),
        ("port", 65536),
        ("sharing_limit", 0),
        ("vcpus", 0),
        ("min_memory_mib", 8),
        ("ideal_memory_mib", 64),
        ("warm_count", -1),
        ("idle_timeout_s", -1),
        ("max_lifetime_s", 10**9),
        ("version", "a\x00"),
        ("description", "x" * 5000),
        ("tags", ("a,b",)),
        ("tags", ("t",) * 65),
    ],
)
def test_values_that_make_no_sense_are_refused_by_name(cold, field, value):
    draft = a_service_draft(id=ServiceId("new"))

    with pytest.raises(InvalidInput) as caught:
        cold.core.catalog.check_draft(replace(draft, **{field: value}))

    assert caught.value.pointer == f"/{field}"


@pytest.mark.parametrize(
    "changes",
    [{"ideal_memory_mib": 512}, {"vcpus": 2}, {"os_type": OsType.WINDOWS}],
)
def test_change_of_the_machine_drops_the_memory_state(instant, changes):
    update(instant, **changes)

    assert instant.core.catalog.startable(HISTOGRAM)[1].memory is None


def test_change_of_words_keeps_the_memory_state(instant):
    service = update(instant, description="new", tags=("a",))

    assert (service.description, service.tags) == ("new", ("a",))
    assert instant.core.catalog.startable(HISTOGRAM)[1].memory is not None


@pytest.mark.parametrize("field", ["warm_count", "idle_timeout_s", "max_lifetime_s"])
def test_field_is_left_to_the_settings_again_when_it_is_changed_to_none(cold, field):
    update(cold, **{field: 7})

    service = update(cold, **{field: None})

    assert getattr(service, field) is None


def test_field_that_is_not_named_stays_as_it_was(cold):
    update(cold, warm_count=7, idle_timeout_s=60)

    service = update(cold, warm_count=None)

    assert (service.warm_count, service.idle_timeout_s) == (None, 60)


def test_late_change_is_refused(cold):
    generation = cold.core.catalog.service(HISTOGRAM).generation
    update(cold, generation, description="first")

    with pytest.raises(StaleRecord):
        update(cold, generation, description="second")


def test_changes_without_condition_are_all_made_when_they_race(cold):
    results = at_once(
        [partial(update, cold, version="2"), partial(update, cold, description="new")] * 4
    )

    service = cold.core.catalog.service(HISTOGRAM)
    assert not any(isinstance(result, Exception) for result in results)
    assert (service.version, service.description) == ("2", "new")


def test_change_that_makes_no_sense_changes_nothing(cold):
    before = cold.core.catalog.service(HISTOGRAM)

    with pytest.raises(InvalidInput):
        update(cold, port=0)

    assert cold.core.catalog.service(HISTOGRAM) == before


def test_change_of_what_is_not_there_is_refused(cold):
    cold.store.services.remove(HISTOGRAM)

    with pytest.raises(NotFound):
        update(cold, description="new")


def test_service_is_published_once_when_two_race(cold):
    catalog = cold.core.catalog
    draft = a_service_draft(id=ServiceId("new"))

    results = at_once(
        [
            partial(catalog.publish, draft, a_service_vm(id=f"vm{n}", service_id="new"), by=ADMIN)
            for n in range(6)
        ]
    )

    winner = catalog.service(ServiceId("new")).service_vm_id
    assert sum(isinstance(result, DuplicateRecord) for result in results) == 5
    assert [one.id for one in catalog.service_vms(ServiceId("new")).items] == [winner]


def test_unpublishing_spares_a_service_with_another_vm(cold):
    cold.core.catalog.unpublish(HISTOGRAM, "another")

    assert cold.core.catalog.startable(HISTOGRAM)


def test_every_service_is_seen_beyond_a_page(cold):
    for number in range(501):
        cold.store.services.add(a_service(id=ServiceId(f"s{number}")))

    assert sum(1 for _ in cold.core.catalog.all_services()) == 502


def test_revision_changes_with_the_services(cold):
    before = cold.core.catalog.revision()

    update(cold, description="new")

    assert cold.core.catalog.revision() != before


def test_draft_survives_being_text():
    draft = a_service_draft(
        tags=("a", "b"), os_type=OsType.WINDOWS, readiness=Readiness.TCP, warm_count=0
    )

    assert draft_from_text(draft_to_text(draft)) == draft


def test_draft_of_a_service_makes_it_again(cold):
    service = cold.core.catalog.service(HISTOGRAM)

    assert draft_of(service) == a_service_draft()
