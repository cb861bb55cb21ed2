"""Serialised descriptor lists: kvrail's own bytes, and the pickles that NIXL makes of its lists.

Bytes from a peer are data, so nothing here runs a pickle. What NIXL's `get_serialized_descs` sends
always has one
shape: the class of the list, an empty object of it, its state as bytes. That shape is recognised
    opcode by opcode, everything else is refused, and the state is read by the decoder below. Memory
    is bounded by the input.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

from . import _bindings as nixlBind

if TYPE_CHECKING:
    from typing import TypeAlias

    DescList: TypeAlias = nixlBind.nixlXferDList | nixlBind.nixlRegDList | nixlBind.nixlRemoteDList

_PICKLE_MAGIC = 0x80  # the opcode PROTO, which every pickle since protocol 2 begins with

# Under these module names NIXL's lists have been pickled, by any of its distributions or by kvrail.
_MODULES = frozenset(
    f"{package}._bindings"
    for package in ("nixl", "nixl_cu12", "nixl_cu13", "nixl_rocm", "kvrail.nixl")
)
_PLUMBING = frozenset({"PROTO", "FRAME", "MEMOIZE", "BINPUT", "LONG_BINPUT"})
_STATE = frozenset({"SHORT_BINBYTES", "BINBYTES", "BINBYTES8"})

_BASIC = struct.Struct("<QQQ")
_SEGMENTS = (
    nixlBind.DRAM_SEG,
    nixlBind.VRAM_SEG,
    nixlBind.BLK_SEG,
    nixlBind.OBJ_SEG,
    nixlBind.FILE_SEG,
)


def serialize(descs: Any) -> bytes:
    """The bytes of a list, for `deserialize` at a peer."""
    return nixlBind.serialize_descs(descs)


def deserialize(data: bytes) -> DescList:
    """The list of these bytes, kvrail's or a pickle of NIXL's; anything else is an UnpicklingError
    that says why.
    """
    view = memoryview(data)  # a TypeError for what is not bytes
    if view.nbytes == 0 or view.cast("B")[0] != _PICKLE_MAGIC:
        return _own(bytes(view))
    name, state = _pickled_state(bytes(view))
    return _decode(name, state)


def _pickled_state(data: bytes) -> tuple[str, bytes]:
    """The class name and the state in a pickle of one of NIXL's lists."""
    # Only needed for peers that run NIXL.
    import pickletools

    seen: list[str] = []
    strings: list[str] = []
    state = b""
    try:
        for opcode, argument, _ in pickletools.genops(data):
            name = opcode.name
            if name in _PLUMBING:
                continue
            if name == "GLOBAL":
                # One opcode up to protocol 3, three from 4 on.
                strings += str(argument).split(" ", 1)
                seen.append("class")
            elif name in ("SHORT_BINUNICODE", "BINUNICODE"):
                strings.append(str(argument))
            elif name == "STACK_GLOBAL":
                seen.append("class")
            elif name in _STATE:
                state = bytes(argument or b"")
                seen.append("state")
            else:
                seen.append(name)
            if len(seen) > 6 or len(strings) > 2:
                break
    except Exception as error:
        # `genops` raises several types on bytes that are no pickle.
        raise _unreadable(f"{len(data)} bytes that begin like a pickle are none: {error}") from None
    if len(strings) == 2 and strings[0] not in _MODULES:
        raise _unreadable(
            f"refused a pickle of {strings[0]}.{strings[1]}: only descriptor lists are read, "
            "and no pickle is run"
        )
    if seen != ["class", "EMPTY_TUPLE", "NEWOBJ", "state", "BUILD", "STOP"] or len(strings) != 2:
        raise _unreadable("refused a pickle that is not of one descriptor list; no pickle is run")
    return strings[1], state


def _decode(name: str, state: bytes) -> DescList:
    """The list of a class and NIXL's serialised state."""
    if not state.startswith(_Fields.MAGIC):
        # A list of kvrail's own, pickled: the state is what `serialize` makes.
        return _own(state)
    fields = _Fields(state)
    layout = fields.take(b"nixlDList")
    (segment,) = struct.unpack("<I", fields.take(b"t", 4))
    (count,) = struct.unpack("<Q", fields.take(b"n", 8))
    if segment >= len(_SEGMENTS):
        raise _unreadable(f"memory type {segment} of a serialised list is unknown")
    descs: DescList
    if name == "nixlXferDList" and layout == b"nixlBDList":
        # An empty list has no table at all.
        table = fields.take(b"", count * _BASIC.size) if count else b""
        descs = nixlBind.nixlXferDList(_SEGMENTS[segment], list(_BASIC.iter_unpack(table)))
    elif name == "nixlRegDList" and layout == b"nixlSDList":
        fields.require(count * (_BASIC.size + _Fields.OVERHEAD))
        rows = (fields.take(b"") for _ in range(count))
        descs = nixlBind.nixlRegDList(_SEGMENTS[segment], [_with_meta(row) for row in rows])
    else:
        raise _unreadable(f"a serialised {name} with the layout {layout!r} is unknown")
    fields.end()
    return descs


def _with_meta(row: bytes) -> tuple[int, int, int, bytes]:
    if len(row) < _BASIC.size:
        raise _unreadable(
            f"a serialised descriptor of {len(row)} bytes is shorter than {_BASIC.size}"
        )
    address, length, device = _BASIC.unpack_from(row)
    return address, length, device, row[_BASIC.size :]


def _own(data: bytes) -> DescList:
    """The list of bytes that `serialize` made."""
    try:
        return nixlBind.deserialize_descs(data)
    except ValueError as error:
        raise _unreadable(str(error)) from None


def _unreadable(why: str) -> Exception:
    """The error that NIXL's callers know from it, for bytes that are no descriptor list."""
    # Costs milliseconds, and is only needed here.
    import pickle

    return pickle.UnpicklingError(why)


class _Fields:
    """Reads NIXL's serialised form: fields of a tag, a length of 8 bytes, the bytes, and a bar."""

    MAGIC = b"nixlSerDes|"
    OVERHEAD = 9

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = len(self.MAGIC)

    def require(self, nbytes: int) -> None:
        """Raise unless at least this many bytes are left."""
        left = len(self._data) - self._at
        if nbytes > left:
            raise _unreadable(f"a serialised list ends {nbytes - left} bytes early")

    def take(self, tag: bytes, length: int | None = None) -> bytes:
        """The bytes of the next field, which has this tag and, if given, this length."""
        self.require(len(tag) + 8)
        if not self._data.startswith(tag, self._at):
            raise _unreadable(f"no field {tag!r} at byte {self._at} of a serialised list")
        start = self._at + len(tag) + 8
        (stated,) = struct.unpack_from("<Q", self._data, start - 8)
        if length is not None and stated != length:
            raise _unreadable(
                f"field {tag!r} of a serialised list has {stated} bytes, not {length}"
            )
        self._at = start
        self.require(stated + 1)
        end = start + stated
        if self._data[end : end + 1] != b"|":
            raise _unreadable(f"field {tag!r} of a serialised list does not end at byte {end}")
        self._at = end + 1
        return self._data[start:end]

    def end(self) -> None:
        """Raise unless everything was read."""
        if self._at != len(self._data):
            raise _unreadable(f"{len(self._data) - self._at} bytes follow a serialised list")
