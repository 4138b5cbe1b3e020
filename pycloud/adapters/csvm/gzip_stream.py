# SPDX-License-Identifier: Apache-2.0
"""A gzip stream written by several threads, and one read with bounds (RFC 1951, RFC 1952).

The writer compresses pieces of one MiB independently and joins them into a single gzip
member: each piece ends on a byte boundary, and the check sums of the pieces are combined
arithmetically. Every gunzip since 1993 reads that. zlib lets go of the interpreter while
it works, so the threads really run side by side; memory is bounded by the pieces in flight.
"""

import os
import zlib
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import BinaryIO, Self

from pycloud.errors import PackageRefused

PIECE_BYTES = 1 << 20

# On a disk with a server's files level 4 gave the size of `gzip -6` plus 2 per cent
# (testing/bench/packages.py).
_LEVEL = 4
_SAMPLE_BYTES = 16 * 1024
_INCOMPRESSIBLE = 0.97
_MAX_THREADS = 8
_HEADER = b"\x1f\x8b\x08\0\0\0\0\0\0\xff"
_POLYNOMIAL = 0xEDB88320
_READ_BYTES = 256 * 1024


class ParallelGzipWriter:
    """Writes one gzip member to `target`; a context manager that ends the threads.

    The caller owns `target`. `finish` has to be called for a valid stream; leaving the
    context without it abandons what is in flight.
    """

    def __init__(self, target: BinaryIO) -> None:
        threads = min(os.cpu_count() or 1, _MAX_THREADS)
        self._target = target
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="csvm-gzip")
        self._in_flight: deque[tuple[Future[tuple[bytes, int]], int]] = deque()
        self._in_flight_limit = 2 * threads
        self._zeros: tuple[bytes, int] | None = None
        self._checksum = 0
        self._size_bytes = 0
        target.write(_HEADER)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def write(self, piece: bytes) -> None:
        """Compress a piece of at most PIECE_BYTES; blocks while enough are in flight."""
        while len(self._in_flight) >= self._in_flight_limit:
            self._drain_one()
        self._in_flight.append((self._pool.submit(_compressed, piece), len(piece)))

    def write_zero_piece(self) -> None:
        """Write PIECE_BYTES zeros, which are compressed only once."""
        if self._zeros is None:
            self._zeros = _compressed(bytes(PIECE_BYTES))
        ready: Future[tuple[bytes, int]] = Future()
        ready.set_result(self._zeros)
        while len(self._in_flight) >= self._in_flight_limit:
            self._drain_one()
        self._in_flight.append((ready, PIECE_BYTES))

    def finish(self) -> None:
        """Write what is in flight and the end of the stream."""
        while self._in_flight:
            self._drain_one()
        end = zlib.compressobj(_LEVEL, zlib.DEFLATED, -zlib.MAX_WBITS).flush()
        trailer = self._checksum.to_bytes(4, "little")
        trailer += (self._size_bytes & 0xFFFF_FFFF).to_bytes(4, "little")
        self._target.write(end + trailer)

    def _drain_one(self) -> None:
        future, size_bytes = self._in_flight.popleft()
        compressed, checksum = future.result()
        self._target.write(compressed)
        self._checksum = combined_crc32(self._checksum, checksum, size_bytes)
        self._size_bytes += size_bytes


class BoundedGzipReader:
    """Reads the content of a gzip file, never more at once than asked for.

    `consumed_bytes` tells how far the compressed file was read. Raises PackageRefused
    for a damaged or truncated stream.
    """

    def __init__(self, source: BinaryIO) -> None:
        self._source = source
        self._inflater = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
        self._pending = b""
        self._between_members = True
        self.consumed_bytes = 0

    def read(self, limit_bytes: int) -> bytes:
        """Return at least one and at most `limit_bytes` (above 0) bytes; b"" at the end."""
        content = b""
        while not content:
            if self._between_members and not self._begin_member():
                return b""
            at_end = not self._pending and not self._refill()
            try:
                content = self._inflater.decompress(self._pending, limit_bytes)
            except zlib.error as exc:
                raise _damaged("is damaged or not compressed with gzip") from exc
            self._pending = self._inflater.unconsumed_tail
            if self._inflater.eof:
                self._pending = self._inflater.unused_data
                self._between_members = True
            elif at_end and not content:
                raise _damaged("ends too early")
        return content

    def _begin_member(self) -> bool:
        """Prepare for the next member; False at the end of the file, padded or not."""
        while not self._pending.strip(b"\0"):
            if not self._refill():
                return False
        self._inflater = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
        self._between_members = False
        return True

    def _refill(self) -> bool:
        self._pending = self._source.read(_READ_BYTES)
        self.consumed_bytes += len(self._pending)
        return bool(self._pending)


def combined_crc32(first: int, second: int, second_bytes: int) -> int:
    """Return the CRC-32 of two strings joined, from theirs and the length of the second.

    A CRC is a remainder of polynomials over GF(2): the first has to be multiplied by
    x^(8 * second_bytes) modulo the generator (as zlib's crc32_combine does it).
    """
    return _multiplied(_power_of_x(8 * second_bytes), first) ^ second


def _multiplied(left: int, right: int) -> int:
    """Multiply two polynomials modulo the generator; the highest bit is the constant term."""
    product = 0
    for bit in range(31, -1, -1):
        if left >> bit & 1:
            product ^= right
        right = right >> 1 ^ _POLYNOMIAL if right & 1 else right >> 1
    return product


def _power_of_x(exponent: int) -> int:
    result, square = 1 << 31, 1 << 30
    while exponent:
        if exponent & 1:
            result = _multiplied(square, result)
        square = _multiplied(square, square)
        exponent >>= 1
    return result


def _compressed(piece: bytes) -> tuple[bytes, int]:
    """Return raw deflate blocks that end on a byte boundary, and the piece's check sum."""
    level = 0 if _looks_incompressible(piece) else _LEVEL
    deflater = zlib.compressobj(level, zlib.DEFLATED, -zlib.MAX_WBITS, 9)
    blocks = deflater.compress(piece) + deflater.flush(zlib.Z_FULL_FLUSH)
    return blocks, zlib.crc32(piece)


def _looks_incompressible(piece: bytes) -> bool:
    """Try a few samples; packed files inside a disk are not worth the time."""
    size_bytes = len(piece)
    if size_bytes < 4 * _SAMPLE_BYTES:
        return False
    view = memoryview(piece)
    return all(
        len(zlib.compress(view[start : start + _SAMPLE_BYTES], 1)) > _INCOMPRESSIBLE * _SAMPLE_BYTES
        for start in (0, size_bytes // 2, size_bytes - _SAMPLE_BYTES)
    )


def _damaged(how: str) -> PackageRefused:
    return PackageRefused(f"the package {how}", reason="damaged")
