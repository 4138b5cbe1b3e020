# SPDX-License-Identifier: Apache-2.0
"""File names never break out of a header."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pycloud.api.replies import disposition


@given(st.text())
def test_disposition_is_one_quoted_plain_name(name: str) -> None:
    assert re.fullmatch(r'attachment; filename="[A-Za-z0-9 ._()+@-]+"', disposition(name), re.ASCII)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("Speech 1.2.apk", "Speech 1.2.apk"),
        ("../../etc/passwd", "_.._etc_passwd"),
        ('a"\r\nX: y.apk', "a___X_ y.apk"),
        ("...", "file"),
        ("", "file"),
    ],
)
def test_disposition_keeps_what_is_harmless(name: str, shown: str) -> None:
    assert disposition(name) == f'attachment; filename="{shown}"'
