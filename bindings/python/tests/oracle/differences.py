"""Where kvrail.nixl and the real NIXL differ on purpose: the cases, what each does, and why.

`test_differences` asserts both columns, so that a change on either side is seen. The random
sequences do not draw these; what they cannot avoid is in `SAME_MISTAKE` and `MAY_WORK`.
"""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from typing import Any

from oracle_agents import beginning, blocks
from oracle_books import HEARD_BY_NOBODY
from oracle_value import Operation, address, array, call, member, octets, other, ref, tuple_of

# The same mistake under two names, by the real one's. A wrong element inside a list is pybind11's
# failed cast in the real one, a RuntimeError that names no element; here it is what Python says of
# a wrong type, and an index that no list can have is told as one.
SAME_MISTAKE = {"RuntimeError": {"TypeError", "OverflowError", "nixlInvalidParamError"}}

# What is undefined in the real one must be an exception here, except for these, which may also just
# work.
MAY_WORK = {
    "a registration named twice",
    "memory that is no longer registered",
    "parts of a transfer that overlap",
    HEARD_BY_NOBODY,
}

UNDEFINED = "undefined"
"""The real one crashes, hangs or reads memory that is not its: it is not asked."""

HANDLE = {"ok": {"object": "nixl_prepped_dlist_handle"}}
REQUEST = {"ok": {"object": "nixl_xfer_handle"}}
NOTHING = {"ok": None}


def raises(name: str) -> dict[str, str]:
    return {"raises": name}


@dataclass(frozen=True)
class Difference:
    """Operations of which the last is answered differently, and both answers."""

    name: str
    why: str
    operations: list[Operation]
    real: Any
    ours: Any


LIST_BEGINNING = [
    call("api", "nixl_agent", "n", other("dict", "backends", []), bind="n"),
    call("bindings", "nixlXferDList", member("DRAM_SEG"), [tuple_of(1, 2, 3)], bind="x"),
    call("bindings", "nixlRemoteDList", member("DRAM_SEG"), [tuple_of(1, 2, 3, "a")], bind="r"),
]
X_CONTENTS = {
    "descs": "nixlXferDList",
    "type": {"enum": "nixl_mem_t.DRAM_SEG"},
    "contents": [{"tuple": [1, 2, 3]}],
}
R_CONTENTS = X_CONTENTS | {
    "descs": "nixlRemoteDList",
    "contents": [{"tuple": [1, 2, 3, "a"]}],
}

OF_LISTS = [
    Difference(
        "a wrong element of a descriptor is a TypeError",
        "that is what it is; the real one tells of a failed C++ cast and not where",
        [call("x", "addDesc", tuple_of("text", 2, 3))],
        raises("RuntimeError"),
        raises("TypeError"),
    ),
    Difference(
        "an index out of range of a list is an IndexError",
        "the real one reads, or writes, foreign memory",
        [call("x", "__getitem__", 1)],
        UNDEFINED,
        raises("IndexError"),
    ),
    Difference(
        "writing past the end of a list is an IndexError",
        "the real one reads, or writes, foreign memory",
        [call("x", "__setitem__", 100_000, tuple_of(1, 2, 3))],
        UNDEFINED,
        raises("IndexError"),
    ),
    Difference(
        "a list has a length",
        "an addition; with it and the IndexError, iterating over a list ends",
        [call("x", "__len__")],
        raises("AttributeError"),
        {"ok": 1},
    ),
    Difference(
        "a list of remote descriptors can be pickled",
        "an addition, as for the other lists",
        [call("r", "pickled")],
        raises("TypeError"),
        {"ok": R_CONTENTS},
    ),
    Difference(
        "old protocols of pickle work",
        "the real one aborts the process",
        [call("x", "pickled", 0)],
        UNDEFINED,
        {"ok": X_CONTENTS},
    ),
    Difference(
        "only descriptor lists are serialised",
        "the real one pickles anything",
        [call("n", "get_serialized_descs", [1, 2])],
        {"ok": {"opaque": "bytes"}},
        raises("TypeError"),
    ),
    Difference(
        "only descriptor lists are deserialised",
        "the real one runs the pickle of a peer",
        [call("n", "deserialize_descs", octets(pickle.dumps([1, 2])))],
        {"ok": {"list": [1, 2]}},
        raises("UnpicklingError"),
    ),
    Difference(
        "empty bytes are no serialised list",
        "there is one error for bytes that are none",
        [call("n", "deserialize_descs", octets(b""))],
        raises("EOFError"),
        raises("UnpicklingError"),
    ),
    Difference(
        "verify_transfer compares",
        "the real one's comparison is left out of its release builds",
        [call("utils", "verify_transfer", address("a"), address("b"), 16)],
        NOTHING,
        raises("AssertionError"),
    ),
    Difference(
        "only memory of malloc_passthru is freed",
        "the real one corrupts its heap",
        [call("utils", "free_passthru", address("a"))],
        UNDEFINED,
        raises("ValueError"),
    ),
]

AGENTS_BEGINNING = [
    *beginning(),
    call("a", "get", "agent", bind="raw"),
    call("b", "prep_xfer_dlist", "a", blocks("a", [0]), "DRAM", bind="foreign"),
]


def _prepare(*rows: Any, dtype: str = "uint64") -> list[Operation]:
    what = array(list(rows), dtype)
    return [call("a", "prep_xfer_dlist", "NIXL_INIT_AGENT", what, "DRAM", bind="p")]


def _request(indices: Any, *rest: Any) -> list[Operation]:
    sides = ref("a_local"), ref("a_remote")
    return [
        call(
            "a", "make_prepped_xfer", "WRITE", sides[0], indices, sides[1], indices, *rest, bind="q"
        )
    ]


