"""The helpers that NIXL's tests and examples use: plain memory by address.

Where NIXL's crash the process, these raise: an address that is not from `malloc_passthru` is not
freed, and nothing is written to or read at the null address. `verify_transfer` compares (NIXL's is
an assertion that release builds leave out) and raises AssertionError with the first byte that
differs.
"""

from __future__ import annotations

import ctypes
from typing import SupportsIndex, SupportsInt

__all__ = ["ba_buf", "free_passthru", "malloc_passthru", "verify_transfer"]

_INT_MAX = 2**31 - 1
_INT_MIN = -(2**31)
_ADDRESS_MAX = 2**64 - 1

_libc = ctypes.CDLL(None)
_libc.malloc.argtypes = [ctypes.c_size_t]
_libc.malloc.restype = ctypes.c_void_p
_libc.free.argtypes = [ctypes.c_void_p]
_libc.free.restype = None

# Addresses that `malloc_passthru` gave and `free_passthru` has not taken back. `set.remove` is
# atomic under the GIL, so of two threads that free one address only one reaches `free`.
_allocated: set[int] = set()


def _integer(what: str, value: SupportsInt | SupportsIndex, lowest: int, highest: int) -> int:
    """The integer that a C function would have received, or TypeError, as NIXL has for what does
    not fit.
    """
    if isinstance(value, float) or not (hasattr(value, "__index__") or hasattr(value, "__int__")):
        raise TypeError(f"{what} must be an integer, not {type(value).__name__}")
    number = int(value)
    if not lowest <= number <= highest:
        raise TypeError(f"{what} {number} is not in {lowest}..={highest}")
    return number


def malloc_passthru(size: SupportsInt | SupportsIndex, /) -> int:
    """The address of `size` new bytes; 0 when there is no memory, or `size` is negative."""
    size = _integer("size", size, _INT_MIN, _INT_MAX)
    if size < 0:
        return 0
    address: int = _libc.malloc(size) or 0
    if address:
        _allocated.add(address)
    return address


def free_passthru(address: SupportsInt | SupportsIndex, /) -> None:
    """Give memory of `malloc_passthru` back. Address 0 is nothing to free; any other is a
    ValueError.
    """
    address = _integer("address", address, 0, _ADDRESS_MAX)
    if address == 0:
        return
    try:
        _allocated.remove(address)
    except KeyError:
        raise ValueError(
            f"{address:#x} was not allocated by malloc_passthru, or is freed already"
        ) from None
    _libc.free(address)


def ba_buf(address: SupportsInt | SupportsIndex, size: SupportsInt | SupportsIndex, /) -> None:
    """Fill `size` bytes at `address` with 0xBA."""
    address = _integer("address", address, 0, _ADDRESS_MAX)
    size = _integer("size", size, _INT_MIN, _INT_MAX)
    if size <= 0:
        return
    if address == 0:
        raise ValueError(f"cannot fill {size} bytes at address 0")
    ctypes.memset(address, 0xBA, size)


def verify_transfer(
    first: SupportsInt | SupportsIndex,
    second: SupportsInt | SupportsIndex,
    size: SupportsInt | SupportsIndex,
    /,
) -> None:
    """Raise AssertionError unless the `size` bytes at both addresses are the same."""
    first = _integer("address", first, 0, _ADDRESS_MAX)
    second = _integer("address", second, 0, _ADDRESS_MAX)
    size = _integer("size", size, _INT_MIN, _INT_MAX)
    if size <= 0:
        return
    if first == 0 or second == 0:
        raise ValueError(f"cannot compare {size} bytes at address 0")
    left, right = ctypes.string_at(first, size), ctypes.string_at(second, size)
    if left != right:
        offset = next(i for i in range(size) if left[i] != right[i])
        raise AssertionError(
            f"byte {offset} of {size} differs: {left[offset]:#04x} at {first + offset:#x}, "
            f"{right[offset]:#04x} at {second + offset:#x}"
        )
