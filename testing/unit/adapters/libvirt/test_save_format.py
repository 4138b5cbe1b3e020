# SPDX-License-Identifier: Apache-2.0
"""The header of libvirt's save images: what is written is read, what is broken is refused."""

import contextlib
import struct
from dataclasses import dataclass
from io import BytesIO

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pycloud.adapters.libvirt.save_format import (
    HEADER_BYTES,
    MAX_DATA_BYTES,
    header_and_data,
    read_header,
)
from pycloud.errors import StateUnusable

DESCRIPTION = b"<domain/>"


@dataclass(frozen=True, kw_only=True)
class _Image:
    """A save image of which every field can be wrong."""

    magic: bytes = b"LibvirtQemudSave"
    version: int = 2
    data: bytes = DESCRIPTION + b"\0"
    length: int | None = None
    compression: int = 0
    cookie: int = 0

    def packed(self, order: str = "<") -> bytes:
        length = len(self.data) if self.length is None else self.length
        numbers = (self.version, length, 1, self.compression, self.cookie)
        return struct.pack(order + "16s5I56x", self.magic, *numbers) + self.data


@given(st.binary(max_size=300).filter(lambda text: b"\0" not in text), st.integers(0, 600))
def test_header_is_read_as_it_was_written(description, room):
    image = header_and_data(description, data_bytes=room) + b"stream"

    header = read_header(BytesIO(image))

    assert header.description == description
    assert image[header.stream_offset :] == b"stream"
    assert header.was_running


@pytest.mark.parametrize("order", ["<", ">"])
def test_header_is_read_in_either_byte_order(order):
    header = read_header(BytesIO(_Image().packed(order)))

    assert header.description == DESCRIPTION


def test_header_ends_the_description_before_the_cookie():
    data = DESCRIPTION + b"\0<cookie/>\0"

    header = read_header(BytesIO(_Image(data=data, cookie=len(DESCRIPTION) + 1).packed()))

    assert header.description == DESCRIPTION
    assert header.stream_offset == HEADER_BYTES + len(data)


@pytest.mark.parametrize(
    "image",
    [
        b"",
        b"LibvirtQemudSave",
        _Image(magic=b"LibvirtQemudPart").packed(),
        _Image(magic=b"QEVM" * 4).packed(),
        _Image(version=3).packed(),
        _Image(compression=1).packed(),
        _Image(length=0, data=b"").packed(),
        _Image(length=MAX_DATA_BYTES + 1).packed(),
        _Image(length=5000).packed(),
        _Image(cookie=5000).packed(),
        _Image(version=1, cookie=3).packed(),
    ],
    ids=[
        "empty", "header cut short", "unfinished", "another format", "version", "compressed",
        "no data", "too much data", "data cut short", "cookie outside", "cookie in version 1",
    ],
)  # fmt: skip
def test_header_is_refused_when_it_is_not_that_of_a_usable_image(image):
    with pytest.raises(StateUnusable):
        read_header(BytesIO(image))


@given(st.binary(max_size=200))
def test_header_of_any_bytes_is_read_or_refused(noise):
    with contextlib.suppress(StateUnusable):
        read_header(BytesIO(_Image().packed()[:20] + noise))
