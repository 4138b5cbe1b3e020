# SPDX-License-Identifier: Apache-2.0
"""What every repository does: claims by adding, compare-and-swap, and faithful records."""

from dataclasses import replace

import pytest

from pycloud.adapters.store.kinds import KINDS
from pycloud.errors import DuplicateRecord, InvalidInput, NotFound, StaleRecord, StoreUnavailable
from testing.factories import a_job, a_message, a_service, an_instance
from testing.samples import empty, full

REPOSITORIES = {
    "service": "services",
    "service_vm": "service_vms",
    "app": "apps",
    "upload": "uploads",
    "package": "packages",
    "instance": "instances",
    "job": "jobs",
    "port_lease": "port_leases",
    "warm_domain": "warm_domains",
    "host": "hosts",
    "message": "messages",
    "idempotent_reply": "idempotent_replies",
}
BEYOND_64_BITS = 10**30


@pytest.fixture(params=KINDS, ids=lambda kind: kind.name)
def kind(request):
    """Each kind of record."""
    return request.param


@pytest.mark.parametrize("sample", [full, empty])
def test_repository_gives_back_every_field_when_all_or_none_are_set(store, kind, sample):
    repository = getattr(store, REPOSITORIES[kind.name])
    record = replace(sample(kind.record_class), generation=0)

    added = repository.add(record)

    assert added == replace(record, generation=1)
    assert repository.get(record.id) == added
    assert repository.find().items == (added,)


def test_repository_finds_a_record_by_each_of_its_indexed_fields(store, kind):
    repository = getattr(store, REPOSITORIES[kind.name])
    record = repository.add(replace(full(kind.record_class), generation=0))

    for name in kind.indexed:
        value = str(getattr(record, name))
        assert repository.find({name: value}).items == (record,)
        assert repository.count({name: value}) == 1
        assert repository.find({name: "something else"}).items == ()
        assert repository.count({name: "something else"}) == 0
    together = {name: str(getattr(record, name)) for name in kind.indexed}
    assert repository.find(together).items == (record,)


def test_repository_does_not_find_a_record_by_a_field_that_is_not_set(store):
    store.instances.add(an_instance(device_id=None))

    assert store.instances.find({"device_id": ""}).items == ()
    assert store.instances.find({"device_id": "None"}).items == ()


def test_repositories_keep_kinds_apart_when_ids_are_the_same(store):
    store.jobs.add(a_job(id="same"))

    store.instances.add(an_instance(id="same"))

    assert store.jobs.get("same").id == store.instances.get("same").id


# -- writing ----------------------------------------------------------------------


@pytest.mark.parametrize("generation", [0, 7, 2**48])
def test_add_counts_on_from_the_generation_that_the_record_says(store, generation):
    added = store.services.add(a_service(generation=generation))

    assert added.generation == generation + 1
    assert store.services.get(added.id).generation == generation + 1


def test_add_raises_duplicate_record_when_the_id_is_taken(store):
    first = store.services.add(a_service(port=80))

    with pytest.raises(DuplicateRecord) as caught:
        store.services.add(a_service(port=81))

    assert (caught.value.kind, caught.value.identifier) == ("service", first.id)
    assert store.services.get(first.id) == first


def test_add_succeeds_again_when_the_record_was_removed(store):
    added = store.services.add(a_service())
    store.services.remove(added.id)

    assert store.services.add(a_service(port=81)).generation == 1


def test_add_tells_ids_apart_that_differ_in_case_only(store):
    store.messages.add(a_message(id="a"))
    store.messages.add(a_message(id="A"))

    assert store.messages.count() == 2


def test_add_refuses_text_that_is_not_unicode(store):
    with pytest.raises(InvalidInput):
        store.messages.add(a_message(params={"name": "\ud800"}))

    assert store.messages.count() == 0


def test_replace_raises_the_generation_when_nobody_was_faster(store):
    added = store.services.add(a_service(port=80))

    replaced = store.services.replace(replace(added, port=81))

    assert replaced == replace(added, port=81, generation=2)
    assert store.services.get(added.id) == replaced


def test_replace_raises_stale_record_when_somebody_was_faster(store):
    added = store.services.add(a_service(port=80))
    faster = store.services.replace(replace(added, port=81))

    with pytest.raises(StaleRecord) as caught:
        store.services.replace(replace(added, port=82))

    assert (caught.value.kind, caught.value.identifier) == ("service", added.id)
    assert store.services.get(added.id) == faster


@pytest.mark.parametrize("generation", [0, 2])
def test_replace_raises_stale_record_when_the_generation_never_was(store, generation):
    added = store.services.add(a_service())

    with pytest.raises(StaleRecord):
        store.services.replace(replace(added, generation=generation))