OF_AGENTS = [
    Difference(
        "a descriptor that wraps around the address space is refused",
        "the real one takes it for registered and copies what is not",
        _prepare([address("a", 8), 2**64 - 8, 0]),
        HANDLE,
        raises("nixlNotFoundError"),
    ),
    Difference(
        "a strided row that wraps around is refused",
        "the real one computes with 64 bits that overflow",
        _prepare([address("a"), 16, 0, 2**62, 5]),
        HANDLE,
        raises("nixlNotFoundError"),
    ),
    Difference(
        "a negative stride is refused",
        "the real one takes it modulo 2^64",
        _prepare([address("a", 64), 16, 0, -16, 4], dtype="int64"),
        HANDLE,
        raises("nixlNotFoundError"),
    ),
    Difference(
        "an index beyond 32 bits is refused",
        "the real one cuts it, and copies block 0",
        _request(array([2**32], "int64")),
        REQUEST,
        raises("nixlInvalidParamError"),
    ),
    Difference(
        "indices that are floats are refused",
        "the real one rounds them down",
        _request(array([0.7], "float64")),
        REQUEST,
        raises("ValueError"),
    ),
    Difference(
        "indices that are booleans are refused",
        "a mask is not a list of indices",
        _request(array([True, False], "bool")),
        REQUEST,
        raises("ValueError"),
    ),
    Difference(
        "a released transfer cannot be posted",
        "the real one uses freed memory",
        [*_request([0]), call("q", "release"), call("a", "transfer", ref("q"))],
        UNDEFINED,
        raises("nixlInvalidParamError"),
    ),
    Difference(
        "another agent's transfer cannot be posted",
        "the real one waits for it for ever",
        [call("b", "transfer", ref("h1"))],
        UNDEFINED,
        raises("nixlInvalidParamError"),
    ),
    Difference(
        "a number that is no handle is refused",
        "the real one takes it for a pointer",
        [call("raw", "getXferStatus", 1234)],
        UNDEFINED,
        raises("nixlInvalidParamError"),
    ),
    Difference(
        "zero is no handle of a list",
        "nothing is released",
        [call("raw", "releasedDlistH", 0)],
        {"ok": {"enum": "nixl_status_t.NIXL_SUCCESS"}},
        raises("nixlInvalidParamError"),
    ),
    Difference(
        "a registration named twice in one list is not found the second time",
        "the real one crashes",
        [
            call("a", "register_memory", [tuple_of(address("a"), 64, 0, "")], "DRAM", bind="one"),
            call("a", "get_reg_descs", [tuple_of(address("a"), 64, 0, "")] * 2, "DRAM", bind="two"),
            call("a", "deregister_memory", ref("two")),
        ],
        UNDEFINED,
        raises("nixlNotFoundError"),
    ),
    Difference(
        "memory at the end of the address space is refused",
        "the real one hangs",
        [call("a", "register_memory", [tuple_of(2**64 - 4096, 4096, 0, "")], "DRAM")],
        UNDEFINED,
        raises("nixlBackendError"),
    ),
    Difference(
        "memory of no bytes cannot be registered",
        "there is nothing that a peer could reach",
        [call("a", "register_memory", [tuple_of(address("a", 4096), 0, 0, "")], "DRAM")],
        {
            "ok": {
                "descs": "nixlRegDList",
                "type": {"enum": "nixl_mem_t.DRAM_SEG"},
                "contents": [{"tuple": [address("a", 4096), 0, 0, {"bytes": ""}]}],
            }
        },
        raises("nixlBackendError"),
    ),
    Difference(
        "an empty message is found once",
        "the documented meaning; the real one never takes it out",
        [
            call("a", "send_notif", "b", octets(b"")),
            call("b", "check_remote_xfer_done", "a", octets(b"")),
            call("b", "check_remote_xfer_done", "a", octets(b"")),
        ],
        {"ok": True},
        {"ok": False},
    ),
    Difference(
        "a message can be sent through a named backend",
        "the documented meaning; the real one hands a number where a list is wanted",
        [call("a", "send_notif", "b", octets(b"by UCX"), "UCX")],
        raises("TypeError"),
        NOTHING,
    ),
    Difference(
        "the method of an estimate is named",
        "the real one compares an enumeration with a number",
        [call("a", "cost_method", ref("h1"))],
        {"ok": "UNKNOWN"},
        {"ok": "ANALYTICAL_BACKEND"},
    ),
    Difference(
        "memory of a device that is not there is not offered",
        "without a GPU none of it can be registered, by neither",
        [call("a", "get_plugin_mem_types", "UCX")],
        {"ok": {"list": ["DRAM_SEG", "VRAM_SEG"]}},
        {"ok": {"list": ["DRAM_SEG"]}},
    ),
    Difference(
        "every backend that is listed can be created",
        "the real one lists plug-ins whose libraries are missing, and stops at the first",
        [call("api", "nixl_agent", "all", None, True)],
        raises("nixlBackendError"),
        {"ok": {"object": "nixl_agent"}},
    ),
    Difference(
        "a list over memory that was deregistered makes no request",
        "the real one makes and posts it, over memory that may be another's by then",
        [
            call("b", "deregister_memory", ref("reg_b")),
            call("b", "make_prepped_xfer", "WRITE", ref("b_local"), [0], ref("b_remote"), [0]),
        ],
        UNDEFINED,
        raises("nixlNotFoundError"),
    ),
    Difference(
        "a part of metadata is refused, and does no harm",
        "the real one forgets the peer, and never takes its metadata again",
        [
            call("driver", "cut", ref("md_b"), -1, bind="part"),
            call("a", "add_remote_agent", ref("part")),
            call("a", "check_remote_metadata", "b"),
        ],
        {"ok": False},
        {"ok": True},
    ),
]
