"""Descriptor lists from what callers hold: tuples, NumPy arrays, torch tensors.

NumPy and torch are never imported: an object can only be theirs when they are loaded already. What
cannot be a list is refused with a reason (`Refused`). NIXL's `get_xfer_descs` and its sisters log
it and return None (`or_none`); the calls that need a list raise a TypeError (`or_raise`).
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

from . import _bindings as nixlBind

MEM_TYPES: dict[str, nixlBind.nixl_mem_t] = {
    "DRAM": nixlBind.DRAM_SEG,
    "VRAM": nixlBind.VRAM_SEG,
    "FILE": nixlBind.FILE_SEG,
    "BLOCK": nixlBind.BLK_SEG,
    "OBJ": nixlBind.OBJ_SEG,
    "cpu": nixlBind.DRAM_SEG,  # the older names of DRAM and VRAM
    "cuda": nixlBind.VRAM_SEG,
}

STRIDED_COLUMNS = 5

logger = logging.getLogger("nixl._api")


class Array(Protocol):
    """What is used of a NumPy array."""

    @property
    def ndim(self) -> int: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    def __getitem__(self, index: Any, /) -> Any: ...
    def __len__(self) -> int: ...


class Tensor(Protocol):
    """What is used of a torch tensor."""

    def data_ptr(self) -> int: ...
    def numel(self) -> int: ...
    def element_size(self) -> int: ...
    def get_device(self) -> int: ...
    def is_contiguous(self) -> bool: ...
    def __getitem__(self, index: Any, /) -> Any: ...


class Refused(Exception):
    """These are no descriptors; the text says why."""


_List = TypeVar("_List")


def or_none(
    make: Callable[[Any, str | None], _List], descs: Any, mem_type: str | None
) -> _List | None:
    """The list, or None with the reason in the log."""
    try:
        return make(descs, mem_type)
    except Refused as reason:
        logger.error("%s", reason)
        return None


def or_raise(make: Callable[[Any, str | None], _List], descs: Any, mem_type: str | None) -> _List:
    """The list, or a TypeError with the reason."""
    try:
        return make(descs, mem_type)
    except Refused as reason:
        raise TypeError(str(reason)) from None


def is_array(value: object) -> bool:
    """Whether this is a NumPy array."""
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(value, numpy.ndarray)


def is_tensor(value: object) -> bool:
    """Whether this is a torch tensor."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def is_strided(value: Any) -> bool:
    """Whether this is an array of rows (address, length, device, stride, count)."""
    shape: tuple[int, ...] = getattr(value, "shape", ())
    return len(shape) == 2 and bool(shape[1] == STRIDED_COLUMNS) and is_array(value)


def xfer_list(descs: Any, mem_type: str | None) -> nixlBind.nixlXferDList:
    """The transfer list of tuples (address, length, device), rows of the same, tensors, or a list
    itself.
    """
    if isinstance(descs, nixlBind.nixlXferDList):
        return descs
    if isinstance(descs, nixlBind.nixlRegDList):
        raise Refused(
            "a nixlRegDList is for registration; its trim() makes the nixlXferDList for a transfer"
        )
    rows, segment = _rows(descs, mem_type, ("address", "length", "device"))
    return nixlBind.nixlXferDList(segment, rows)


def reg_list(descs: Any, mem_type: str | None) -> nixlBind.nixlRegDList:
    """The registration list of tuples (address, length, device, meta), rows without meta, tensors,
    or a list itself.
    """
    if isinstance(descs, nixlBind.nixlRegDList):
        return descs
    if isinstance(descs, nixlBind.nixlXferDList):
        raise Refused("a nixlXferDList is for transfers; registration needs a nixlRegDList")
    rows, segment = _rows(descs, mem_type, ("address", "length", "device", "meta"))
    return nixlBind.nixlRegDList(segment, rows)


def remote_list(descs: Any, mem_type: str | None) -> nixlBind.nixlRemoteDList:
    """The remote list of tuples (address, length, device, agent name), or a list itself."""
    if isinstance(descs, nixlBind.nixlRemoteDList):
        return descs
    if not isinstance(descs[0], tuple):
        raise Refused(
            f"remote descriptors are tuples (address, length, device, agent), not {_name(descs)}"
        )
    rows, segment = _of_tuples(descs, mem_type, ("address", "length", "device", "agent"))
    return nixlBind.nixlRemoteDList(segment, rows)


def _rows(
    descs: Any, mem_type: str | None, fields: tuple[str, ...]
) -> tuple[Any, nixlBind.nixl_mem_t]:
    """What the native list is made from, and its memory type."""
    first = descs[0]
    if isinstance(first, tuple):
        return _of_tuples(descs, mem_type, fields)
    if is_array(descs):
        if mem_type is None:
            raise Refused("descriptors of an array need a mem_type")
        if descs.ndim != 2 or descs.shape[1] != 3:
            raise Refused(
                f"an array of descriptors is N×3 (address, length, device), not {descs.shape}"
            )
        return descs, MEM_TYPES[mem_type]
    if is_tensor(descs):
        return _of_tensors([descs], fields)
    if is_tensor(first):
        return _of_tensors(descs, fields)
    raise Refused(
        f"descriptors are tuples ({', '.join(fields)}), an N×3 array or tensors, not {_name(descs)}"
    )


def _of_tuples(
    descs: Any, mem_type: str | None, fields: tuple[str, ...]
) -> tuple[list[Any], nixlBind.nixl_mem_t]:
    if mem_type is None:
        raise Refused("descriptors of tuples need a mem_type")
    if len(descs[0]) != len(fields):
        raise Refused(
            f"{len(fields)}-tuples ({', '.join(fields)}) needed, not {len(descs[0])}-tuples"
        )
    return descs, MEM_TYPES[mem_type]


def _of_tensors(
    tensors: Sequence[Any], fields: tuple[str, ...]
) -> tuple[list[Any], nixlBind.nixl_mem_t]:
    """One row for each tensor; they are contiguous and on one device."""
    device = tensors[0].device
    row_tail: tuple[str, ...] = ("",) * (len(fields) - 3)
    rows: list[tuple[Any, ...]] = []
    for index, tensor in enumerate(tensors):
        if not is_tensor(tensor):
            raise Refused(f"item {index} is {_name(tensor)}, not a tensor like item 0")
        if tensor.device != device:
            raise Refused(
                f"tensor {index} is on {tensor.device} and tensor 0 on {device}: not one list"
            )
        if not tensor.is_contiguous():
            raise Refused(f"tensor {index} of shape {tuple(tensor.shape)} is not contiguous")
        # A tensor of the CPU has device -1; device 0 is what the rest of the world calls it.
        ordinal = max(tensor.get_device(), 0)
        rows.append((tensor.data_ptr(), tensor.numel() * tensor.element_size(), ordinal, *row_tail))
    on_cpu = tensors[0].get_device() == -1
    return rows, nixlBind.DRAM_SEG if on_cpu else nixlBind.VRAM_SEG


def _name(value: object) -> str:
    return f"a {type(value).__name__}"
