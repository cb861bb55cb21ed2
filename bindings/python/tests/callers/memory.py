"""Memory whose every byte tells where it belongs, and the checker of it.

A fill that repeats hides the field's best-known defects: everything sent to the region's base, two blocks swapped, an old block
left in place. Here eight bytes at a time are a mix of a name and their position, so that no two places are alike, and memory that
nobody was to write is checked as well.
"""

from __future__ import annotations

import zlib

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]
POISON = 0xDB


def pattern(nbytes: int, *name: object) -> Bytes:
    """The content of the memory of that name, the same in each process."""
    seed = np.uint64(zlib.crc32(repr(name).encode()) | (len(name) << 32))
    words = np.arange(-(-nbytes // 8), dtype=np.uint64)
    with np.errstate(over="ignore"):
        words += seed * np.uint64(0x9E3779B97F4A7C15)
        words ^= words >> np.uint64(30)
        words *= np.uint64(0xBF58476D1CE4E5B9)
        words ^= words >> np.uint64(27)
        words *= np.uint64(0x94D049BB133111EB)
        words ^= words >> np.uint64(31)
    return words.view(np.uint8)[:nbytes]


def poisoned(nbytes: int, before: int = 192, after: int = 320) -> tuple[Bytes, Bytes]:
    """A view of memory that nothing was written to, inside a larger allocation: (view, all of it)."""
    whole = np.full(before + nbytes + after, POISON, dtype=np.uint8)
    return whole[before : before + nbytes], whole


def address(array: Bytes) -> int:
    return int(array.__array_interface__["data"][0])


def wrong_bytes(found: Bytes, expected: Bytes) -> int:
    """How many bytes are not what they should be; the whole of both is compared."""
    if found.shape != expected.shape:
        raise ValueError(f"{found.shape} compared with {expected.shape}")
    return int(np.count_nonzero(found != expected))
