# SPDX-License-Identifier: Apache-2.0
"""The app store: what goes in is an APK, what comes out is what a client can use."""

import hashlib
import random
import zipfile
from dataclasses import replace
from io import BytesIO

import pytest

from pycloud.core.access import ADMIN
from pycloud.core.apps import AppChanges, AppDraft, AppFilter
from pycloud.errors import (
    Conflict,
    InvalidInput,
    NotFound,
    PackageRefused,
    QuotaExceeded,
    StaleRecord,
    StoreUnavailable,
)
from testing.composed import BASE_SETTINGS, a_core
from testing.factories import HISTOGRAM, an_app


@pytest.fixture
def composed():
    return a_core()


def an_apk(*names):
    stream = BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name in names or ("AndroidManifest.xml", "classes.dex"):
            archive.writestr(name, b"x" * 100)
    return stream.getvalue()


def add(composed, content=None, **fields):
    upload = composed.upload(content or an_apk(), file_name="any.apk")
    return composed.core.apps.add(AppDraft(**{"name": "Histogram"} | fields), upload.id, by=ADMIN)


def test_added_app_is_what_was_sent(composed):
    content = an_apk()

    app = add(composed, content)

    with composed.core.apps.open(app) as stream:
        assert stream.read() == content
    assert app.md5sum == hashlib.md5(content, usedforsecurity=False).hexdigest()
    assert app.file_name == "Histogram.apk"
    assert (composed.store.uploads.count(), composed.blobs.areas()) == (0, ())


@pytest.mark.parametrize(
    ("content", "reason"), [(b"no zip", "not_zip"), (an_apk("other.xml"), "no_manifest")]
)
def test_what_is_no_apk_is_refused_and_the_upload_kept(composed, content, reason):
    with pytest.raises(PackageRefused) as caught:
        add(composed, content)

    assert caught.value.reason == reason
    assert (composed.store.uploads.count(), composed.store.apps.count()) == (1, 0)


@pytest.fixture
def orphaned(composed):
    """A cloudlet that is about to remove the content of an App that is gone."""
    app = add(composed)
    composed.core.apps.remove(app.id, generation=None, by=ADMIN)
    composed.reconcile()
    return composed


def readable(composed, app):
    with composed.core.apps.open(app) as stream:
        return stream.read() == an_apk()


def test_app_that_comes_in_again_while_its_content_is_removed_keeps_it(orphaned, monkeypatch):
    added = []
    remove = orphaned.blobs.remove

    def add_first(blob_id, **options):
        added.append(add(orphaned))
        remove(blob_id, **options)

    monkeypatch.setattr(orphaned.blobs, "remove", add_first)

    orphaned.reconcile(3)

    (app,) = added
    assert readable(orphaned, app)


def test_app_that_comes_in_again_is_given_time_for_its_record(orphaned, monkeypatch):
    record = orphaned.store.apps.add

    def record_late(app):
        # Half of the time that a request has for its writes, and a round in the middle of it.
        orphaned.clock.advance(1)
        orphaned.core.background.reconciler.run()
        return record(app)

    monkeypatch.setattr(orphaned.store.apps, "add", record_late)
    orphaned.clock.advance(3)

    app = add(orphaned)
    orphaned.reconcile(3)

    assert readable(orphaned, app)


def test_app_whose_record_is_not_written_can_be_added_again(composed, monkeypatch):
    upload = composed.upload(an_apk(), file_name="any.apk")

    def fail(_app):
        raise StoreUnavailable("for a moment")

    with monkeypatch.context() as patched:
        patched.setattr(composed.store.apps, "add", fail)
        with pytest.raises(StoreUnavailable):
            composed.core.apps.add(AppDraft(name="a"), upload.id, by=ADMIN)
    composed.reconcile(3)

    app = composed.core.apps.add(AppDraft(name="a"), upload.id, by=ADMIN)

    with composed.core.apps.open(app) as stream:
        assert stream.read() == an_apk()
    assert (composed.store.uploads.count(), composed.blobs.areas()) == (0, ())


