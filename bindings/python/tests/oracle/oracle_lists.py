"""Random operations on descriptor lists: every way to make one, rightly and wrongly, and all that they can do."""

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
KINDS = {"nixlXferDList": 3, "nixlRegDList": 4, "nixlRemoteDList": 4}
GETTERS = {"get_xfer_descs": 3, "get_reg_descs": 4, "get_remote_descs": 4}


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
    slot = st.sampled_from(["l0", "l1", "l2"])
    on, kind = draw(slot), draw(st.sampled_from(sorted(KINDS)))
    width = KINDS[kind]
    mem = draw(st.sampled_from(["DRAM_SEG", "VRAM_SEG", "FILE_SEG"]))
    choice = draw(st.integers(0, 11))
    if choice <= 1:
        contents = draw(st.lists(rows(width), max_size=4) | arrays() | st.integers(-1, 3))
        if kind == "nixlXferDList" and isinstance(contents, int):
            # That many descriptors of uninitialised memory.
            contents = draw(st.sampled_from([0, -1]))
        return call("bindings", kind, member(mem), contents, bind=on)
    if choice <= 4:
        getter = draw(st.sampled_from(sorted(GETTERS)))
        what = draw(
            st.lists(rows(GETTERS[getter]), max_size=3)
            | arrays()
            | st.sampled_from(
                [
                    None,
                    5,
                    "text",
                    octets(b"b"),
                    other("bytearray", 3),
                    tuple_of(tuple_of(1, 2, 3)),
                    ref("l0"),
                    ref("l1"),
                ]
            )
        )
        return call("n", getter, what, draw(MEM_TYPES), bind=on)
    if choice <= 6:
        return call(on, draw(st.sampled_from(["addDesc", "append", "index"])), draw(rows(width)))
    if choice == 7:
        index = draw(st.one_of(st.integers(-2, 4), st.sampled_from(["x", None, 0.0, True])))
        return call(on, "remDesc", index)
    if choice == 8:
        index = draw(
            st.one_of(
                st.integers(-2, 4),
                st.sampled_from(["x", None, 0.0, True, other("numpy", "int64", 0)]),
            )
        )
        return (
            call(on, "__getitem__", index)
            if draw(st.booleans())
            else call(on, "__setitem__", index, draw(rows(width)))
        )
    if choice == 9:
        return call(
            on,
            draw(
                st.sampled_from(
                    [
                        "clear",
                        "descCount",
                        "isEmpty",
                        "getType",
                        "trim",
                        "__getstate__",
                        "__len__",
                        "__hash__",
                    ]
                )
            ),
        )
    if choice == 10:
        return call(on, "equals", draw(st.sampled_from([ref("l0"), ref("l1"), ref("l2"), 5])))
    if draw(st.booleans()):
        return call(on, "pickled", draw(st.integers(2, 5)), bind=draw(slot))
    return (
        call("n", "get_serialized_descs", ref(on), bind="s")
        if draw(st.booleans())
        else call("n", "deserialize_descs", ref("s"), bind=on)
    )


def _with_lists(operations: list[Operation]) -> list[Operation]:
    two = [tuple_of(1, 2, 3), tuple_of(4, 5, 6)]
    ready = [
        call("api", "nixl_agent", "n", other("dict", "backends", []), bind="n"),
        call("bindings", "nixlXferDList", member("DRAM_SEG"), two, bind="l0"),
        call("bindings", "nixlRegDList", member("DRAM_SEG"), [tuple_of(1, 2, 3, "m")], bind="l1"),
        call("bindings", "nixlRemoteDList", member("DRAM_SEG"), bind="l2"),
        call("n", "get_serialized_descs", ref("l0"), bind="s"),
    ]
    return [*ready, *operations]


LIST_SEQUENCES = st.lists(list_operations(), min_size=8, max_size=30).map(_with_lists)
