# SPDX-License-Identifier: Apache-2.0
"""The header of libvirt's save images: what is written is read, what is broken is refused."""

import contextlib
import struct
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


def _image(
    *, magic=b"LibvirtQemudSave", version=2, data=DESCRIPTION + b"\0", compression=0, cookie=0,
    order="<", length=None,
):  # fmt: skip
    length = len(data) if length is None else length
    fields = struct.pack(order + "16s5I56x", magic, version, length, 1, compression, cookie)
    return fields + data


@given(st.binary(max_size=300).filter(lambda text: b"\0" not in text), st.integers(0, 600))
def test_header_is_read_as_it_was_written(description, room):
    image = header_and_data(description, data_bytes=room) + b"stream"

    header = read_header(BytesIO(image))

    assert header.description == description
    assert image[header.stream_offset :] == b"stream"
    assert header.was_running


@pytest.mark.parametrize("order", ["<", ">"])
def test_header_is_read_in_either_byte_order(order):
    header = read_header(BytesIO(_image(order=order)))

    assert header.description == DESCRIPTION


def test_header_ends_the_description_before_the_cookie():
    data = DESCRIPTION + b"\0<cookie/>\0"

    header = read_header(BytesIO(_image(data=data, cookie=len(DESCRIPTION) + 1)))

    assert header.description == DESCRIPTION
    assert header.stream_offset == HEADER_BYTES + len(data)


@pytest.mark.parametrize(
    "image",
    [
        b"",
        b"LibvirtQemudSave",
        _image(magic=b"LibvirtQemudPart"),
        _image(magic=b"QEVM" * 4),
        _image(version=3),
        _image(compression=1),
        _image(length=0, data=b""),
        _image(length=MAX_DATA_BYTES + 1),
        _image(length=5000),
        _image(cookie=5000),
        _image(version=1, cookie=3),
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
        read_header(BytesIO(_image()[:20] + noise))
