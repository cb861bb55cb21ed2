"""Memory whose every byte tells where it belongs, and the checker of it.

A fill that repeats hides the field's best-known defects: everything sent to the region's base, two
blocks swapped, an old block left in place. Here eight bytes at a time are a mix of a name and their
position, so that no two places are alike, and memory that nobody was to write is checked as well.
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


def address(array: Bytes) -> int:
    return int(array.__array_interface__["data"][0])


def wrong_bytes(found: Bytes, expected: Bytes) -> int:
    """How many bytes are not what they should be; the whole of both is compared."""
    if found.shape != expected.shape:
        raise ValueError(f"{found.shape} compared with {expected.shape}")
    return int(np.count_nonzero(found != expected))


class Memory:
    """Poisoned memory inside a larger allocation, with a copy of what all of it should hold."""

    def __init__(self, nbytes: int, before: int = 192, after: int = 320):
        self._whole = np.full(before + nbytes + after, POISON, dtype=np.uint8)
        self._expected = self._whole.copy()
        self._before = before
        self.bytes = self._whole[before : before + nbytes]
        self.address = address(self.bytes)
        self.nbytes = nbytes

    def fill(self, *name: object) -> None:
        """The pattern of that name in all of it; it is expected to stay."""
        content = pattern(self.nbytes, *name)
        self.bytes[:] = content
        self.expect(0, content)

    def expect(self, at: int, content: Bytes) -> None:
        """Enters what a transfer that was asked for is to put there."""
        start = self._before + at
        self._expected[start : start + len(content)] = content

    def wrong_bytes(self) -> int:
        """How many bytes of the whole allocation are not what they should be."""
        return wrong_bytes(self._whole, self._expected)
