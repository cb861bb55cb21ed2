"""Memory that peers of the same host can map, seen as an array, a tensor or bytes."""

from __future__ import annotations

import math
import sys
from importlib import import_module

from kvrail._kvrail.native import Allocation

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any, Literal

# Typestrings of NumPy's array interface. Types that NumPy does not have are opaque bytes to it;
# torch knows them by name.
_TYPES = {
    "bool": "|b1",
    "uint8": "|u1",
    "int8": "|i1",
    "uint16": "<u2",
    "int16": "<i2",
    "uint32": "<u4",
    "int32": "<i4",
    "uint64": "<u8",
    "int64": "<i8",
    "float16": "<f2",
    "float32": "<f4",
    "float64": "<f8",
    "complex64": "<c8",
    "complex128": "<c16",
    "bfloat16": "|V2",
    "float8_e4m3fn": "|V1",
    "float8_e5m2": "|V1",
}


class SharedMemory(Allocation):
    """Zeroed memory of kvrail: peers of the same host map it and copy without a system call.

    Made by `kvrail.shared`. `numpy.asarray(memory)` is a view, and so are `memory.numpy()`,
    `memory.torch()` and `memory.view()`; each keeps the memory alive.
    """

    shape: tuple[int, ...]
    dtype: str

    def __new__(
        cls,
        shape: tuple[int, ...],
        dtype: str,
        *,
        huge_pages: Literal["never", "prefer", "require"] = "prefer",
        prefault: bool = False,
    ) -> SharedMemory:
        """Allocates; `kvrail.shared` is the way to it."""
        nbytes = math.prod(shape) * int(_TYPES[dtype][2:])
        memory = super().__new__(cls, nbytes, huge_pages=huge_pages, prefault=prefault)
        memory.shape = shape
        memory.dtype = dtype
        return memory

    @property
    def __array_interface__(self) -> dict[str, Any]:
        return {
            "version": 3,
            "shape": self.shape,
            "typestr": _TYPES[self.dtype],
            "data": (self.address, False),
        }

    def numpy(self) -> Any:
        """A NumPy view."""
        return import_module("numpy").asarray(self)

    def torch(self) -> Any:
        """A torch view."""
        torch = import_module("torch")
        return torch.frombuffer(self.view(), dtype=getattr(torch, self.dtype)).reshape(self.shape)

    def view(self) -> memoryview:
        """The bytes, writable."""
        import ctypes

        array = (ctypes.c_char * self.nbytes).from_address(self.address)
        array._kvrail_memory = self  # type: ignore[attr-defined]  # Kept by its views.
        return memoryview(array).cast("B")

    def __buffer__(self, flags: int, /) -> memoryview:
        """The buffer protocol, from Python 3.12 on."""
        return self.view()

    def __repr__(self) -> str:
        return f"<kvrail.SharedMemory {self.dtype}{list(self.shape)}: {self.nbytes} bytes>"


SharedMemory.__module__ = "kvrail"


def shared(
    shape: int | Sequence[int],
    dtype: Any = "uint8",
    *,
    huge_pages: Literal["never", "prefer", "require"] = "prefer",
    prefault: bool = False,
) -> SharedMemory:
    """Memory that peers of the same host can map: the fastest there is on one host.

    `dtype` is a name ("float16", "bfloat16") or a type of NumPy or torch. With `huge_pages`
    "prefer", they are used where there are any; `prefault` touches every page now, so that no
    transfer pays.
    """
    dims = (shape,) if isinstance(shape, int) else tuple(int(n) for n in shape)
    if any(n < 0 for n in dims):
        raise ValueError(f"a shape has no negative dimensions: {dims}")
    return SharedMemory(dims, _name_of(dtype), huge_pages=huge_pages, prefault=prefault)


def _name_of(dtype: Any) -> str:
    """The name of a type of NumPy, torch or Python."""
    numpy = sys.modules.get("numpy")
    if isinstance(dtype, str):
        name = dtype
    elif type(dtype).__module__ == "torch":
        name = str(dtype).removeprefix("torch.")
    elif numpy is not None:
        name = numpy.dtype(dtype).name
    else:
        name = getattr(dtype, "__name__", str(dtype))
    if name not in _TYPES:
        raise TypeError(f"no shared memory of type {name!r}; there are {', '.join(_TYPES)}")
    return name
