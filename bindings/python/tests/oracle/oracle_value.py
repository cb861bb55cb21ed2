"""Values between the test and a driver: JSON, with names for what JSON cannot say.

The test writes arguments with the small constructors below, a driver turns them into the
implementation's own objects and turns results back. A result never names an implementation: a list
of descriptors is its contents, a handle is "a handle".
"""

from __future__ import annotations

import importlib
from typing import Any

# Every driver maps its memory here, so that an address means the same in each of them.
MEMORY_BASE = 0x2000_0000_0000
MEMORY_STEP = 1 << 20
MEMORY_BYTES = 64 * 1024
AGENTS = ("a", "b", "c")


Operation = dict[str, Any]


def call(on: str, name: str, *args: Any, bind: str | None = None, **kwargs: Any) -> Operation:
    """One operation of a sequence: a call on a slot, whose result another slot may keep."""
    operation: Operation = {"on": on, "call": name, "args": list(args)}
    if kwargs:
        operation["kwargs"] = kwargs
    if bind is not None:
        operation["bind"] = bind
    return operation


def address(agent: str, offset: int = 0) -> int:
    """Where `offset` of an agent's memory is."""
    return MEMORY_BASE + AGENTS.index(agent) * MEMORY_STEP + offset


def ref(slot: str) -> dict[str, Any]:
    """What an earlier operation was bound to."""
    return {"ref": slot}


def member(name: str) -> dict[str, Any]:
    """A member of the enums of `_bindings`, such as `DRAM_SEG`."""
    return {"enum": name}


def tuple_of(*items: Any) -> dict[str, Any]:
    return {"tuple": list(items)}


def octets(value: bytes) -> dict[str, Any]:
    return {"bytes": value.hex()}


def array(rows: list, dtype: str = "uint64", shape: list[int] | None = None, layout: str = "c"):
    """A NumPy array; layout `c`, `f` (Fortran), `strided` (every other row) or `read-only`."""
    return {"array": {"rows": rows, "dtype": dtype, "shape": shape, "layout": layout}}


def other(kind: str, *items: Any) -> dict[str, Any]:
    """One of `bytearray`, `memoryview`, `range`, `set`, `generator`, `dict`, `numpy`, `complex`."""
    return {"other": kind, "items": list(items)}


class Unbound(Exception):
    """A slot that no operation has filled."""


class Decoder:
    """Turns arguments into objects of one implementation."""

    def __init__(self, bindings: Any, slots: dict[str, Any]):
        self._bindings = bindings
        self._slots = slots

    def __call__(self, value: Any) -> Any:
        if isinstance(value, list):
            return [self(item) for item in value]
        if not isinstance(value, dict):
            return value
        if "ref" in value:
            if value["ref"] not in self._slots:
                raise Unbound(value["ref"])
            return self._slots[value["ref"]]
        if "enum" in value:
            return getattr(self._bindings, value["enum"])
        if "tuple" in value:
            return tuple(self(item) for item in value["tuple"])
        if "bytes" in value:
            return bytes.fromhex(value["bytes"])
        if "array" in value:
            return self._array(**value["array"])
        return self._other(value["other"], [self(item) for item in value["items"]])

    @staticmethod
    def _array(rows: list, dtype: str, shape: list[int] | None, layout: str) -> Any:
        # Only here: the drivers import it, what reads this module elsewhere need not have it.
        numpy = importlib.import_module("numpy")
        try:
            made = numpy.array(rows, dtype=dtype)
        except OverflowError:
            # Addresses in an array that is too narrow for them are the caller's mistake to make.
            made = numpy.array(rows, dtype="int64").astype(dtype)
        if shape is not None:
            made = made.reshape(shape)
        if layout == "f":
            made = numpy.asfortranarray(made)
        elif layout == "strided":
            made = numpy.repeat(made, 2, axis=0)[::2]
        elif layout == "read-only":
            made.flags.writeable = False
        return made

    @staticmethod
    def _other(kind: str, items: list) -> Any:
        if kind == "range":
            return range(*items)
        if kind == "generator":
            return (item for item in items)
        if kind == "dict":
            return dict(zip(items[::2], items[1::2], strict=True))
        if kind == "numpy":
            dtype, number = items
            return getattr(importlib.import_module("numpy"), dtype)(number)
        makers = {"bytearray": bytearray, "memoryview": memoryview, "set": set, "complex": complex}
        return makers[kind](*items)


# What the binding's lists are called, and how many elements a descriptor of each has.
LISTS = ("nixlXferDList", "nixlRegDList", "nixlRemoteDList")
ENUMS = ("nixl_mem_t", "nixl_status_t", "nixl_xfer_op_t", "nixl_cost_t", "nixl_thread_sync_t")
HANDLES = ("nixl_prepped_dlist_handle", "nixl_xfer_handle")


def encode(value: Any) -> Any:
    """Turns a result into JSON in which two implementations that behave alike are equal."""
    kind = type(value).__name__
    if value is None or isinstance(value, bool | str) or kind == "int":
        return value
    if kind == "float":
        return {"float": repr(value)}
    if kind in ("bytes", "bytearray"):
        return {kind: value.hex()}
    if kind in ENUMS:
        return {"enum": f"{kind}.{getattr(value, 'name', value)}"}
    if kind in LISTS:
        contents = [encode(value[index]) for index in range(value.descCount())]
        return {"descs": kind, "type": encode(value.getType()), "contents": contents}
    if kind == "nixlXferTelemetry":
        sane = value.startTime > 0 and value.postDuration >= 0 <= value.xferDuration
        return {"bytes": value.totalBytes, "descs": value.descCount, "sane": sane}
    if isinstance(value, list | tuple):
        return {kind: [encode(item) for item in value]}
    if isinstance(value, dict):
        return {"dict": [[encode(key), encode(value[key])] for key in sorted(value, key=repr)]}
    return {"object": kind}
