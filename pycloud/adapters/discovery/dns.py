# SPDX-License-Identifier: Apache-2.0
"""The few words of DNS that we speak ourselves; everything else is the library's."""

from collections.abc import Sequence
from enum import IntEnum

from zeroconf import (  # type: ignore[attr-defined]  # public, but missing in the stubs' __all__
    DNSOutgoing,
    DNSQuestion,
    DNSQuestionType,
    DNSService,
    DNSText,
    Zeroconf,
)

__all__ = ["DOMAIN", "QUESTION_FOR_ALL", "DNSService", "DNSText", "RecordType", "send_question"]

DOMAIN = "local."
QUESTION_FOR_ALL = DNSQuestionType.QM
"""Ask for answers to the group. The library would ask for direct ones first, and of several
programs that share port 5353 on one machine the kernel gives those to any one."""
_FLAGS_OF_A_QUERY = 0
_CLASS_IN = 1


class RecordType(IntEnum):
    """Types of records (RFC 1035 section 3.2.2, RFC 2782)."""

    POINTER = 12
    TEXT = 16
    SERVER = 33


def send_question(zeroconf: Zeroconf, questions: Sequence[tuple[str, RecordType]]) -> None:
    """Ask the network; answers come in through the library's cache and listeners."""
    query = DNSOutgoing(_FLAGS_OF_A_QUERY)
    for name, record_type in questions:
        query.add_question(DNSQuestion(name, int(record_type), _CLASS_IN))
    zeroconf.send(query)
