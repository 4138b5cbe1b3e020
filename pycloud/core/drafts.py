# SPDX-License-Identifier: Apache-2.0
"""ServiceDrafts as text, so that a Job can carry one in its arguments over a crash."""

import json
from dataclasses import asdict, fields

from pycloud.core.model.catalog import OsType, Readiness, Service, ServiceDraft
from pycloud.core.model.identifiers import ServiceId


def draft_to_text(draft: ServiceDraft) -> str:
    """Return the draft as JSON."""
    return json.dumps(asdict(draft), separators=(",", ":"))


def draft_from_text(text: str) -> ServiceDraft:
    """Return the draft that `draft_to_text` wrote; nothing else is accepted or expected."""
    values = json.loads(text)
    values |= {
        "id": ServiceId(values["id"]),
        "tags": tuple(values["tags"]),
        "os_type": OsType(values["os_type"]),
        "readiness": Readiness(values["readiness"]),
    }
    return ServiceDraft(**values)


def draft_of(service: Service) -> ServiceDraft:
    """Return what an operator would say to make this Service again."""
    return ServiceDraft(**{item.name: getattr(service, item.name) for item in fields(ServiceDraft)})