def test_replace_raises_not_found_when_the_record_is_gone(store):
    added = store.services.add(a_service())
    store.services.remove(added.id)

    with pytest.raises(NotFound):
        store.services.replace(added)


def test_replace_moves_a_record_to_its_new_place_in_the_indices(store):
    added = store.instances.add(an_instance(state="requested"))

    replaced = store.instances.replace(replace(added, state="starting"))

    assert store.instances.find({"state": "requested"}).items == ()
    assert store.instances.find({"state": "starting"}).items == (replaced,)


def test_remove_makes_the_record_unknown(store):
    added = store.services.add(a_service())

    store.services.remove(added.id)

    with pytest.raises(NotFound):
        store.services.get(added.id)
    assert store.services.find().items == ()


def test_remove_does_nothing_when_the_record_is_gone(store):
    store.services.remove("never-was")

    assert store.services.count() == 0


def test_remove_takes_the_record_when_the_generation_is_right(store):
    added = store.services.add(a_service())

    store.services.remove(added.id, generation=1)

    assert store.services.count() == 0


@pytest.mark.parametrize("generation", [0, 2, BEYOND_64_BITS, -BEYOND_64_BITS])
def test_remove_raises_stale_record_when_the_generation_differs(store, generation):
    added = store.services.add(a_service())

    with pytest.raises(StaleRecord):
        store.services.remove(added.id, generation=generation)

    assert store.services.get(added.id) == added


@pytest.mark.parametrize("generation", [1, BEYOND_64_BITS])
def test_remove_raises_not_found_when_a_generation_is_given_and_the_record_is_gone(
    store, generation
):
    with pytest.raises(NotFound):
        store.services.remove("never-was", generation=generation)


# -- reading ----------------------------------------------------------------------


@pytest.mark.parametrize("record_id", ["never-was", "", "a\x00b", "'; DROP TABLE service; --"])
def test_get_raises_not_found_when_nothing_has_this_id(store, record_id):
    with pytest.raises(NotFound) as caught:
        store.services.get(record_id)

    assert (caught.value.kind, caught.value.identifier) == ("service", record_id)


@pytest.mark.parametrize(
    "call",
    [
        lambda services: services.get("\ud800"),
        lambda services: services.remove("\ud800"),
        lambda services: services.remove("\ud800", generation=1),
    ],
)
def test_repository_refuses_an_id_that_is_not_unicode(store, call):
    with pytest.raises(InvalidInput):
        call(store.services)


def test_record_in_the_store_does_not_change_with_the_callers_mapping(store):
    arguments = {"service_id": "a"}
    added = store.jobs.add(a_job(arguments=arguments))

    arguments["service_id"] = "b"

    assert store.jobs.get(added.id).arguments == {"service_id": "a"}


def test_count_counts_all_or_those_that_match(store):
    for state in ("requested", "running", "running"):
        store.instances.add(an_instance(state=state))

    assert store.instances.count() == 3
    assert store.instances.count({"state": "running"}) == 2
    assert store.instances.count({"state": "running", "owner": "nobody"}) == 0


# -- revisions ----------------------------------------------------------------------


def test_revision_stays_when_nothing_is_written(store):
    store.services.add(a_service())
    before = store.services.revision()

    store.services.get("histogram")
    store.services.find()
    store.jobs.add(a_job())

    assert store.services.revision() == before


def test_revision_differs_after_every_write(store):
    seen = [store.services.revision()]
    added = store.services.add(a_service())
    seen.append(store.services.revision())
    store.services.replace(added)
    seen.append(store.services.revision())
    store.services.remove(added.id)
    seen.append(store.services.revision())

    assert len(set(seen)) == 4


def test_revision_is_a_double_exactly_so_that_clients_can_compare_it(store):
    store.services.add(a_service())

    revision = store.services.revision()

    assert 0 <= revision < 2**53


# -- the store ------------------------------------------------------------------------


def test_ping_returns_when_the_store_is_open(store):
    store.ping()


def test_close_may_be_called_twice(store):
    store.close()
    store.close()


@pytest.mark.parametrize(
    "call",
    [
        lambda store: store.ping(),
        lambda store: store.services.get("a"),
        lambda store: store.services.add(a_service()),
        lambda store: store.services.find(),
        lambda store: store.services.count(),
        lambda store: store.services.revision(),
        lambda store: store.services.remove("a"),
        lambda store: store.events.latest(),
        lambda store: store.events.trim(keep=1),
    ],
)
def test_store_says_that_it_is_unavailable_when_it_was_closed(store, call):
    store.close()

    with pytest.raises(StoreUnavailable):
        call(store)
