"""A stand-in for PyTorch, for NIXL's own tests and examples only: CPU tensors over NumPy.

PyTorch's wheel for x86-64 is half a gigabyte and wants CUDA's libraries, which is out of proportion
for the dozen names that those files use. Wherever the real one can be imported, it is used instead,
and this directory is not on the path. A name that is missing here is an AttributeError, so that a
newer test that needs more says so.
"""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

float32 = np.float32
uint8 = np.uint8
int64 = np.int64

cuda = SimpleNamespace(device_count=lambda: 0, is_available=lambda: False)


class device(str):
    """The place of a tensor; equal to another of the same name."""

    @property
    def type(self) -> str:
        return self.split(":")[0]


class Tensor:
    """Memory of a NumPy array, seen as a tensor. Views share it, as PyTorch's do."""

    def __init__(self, array: np.ndarray):
        self._array = array

    @property
    def shape(self) -> tuple[int, ...]:
        return self._array.shape

    @property
    def device(self) -> device:
        return device("cpu")

    def get_device(self) -> int:
        return -1

    def is_contiguous(self) -> bool:
        return self._array.flags.c_contiguous

    def data_ptr(self) -> int:
        return self._array.ctypes.data

    def numel(self) -> int:
        return self._array.size

    def element_size(self) -> int:
        return self._array.itemsize

    def reshape(self, *shape: int) -> Tensor:
        return Tensor(self._array.reshape(*shape))

    def __getitem__(self, key) -> Tensor:
        return Tensor(self._array[key])

    def __setitem__(self, key, value) -> None:
        self._array[key] = value._array if isinstance(value, Tensor) else value

    def __len__(self) -> int:
        return len(self._array)

    def __eq__(self, other) -> Tensor:  # type: ignore[override]
        return Tensor(self._array == (other._array if isinstance(other, Tensor) else other))

    __hash__ = object.__hash__

    def __bool__(self) -> bool:
        return bool(self._array)

    def __repr__(self) -> str:
        return f"stand_in_tensor({self._array!r})"


def set_default_device(name: str) -> None:
    """Takes `cpu`; there is nothing else here."""
    if name != "cpu":
        raise RuntimeError(f"the stand-in for PyTorch has no device {name!r}")


def arange(stop: int) -> Tensor:
    return Tensor(np.arange(stop))


def ones(shape, dtype=float32) -> Tensor:
    return Tensor(np.ones(shape, dtype))


def zeros(shape, dtype=float32) -> Tensor:
    return Tensor(np.zeros(shape, dtype))


def zeros_like(tensor: Tensor) -> Tensor:
    return Tensor(np.zeros_like(tensor._array))


def transpose(tensor: Tensor, first: int, second: int) -> Tensor:
    return Tensor(np.swapaxes(tensor._array, first, second))


def allclose(one: Tensor, other: Tensor) -> bool:
    return bool(np.allclose(one._array, other._array))


def any(tensor: Tensor) -> Tensor:
    return Tensor(np.any(tensor._array))
