# SPDX-License-Identifier: Apache-2.0
"""The gzip stream that several threads write, and the one that is read with bounds."""

import gzip
import io
import os
import random
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pycloud.adapters.csvm.gzip_stream import (
    PIECE_BYTES,
    BoundedGzipReader,
    ParallelGzipWriter,
    combined_crc32,
)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=300), st.binary(max_size=300))
def test_check_sums_are_combined_as_if_computed_at_once(first, second):
    combined = combined_crc32(zlib.crc32(first), zlib.crc32(second), len(second))

    assert combined == zlib.crc32(first + second)


def test_writer_makes_what_gzip_reads_from_pieces_of_all_kinds():
    target = io.BytesIO()
    pieces = [b"text " * 1000, b"", os.urandom(PIECE_BYTES), b"\0" * 700]
    with ParallelGzipWriter(target) as writer:
        for piece in pieces:
            writer.write(piece)
        writer.write_zero_piece()
        writer.write_zero_piece()
        writer.finish()

    assert gzip.decompress(target.getvalue()) == b"".join(pieces) + bytes(2 * PIECE_BYTES)


@pytest.mark.parametrize("limit", [1, 7, 512, 1 << 20])
def test_reader_never_returns_more_than_asked_for(limit):
    content = random.Random(6).randbytes(3000) + bytes(9000)
    reader = BoundedGzipReader(
        io.BytesIO(gzip.compress(content[:5000]) + gzip.compress(content[5000:]) + bytes(100))
    )
    parts = []

    while part := reader.read(limit):
        parts.append(part)

    assert b"".join(parts) == content
    assert max(map(len, parts)) <= limit
