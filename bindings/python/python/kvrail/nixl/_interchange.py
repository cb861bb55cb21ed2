"""Serialised descriptor lists: kvrail's own bytes, and the pickles that NIXL makes of its lists.

Bytes from a peer are data, so nothing here runs a pickle. What NIXL's `get_serialized_descs` sends
always has one shape: the class of the list, an empty object of it, its state as bytes. That shape
is recognised opcode by opcode and everything else is refused; the state is read by the native
decoder, which knows NIXL's fields. Memory is bounded by the input.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from . import _bindings as nixlBind

if TYPE_CHECKING:
    from typing import TypeAlias

    DescList: TypeAlias = nixlBind.nixlXferDList | nixlBind.nixlRegDList | nixlBind.nixlRemoteDList

# The opcode PROTO, which every pickle since protocol 2 begins with.
_PICKLE_MAGIC = b"\x80"

# Under these module names NIXL's lists have been pickled, by any of its distributions or by kvrail.
_MODULES = frozenset(
    f"{package}._bindings"
    for package in ("nixl", "nixl_cu12", "nixl_cu13", "nixl_rocm", "kvrail.nixl")
)
_NAMES = frozenset({"nixlXferDList", "nixlRegDList", "nixlRemoteDList"})

_PLUMBING = frozenset({"PROTO", "FRAME", "MEMOIZE", "BINPUT", "LONG_BINPUT"})
_STATE = frozenset({"SHORT_BINBYTES", "BINBYTES", "BINBYTES8"})
_SHAPE = ["class", "EMPTY_TUPLE", "NEWOBJ", "state", "BUILD", "STOP"]


def serialize(descs: Any) -> bytes:
    """The bytes of a list, for `deserialize` at a peer."""
    return nixlBind.serialize_descs(descs)


def deserialize(data: Any) -> DescList:
    """The list of these bytes, kvrail's or a pickle of NIXL's.

    Anything else is an `UnpicklingError`, the error that NIXL has for it, and says why.
    """
    data = bytes(memoryview(data))  # a TypeError for what is not bytes
    name = None
    if data.startswith(_PICKLE_MAGIC):
        name, data = _pickled_state(data)
    try:
        descs = nixlBind.deserialize_descs(data)
    except ValueError as error:
        raise _unreadable(str(error)) from None
    if name not in (None, type(descs).__name__):
        raise _unreadable(f"the state of a pickled {name} is that of a {type(descs).__name__}")
    return descs


def _pickled_state(data: bytes) -> tuple[str, bytes]:
    """The class name and the state in a pickle of one of NIXL's lists."""
    # Only needed for peers that run NIXL.
    import pickletools

    seen: list[str] = []
    names: list[str] = []
    state = b""
    try:
        for opcode, argument, _ in pickletools.genops(data):
            name = opcode.name
            if name in _PLUMBING:
                continue
            if name == "GLOBAL":
                # One opcode up to protocol 3, three from 4 on.
                names += str(argument).split(" ", 1)
                seen.append("class")
            elif name in ("SHORT_BINUNICODE", "BINUNICODE"):
                names.append(str(argument))
            elif name == "STACK_GLOBAL":
                seen.append("class")
            elif name in _STATE:
                state = bytes(argument or b"")
                seen.append("state")
            else:
                seen.append(name)
            if seen != _SHAPE[: len(seen)] or len(names) > 2:
                break
    except Exception as error:
        # `genops` raises several types on bytes that are no pickle.
        raise _unreadable(f"{len(data)} bytes that begin like a pickle are none: {error}") from None
    if len(names) >= 2 and (names[0] not in _MODULES or names[1] not in _NAMES):
        raise _unreadable(
            f"refused a pickle of {names[0]}.{names[1]}: only descriptor lists are read, "
            "and no pickle is run"
        )
    if seen != _SHAPE or len(names) != 2:
        raise _unreadable("refused a pickle that is not of one descriptor list; no pickle is run")
    return names[1], state


def _unreadable(why: str) -> Exception:
    # Costs milliseconds, and is only needed here.
    import pickle

    return pickle.UnpicklingError(why)
