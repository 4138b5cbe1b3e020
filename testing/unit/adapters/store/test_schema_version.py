# SPDX-License-Identifier: Apache-2.0
"""What is stored has not changed since its version was written down in a golden file.

A changed record under an old version would be met by servers and backups of before, which
cannot read it and do not know that they cannot.
"""

import types
from dataclasses import MISSING, fields, is_dataclass
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import NewType, Union, get_args, get_origin, get_type_hints

import pytest

from pycloud.adapters.store import mongo_database, sqlite_schema
from pycloud.adapters.store.kinds import KINDS, SCHEMA_VERSION
from pycloud.core.model.runtime import Event

GOLDEN = Path(__file__).resolve().parents[3] / "golden" / "stored_records"
_LEAVES = {str: "text", int: "integer", float: "number", bool: "flag", datetime: "time"}


def stored_records():
    """Describe the kinds, their indices, their fields, and the classes that these name."""
    lines = []
    waiting = [*(kind.record_class for kind in KINDS), Event]
    indexed = {kind.record_class: kind for kind in KINDS}
    described = set()
    while waiting:
        record_class = waiting.pop(0)
        if record_class in described:
            continue
        described.add(record_class)
        lines.append(record_class.__name__)
        if record_class in indexed:
            kind = indexed[record_class]
            lines.append(f"  stored as {kind.name}, found by {', '.join(kind.indexed) or 'id'}")
        hints = get_type_hints(record_class)
        for item in fields(record_class):
            is_required = item.default is MISSING and item.default_factory is MISSING
            form = _form(hints[item.name], waiting)
            lines.append(f"  {item.name}: {form}{'' if is_required else ', may be missing'}")
    return "\n".join(lines) + "\n"


def _form(hint, found):
    """Say how a value of this type is written; classes of records are added to `found`."""
    if isinstance(hint, NewType):
        return _form(hint.__supertype__, found)
    if hint in _LEAVES:
        return _LEAVES[hint]
    if isinstance(hint, type) and issubclass(hint, StrEnum):
        return "one of " + " ".join(member.value for member in hint)
    if is_dataclass(hint):
        found.append(hint)
        return hint.__name__
    return _compound(hint, found)


def _compound(hint, found):
    origin, members = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        (inner,) = (member for member in members if member is not types.NoneType)
        return f"{_form(inner, found)}, or null"
    if origin is tuple:
        return f"list of {_form(members[0], found)}"
    assert (origin, members) == (dict, (str, str))
    return "pairs of text"


def test_stored_records_are_those_of_the_version_that_they_say(request):
    golden = GOLDEN / f"version-{SCHEMA_VERSION}.txt"
    # A file that is there is never written anew: a changed record takes a new version.
    if request.config.getoption("--refresh-golden") and not golden.exists():
        golden.write_text(stored_records(), encoding="utf-8")

    assert stored_records() == golden.read_text(encoding="utf-8"), (
        "what is stored has changed: raise SCHEMA_VERSION, add a step to the schema of each"
        " store, and write the golden file of the new version with --refresh-golden"
    )


def test_no_version_is_higher_than_that_of_the_stores():
    versions = sorted(int(path.stem.removeprefix("version-")) for path in GOLDEN.iterdir())

    assert versions[-1] == SCHEMA_VERSION


@pytest.mark.parametrize("schema", [sqlite_schema.CURRENT, mongo_database.CURRENT])
def test_every_older_version_can_be_migrated(schema):
    assert schema.version == SCHEMA_VERSION
    assert sorted(schema.steps) == list(range(1, SCHEMA_VERSION))
