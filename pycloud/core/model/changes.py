# SPDX-License-Identifier: Apache-2.0
"""Changes of records that name only some fields, where None is a value like any other.

A class of changes has a field for each thing that may change, UNCHANGED by default.
Nothing here knows what any record means.
"""

from dataclasses import fields
from enum import Enum
from typing import TYPE_CHECKING, Any, Final, Literal

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


class Unchanged(Enum):
    """The value of a field that a change leaves as it is."""

    UNCHANGED = "unchanged"


UNCHANGED: Final[Literal[Unchanged.UNCHANGED]] = Unchanged.UNCHANGED


def given_in(changes: "DataclassInstance") -> dict[str, Any]:  # Any: each field has its own type
    """Return the fields that a change names, for `dataclasses.replace`."""
    values = {item.name: getattr(changes, item.name) for item in fields(changes)}
    return {name: value for name, value in values.items() if value is not UNCHANGED}
