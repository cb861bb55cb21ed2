"""What NIXL's API asks of a tensor, without torch: a module that stands in for it, over NumPy
memory.

The package may not import torch, and finds tensors by looking for torch among the loaded modules;
installing this one gives callers that pass tensors a way to be played where torch is too large to
be had.
"""

from __future__ import annotations

import sys
from types import ModuleType

import numpy as np
import numpy.typing as npt
from memory import Bytes


class Tensor:
    """Some rows of a matrix of two-byte elements on the host."""

    device = "cpu"

    def __init__(self, data: npt.NDArray[np.uint16]):
        self._data = data

    @property
    def shape(self) -> tuple[int, ...]:
        return self._data.shape

    def is_contiguous(self) -> bool:
        return bool(self._data.flags.c_contiguous)

    def data_ptr(self) -> int:
        return int(self._data.__array_interface__["data"][0])

    def numel(self) -> int:
        return int(self._data.size)

    def element_size(self) -> int:
        return int(self._data.itemsize)

    def get_device(self) -> int:
        return -1

    def __getitem__(self, rows: slice) -> Tensor:
        return Tensor(self._data[rows])

    @property
    def transposed(self) -> Tensor:
        return Tensor(self._data.T)


def install() -> None:
    stand_in = ModuleType("torch")
    stand_in.__dict__["Tensor"] = Tensor
    sys.modules["torch"] = stand_in


def tensor(memory: Bytes, columns: int) -> Tensor:
    return Tensor(memory.view(np.uint16).reshape(-1, columns))
