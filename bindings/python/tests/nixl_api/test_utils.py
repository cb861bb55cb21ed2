"""Memory by address: what NIXL's tests do with it, and what would end a process."""

from __future__ import annotations

import ctypes

import pytest
from kvrail.nixl import _utils as utils


def test_memory_is_filled_compared_and_freed():
    first, second = utils.malloc_passthru(100), utils.malloc_passthru(100)
    utils.ba_buf(first, 100)
    utils.ba_buf(second, 100)
    assert ctypes.string_at(first, 100) == b"\xba" * 100
    utils.verify_transfer(first, second, 100)
    ctypes.memset(second + 41, 0, 1)
    with pytest.raises(AssertionError, match="byte 41 of 100"):
        utils.verify_transfer(first, second, 100)
    utils.verify_transfer(first, second, 41)
    utils.free_passthru(first)
    utils.free_passthru(second)


def test_memory_is_freed_once_and_only_if_it_was_allocated():
    address = utils.malloc_passthru(16)
    utils.free_passthru(address)
    for wrong in (address, address + 1, 4096):
        with pytest.raises(ValueError):
            utils.free_passthru(wrong)
    utils.free_passthru(0)


def test_address_zero_and_no_bytes_end_no_process():
    with pytest.raises(ValueError):
        utils.ba_buf(0, 4)
    with pytest.raises(ValueError):
        utils.verify_transfer(0, 0, 4)
    for size in (0, -5):
        utils.ba_buf(0, size)
        utils.verify_transfer(0, 0, size)
    assert utils.malloc_passthru(-1) == 0
    empty = utils.malloc_passthru(0)
    utils.free_passthru(empty)


@pytest.mark.parametrize("size", ["a", 1.5, None, 1 << 62, 1 << 70, -(1 << 40)])
def test_what_is_no_c_integer_is_a_type_error(size):
    with pytest.raises(TypeError):
        utils.malloc_passthru(size)