def test_broken_zips_are_refused_and_nothing_worse(composed):
    drawn = random.Random(20)
    good = an_apk()
    for _ in range(300):
        broken = bytearray(good)
        for _ in range(drawn.randint(1, 6)):
            broken[drawn.randrange(len(broken))] = drawn.randrange(256)
        del broken[drawn.randint(len(broken) // 2, len(broken)) :]
        try:
            add(composed, bytes(broken))
        except PackageRefused:
            continue


def test_app_of_another_system_need_not_be_an_apk(composed):
    app = add(composed, b"an ELF", os_name="Linux", name="tool")

    assert app.file_name == "tool"


def test_app_over_the_quota_is_refused():
    composed = a_core(settings=replace(BASE_SETTINGS, max_app_mib=1))

    with pytest.raises(QuotaExceeded, match="max_app_mib"):
        add(composed, b"x" * ((1 << 20) + 1))


def test_app_of_an_incomplete_upload_is_refused(composed):
    upload = composed.core.uploads.create("a.apk", 10, by=ADMIN)

    with pytest.raises(Conflict):
        composed.core.apps.add(AppDraft(name="a"), upload.id, by=ADMIN)


@pytest.mark.parametrize("name", ["", " ", "..", "a/b", "a\n", "ä", "x" * 65])
def test_name_that_phones_cannot_use_is_refused(composed, name):
    with pytest.raises(InvalidInput) as caught:
        add(composed, name=name)

    assert caught.value.pointer == "/name"


def test_text_with_control_characters_is_refused(composed):
    with pytest.raises(InvalidInput):
        add(composed, description="a\x00b")


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        (AppFilter(), 3),
        (AppFilter(os_name="android"), 2),
        (AppFilter(os_name="Linux"), 1),
        (AppFilter(tags=("face", "none")), 1),
        (AppFilter(tags=("none",)), 0),
        (AppFilter(os_name="Android", os_version="4.3"), 1),
        (AppFilter(os_name="Android", os_version="4.4.2"), 2),
        (AppFilter(os_name="Android", os_version="10"), 2),
        (AppFilter(os_version="unknown"), 3),
        (AppFilter(os_version="9" * 5000), 3),
        (AppFilter(os_version="\u0661\u0660"), 3),
    ],
)
def test_filter_finds_what_a_client_can_use(composed, wanted, found):
    for app in (
        an_app(tags=("face",), min_os_version="4.4"),
        an_app(),
        an_app(os_name="Linux"),
    ):
        composed.store.apps.add(app)

    assert len(composed.core.apps.matching(wanted)) == found


def test_update_changes_what_is_given_and_the_file_name(composed):
    app = add(composed)

    changed = composed.core.apps.update(
        app.id, AppChanges(name="New"), generation=app.generation, by=ADMIN
    )

    assert (changed.name, changed.file_name, changed.md5sum) == ("New", "New.apk", app.md5sum)


def test_app_no_longer_uses_a_service_when_that_is_changed_to_none(composed):
    app = composed.store.apps.add(an_app(service_id=HISTOGRAM))

    changed = composed.core.apps.update(
        app.id, AppChanges(service_id=None), generation=app.generation, by=ADMIN
    )

    assert (changed.service_id, changed.name) == (None, app.name)


@pytest.mark.parametrize(
    ("changes", "generation", "error"),
    [(AppChanges(name="a/b"), 1, InvalidInput), (AppChanges(name="b"), 7, StaleRecord)],
)
def test_update_that_is_wrong_or_late_is_refused(composed, changes, generation, error):
    app = add(composed)

    with pytest.raises(error):
        composed.core.apps.update(app.id, changes, generation=generation, by=ADMIN)


def test_removed_app_is_gone_and_so_is_its_content_in_time(composed):
    app = add(composed)
    with pytest.raises(StaleRecord):
        composed.core.apps.remove(app.id, generation=7, by=ADMIN)

    composed.core.apps.remove(app.id, generation=None, by=ADMIN)
    composed.reconcile(3)

    with pytest.raises(NotFound):
        composed.core.apps.app(app.id)
    assert list(composed.blobs.stored()) == []


def test_content_of_two_equal_apps_stays_for_the_other(composed):
    first, second = add(composed), add(composed, name="Copy")
    composed.core.apps.remove(first.id, generation=None, by=ADMIN)

    composed.reconcile(3)

    with composed.core.apps.open(second) as stream:
        assert stream.read(2) == b"PK"
