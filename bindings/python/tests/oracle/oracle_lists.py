"""Random operations on descriptor lists: every way to make one, rightly and wrongly, and all that
they can do.
"""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st
from oracle_value import Operation, array, call, member, octets, other, ref, tuple_of

# Mostly right: a sequence in which everything is refused compares little.
MEM_TYPES = st.sampled_from(["DRAM"] * 8 + ["cpu", "VRAM", "FILE", "OBJ", "dram", None])

NUMBERS = st.one_of(
    st.integers(0, 2**64 - 1),
    st.integers(0, 10),
    st.booleans(),
    st.sampled_from(
        [
            -1,
            2**64,
            1.5,
            "x",
            None,
            octets(b"x"),
            other("numpy", "uint64", 7),
            other("numpy", "int8", 3),
        ]
    ),
)
METAS = st.sampled_from(["", "m", "é", octets(b"\xff\x00"), 5, None])
DTYPES = st.sampled_from(
    ["uint64"] * 4 + ["int64"] * 3 + ["uint32", "int32", "float64", ">u8", "bool", "object", "int8"]
)
LAYOUTS = st.sampled_from(["c"] * 4 + ["f", "strided", "read-only"])
INDICES = st.one_of(
    st.integers(-2, 4), st.sampled_from(["x", None, 0.0, True, other("numpy", "int64", 0)])
)

# Each slot keeps one class of lists; what makes one from anything is bound elsewhere, for it may be
# None.
CLASSES = {"l0": "nixlXferDList", "l1": "nixlRegDList", "l2": "nixlRemoteDList"}
GETTERS = {"l0": "get_xfer_descs", "l1": "get_reg_descs", "l2": "get_remote_descs"}
WIDTHS = {"l0": 3, "l1": 4, "l2": 4}
NO_LISTS = [None, 5, "text", octets(b"b"), other("bytearray", 3), tuple_of(tuple_of(1, 2, 3))]


@st.composite
def rows(draw: Any, width: int) -> Any:
    """A tuple that is often a descriptor of `width` elements."""
    last = METAS if width == 4 else NUMBERS
    right = st.tuples(
        *[st.integers(0, 2**40)] * 3, *[st.sampled_from(["", "m", "agent"])] * (width - 3)
    )
    wrong = st.one_of(
        st.tuples(NUMBERS, NUMBERS, NUMBERS, *[last] * (width - 3)),
        st.lists(NUMBERS, max_size=6).map(tuple),
    )
    items = draw(st.one_of(right, right, right, wrong))
    made: Any = tuple_of(*items)
    return draw(st.sampled_from([made] * 9 + [list(items)]))


@st.composite
def arrays(draw: Any, widths: tuple[int, ...] = (3, 3, 3, 2, 4, 5, 6)) -> Any:
    width, count = draw(st.sampled_from(widths)), draw(st.integers(0, 3))
    numbers = draw(st.lists(st.integers(0, 100), min_size=width * count, max_size=width * count))
    shape = draw(st.sampled_from([[count, width]] * 8 + [[count * width], [count, width, 1]]))
    return array(numbers, draw(DTYPES), shape, draw(LAYOUTS))


@st.composite
def list_operations(draw: Any) -> Operation:
    on = draw(st.sampled_from(sorted(CLASSES)))
    families = [_made, _made, _gotten, _gotten, _gotten, _changed, _changed, _item, _asked, _sent]
    return draw(draw(st.sampled_from(families))(on, WIDTHS[on]))


@st.composite
def _made(draw: Any, on: str, width: int) -> Operation:
    contents = draw(st.lists(rows(width), max_size=4) | arrays() | st.integers(-1, 3))
    if on == "l0" and isinstance(contents, int):
        # That many descriptors of uninitialised memory.
        contents = min(contents, 0)
    mem = draw(st.sampled_from(["DRAM_SEG", "VRAM_SEG", "FILE_SEG"]))
    return call("bindings", CLASSES[on], member(mem), contents, bind=on)


@st.composite
def _gotten(draw: Any, on: str, width: int) -> Operation:
    lists = [ref("l0"), ref("l1"), ref("l2"), ref("got")]
    what = draw(st.lists(rows(width), max_size=3) | arrays() | st.sampled_from(NO_LISTS + lists))
    return call("n", GETTERS[on], what, draw(MEM_TYPES), bind="got")


@st.composite
def _changed(draw: Any, on: str, width: int) -> Operation:
    name = draw(st.sampled_from(["addDesc", "append", "remDesc"]))
    return call(on, name, draw(INDICES if name == "remDesc" else rows(width)))


@st.composite
def _item(draw: Any, on: str, width: int) -> Operation:
    if draw(st.booleans()):
        return call(on, "__getitem__", draw(INDICES))
    return call(on, "__setitem__", draw(INDICES), draw(rows(width)))


@st.composite
def _asked(draw: Any, on: str, width: int) -> Operation:
    names = ["clear", "descCount", "isEmpty", "getType", "trim", "__hash__", "equals", "index"]
    name = draw(st.sampled_from(names))
    if name == "equals":
        others = [ref("l0"), ref("l1"), ref("l2"), ref("got"), 5]
        return call(on, name, draw(st.sampled_from(others)))
    if name == "index":
        return call(on, name, draw(rows(width)))
    return call(on, name)


@st.composite
def _sent(draw: Any, _on: str, _width: int) -> Operation:
    """There and back, by pickle and by the agent's own means; both know only these two classes."""
    on = draw(st.sampled_from(["l0", "l1"]))
    if draw(st.booleans()):
        return call(on, "pickled", draw(st.integers(2, 5)), bind=on)
    if draw(st.booleans()):
        return call("n", "get_serialized_descs", ref(on), bind="sent")
    return call("n", "deserialize_descs", ref("sent"), bind="got")


def _with_lists(operations: list[Operation]) -> list[Operation]:
    two = [tuple_of(1, 2, 3), tuple_of(4, 5, 6)]
    ready = [
        call("api", "nixl_agent", "n", other("dict", "backends", []), bind="n"),
        call("bindings", "nixlXferDList", member("DRAM_SEG"), two, bind="l0"),
        call("bindings", "nixlRegDList", member("DRAM_SEG"), [tuple_of(1, 2, 3, "m")], bind="l1"),
        call("bindings", "nixlRemoteDList", member("DRAM_SEG"), bind="l2"),
        call("n", "get_serialized_descs", ref("l0"), bind="sent"),
    ]
    return [*ready, *operations]


LIST_SEQUENCES = st.lists(list_operations(), min_size=8, max_size=30).map(_with_lists)
