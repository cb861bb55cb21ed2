"""Random sequences of calls on agents: what a caller of NIXL may do over few names, so that the
calls meet.

Two agents that know each other, a third one for files. What the two implementations answer
differently on purpose is not drawn here; it has cases of its own in `differences`.
"""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st
from oracle_value import Operation, address, array, call, octets, other, ref, tuple_of

BLOCK = 256
BLOCKS = 16

# Mostly right: a sequence in which everything is refused compares little.
MEM_TYPES = st.sampled_from(["DRAM"] * 24 + ["cpu", "VRAM", "FILE", "OBJ", "dram", None])
LAYOUTS = st.sampled_from(["c"] * 4 + ["f", "strided", "read-only"])
BACKENDS = st.sampled_from(
    [[]] * 20 + [["UCX"]] * 4 + [["NOPE"], ["POSIX"], "UCX", tuple_of("UCX")]
)
MESSAGES = st.sampled_from(
    ["", "text", "é\0x", octets(b""), octets(b"done"), octets(b"do\0\xff"), octets(b"x" * 8000)]
)
WRONG_MESSAGES = st.sampled_from([None, 5])


def beginning() -> list[Operation]:
    """Two agents with memory that know each other, the first with telemetry: where most sequences
    start.
    """
    telemetry = other("dict", "capture_telemetry", True)
    return [
        call("api", "nixl_agent", "a", telemetry, bind="a"),
        call("api", "nixl_agent", "b", bind="b"),
        *(
            call(
                agent,
                "register_memory",
                [tuple_of(address(agent), BLOCK * BLOCKS * 2, 0, "")],
                "DRAM",
                bind=f"reg_{agent}",
            )
            for agent in "ab"
        ),
        *(call(agent, "get_agent_metadata", bind=f"md_{agent}") for agent in "ab"),
        call("a", "add_remote_agent", ref("md_b")),
        call("b", "add_remote_agent", ref("md_a")),
        *prepared("a", "b"),
        *prepared("b", "a"),
        request("a", "WRITE", [0, 1], [2, 3], "one", bind="h0"),
        request("a", "READ", [4, 5, 6], [9, 8, 7], octets(b"done"), bind="h1"),
        request("b", "WRITE", [10], [10], bind="h2"),
        # An agent for files; the number of a file means the same file in every driver.
        call("api", "nixl_agent", "c", other("dict", "backends", ["POSIX"]), bind="c"),
        call("c", "register_memory", [tuple_of(address("c"), 8192, 0, "")], "DRAM", bind="reg_c"),
        call("c", "register_memory", [tuple_of(0, 8192, 200, "")], "FILE", bind="reg_file"),
        call("c", "get_xfer_descs", [tuple_of(address("c"), 100, 0)], "DRAM", bind="x_c"),
        call("c", "get_xfer_descs", [tuple_of(0, 100, 200)], "FILE", bind="x_file"),
    ]


def prepared(agent: str, peer: str) -> list[Operation]:
    """Both sides of an agent's transfers to a peer."""
    return [
        call(agent, "prep_xfer_dlist", name, blocks(whose, range(BLOCKS)), "DRAM", bind=slot)
        for name, whose, slot in (
            ("NIXL_INIT_AGENT", agent, f"{agent}_local"),
            (peer, peer, f"{agent}_remote"),
        )
    ]


def request(agent: str, way: str, ours: Any, theirs: Any, *rest: Any, bind: str) -> Operation:
    """A request over both sides of `prepared`."""
    near, far = ref(f"{agent}_local"), ref(f"{agent}_remote")
    return call(agent, "make_prepped_xfer", way, near, ours, far, theirs, *rest, bind=bind)


def blocks(agent: str, indices: Any, size: int = BLOCK) -> list[Any]:
    """Blocks of an agent's memory as tuples; the upper half of it is for loopback."""
    return [tuple_of(address(agent, index * BLOCK), size, 0) for index in indices]


NAMES = st.sampled_from(["a", "b", "b", octets(b"b"), "c", "nobody", "", None])
PEERS = {"a": "b", "b": "a", "c": "a"}
RANGES = st.sampled_from(
    [
        (0, 2048),
        (2048, 2048),
        (1024, 2048),
        (0, 100),
        (16384, 512),
        (16896, 512),
        (0, 8192),
    ]
)


@st.composite
def registrations(draw: Any, agent: str) -> Any:
    chosen = draw(st.lists(RANGES, min_size=1, max_size=2))
    device = draw(st.sampled_from([0] * 9 + [3]))
    if draw(st.integers(0, 3)) == 0:
        return array([[address(agent, start), length, device] for start, length in chosen])
    return [tuple_of(address(agent, start), length, device, "") for start, length in chosen]


@st.composite
def descriptors(draw: Any, agent: str) -> Any:
    """What `prep_xfer_dlist` takes: blocks in the registered part, sometimes outside, in one of the
    forms.
    """
    start = draw(st.sampled_from([0, 0, 0, 1, BLOCKS, 2 * BLOCKS - 2, 2 * BLOCKS]))
    count = draw(st.integers(1, 5))
    form = draw(st.integers(0, 5))
    if form <= 1:
        return blocks(
            agent, range(start, start + count), draw(st.sampled_from([BLOCK, BLOCK, 64, 0]))
        )
    at = address(agent, start * BLOCK)
    if form == 2:
        return array(
            [[at + index * BLOCK, BLOCK, 0] for index in range(count)], layout=draw(LAYOUTS)
        )
    if form <= 4:
        stride = draw(st.sampled_from([BLOCK, BLOCK, 2 * BLOCK, 64, 0]))
        row = [
            at,
            draw(st.sampled_from([BLOCK, 128, 0])),
            0,
            stride,
            draw(st.sampled_from([count, count, 0])),
        ]
        return array(
            [row] * draw(st.integers(1, 2)),
            draw(st.sampled_from(["uint64", "int64", "int32"])),
            layout=draw(LAYOUTS),
        )
    return draw(
        st.sampled_from(
            [array([[at, BLOCK, 0, BLOCK]]), [], None, ref(f"reg_{agent}"), ref(f"x_{agent}")]
        )
    )


INDICES = st.one_of(
    st.lists(st.integers(0, 4), min_size=1, max_size=4, unique=True),
    st.lists(st.integers(-1, BLOCKS), max_size=4),
    st.lists(st.integers(0, 4), min_size=1, max_size=3, unique=True).flatmap(
        lambda chosen: st.sampled_from(["int32", "int64", "uint32", "uint8"]).map(
            lambda dtype: array(chosen, dtype)
        )
    ),
    st.sampled_from(
        [
            array([0, 1], "int64", layout="strided"),
            array([[0, 1]], "int32"),
            other("range", 3),
            tuple_of(0, 2),
            None,
            "01",
            [0.5],
            ["0"],
            [2**32],
        ]
    ),
)
SLOTS = {"a": ["h0", "h1"], "b": ["h2"], "c": ["h3"]}


@st.composite
def agent_operations(draw: Any) -> Operation:
    agent = draw(st.sampled_from(["a"] * 6 + ["b"] * 3 + ["c"]))
    peer = PEERS[agent]
    family = draw(
        st.sampled_from(
            [
                "memory",
                "metadata",
                "prepared",
                "request",
                "request",
                "run",
                "run",
                "run",
                "notification",
                "backend",
                "file",
                "file",
                "look",
            ]
        )
    )
    if agent == "c" and family == "metadata":
        # It reaches nobody.
        family = "file"
    return draw(globals()[f"_{family}"](agent, peer))


@st.composite
def _memory(draw: Any, agent: str, _peer: str) -> Operation:
    choice = draw(st.integers(0, 3))
    if choice == 0:
        return call(
            agent,
            "register_memory",
            draw(registrations(agent)),
            draw(MEM_TYPES),
            draw(BACKENDS),
            bind=f"reg_{agent}",
        )
    if choice == 1:
        return call(agent, "get_reg_descs", draw(registrations(agent)), "DRAM", bind=f"reg_{agent}")
    if choice == 2:
        return call(
            agent, "get_xfer_descs", draw(descriptors(agent)), draw(MEM_TYPES), bind=f"x_{agent}"
        )
    what = draw(
        st.sampled_from(
            [ref(f"reg_{agent}"), ref(f"reg_{agent}"), ref("reg_a"), ref(f"x_{agent}"), None, []]
        )
    )
    return call(agent, "deregister_memory", what, draw(BACKENDS))


@st.composite
def _metadata(draw: Any, agent: str, peer: str) -> Operation:
    choice = draw(st.integers(0, 7))
    if choice == 0:
        return call(agent, "get_agent_metadata", bind=f"md_{agent}")
    if choice == 1:
        descs = draw(st.sampled_from([ref(f"reg_{agent}"), ref(f"x_{agent}"), None]))
        return call(
            agent,
            "get_partial_agent_metadata",
            descs,
            draw(st.booleans()),
            draw(BACKENDS),
            bind=f"md_{agent}",
        )
    if choice <= 3:
        garbage = [
            octets(b""),
            octets(b"garbage"),
            octets(b"nixlSerDes|"),
            octets(bytes(100)),
            "text",
            None,
            5,
        ]
        return call(
            agent,
            "add_remote_agent",
            draw(st.sampled_from([ref(f"md_{peer}")] * 6 + [ref(f"md_{agent}")] + garbage)),
        )
    if choice == 4:
        return call(agent, "remove_remote_agent", draw(NAMES))
    if choice == 5:
        return call(agent, "make_connection", draw(NAMES), draw(BACKENDS))
    what = draw(
        st.sampled_from([ref(f"x_{peer}"), ref(f"x_{peer}"), ref(f"reg_{peer}"), [1], None])
    )
    return call(agent, "check_remote_metadata", draw(NAMES), what)


@st.composite
def _prepared(draw: Any, agent: str, peer: str) -> Operation:
    if draw(st.booleans()):
        name = draw(st.sampled_from(["NIXL_INIT_AGENT"] * 4 + ["", octets(b"NIXL_INIT_AGENT")]))
        return call(
            agent,
            "prep_xfer_dlist",
            name,
            draw(descriptors(agent)),
            draw(MEM_TYPES),
            draw(BACKENDS),
            bind=f"{agent}_local",
        )
    name, whose = draw(
        st.sampled_from([(peer, peer)] * 4 + [(agent, agent), ("nobody", peer), (None, peer)])
    )
    return call(
        agent,
        "prep_xfer_dlist",
        name,
        draw(descriptors(whose)),
        draw(MEM_TYPES),
        draw(BACKENDS),
        bind=f"{agent}_remote",
    )


@st.composite
def _request(draw: Any, agent: str, peer: str) -> Operation:
    direction = draw(st.sampled_from(["WRITE", "WRITE", "READ", "READ", "write", None]))
    message = draw(st.one_of(MESSAGES, MESSAGES, WRONG_MESSAGES))
    slot = draw(st.sampled_from(SLOTS[agent]))
    if draw(st.integers(0, 2)):
        sides = [ref(f"{agent}_local"), ref(f"{agent}_remote")]
        if draw(st.integers(0, 9)) == 0:
            sides = draw(
                st.sampled_from(
                    [
                        sides[::-1],
                        [sides[0]] * 2,
                        [sides[1]] * 2,
                        [5, sides[1]],
                        [sides[0], ref("a_remote")],
                    ]
                )
            )
        ours = draw(INDICES)
        theirs = ours if draw(st.integers(0, 3)) else draw(INDICES)
        return call(
            agent,
            "make_prepped_xfer",
            direction,
            sides[0],
            ours,
            sides[1],
            theirs,
            message,
            draw(BACKENDS),
            draw(st.booleans()),
            bind=slot,
        )
    ours, theirs = draw(
        st.sampled_from(
            [(ref("x_l"), ref("x_r"))] * 5
            + [(ref("x_l"), None), (ref("reg_a"), ref("x_r")), ([], []), (ref("x_r"), ref("x_l"))]
        )
    )
    name = draw(
        st.sampled_from(
            [peer] * 4 + [agent, octets(peer.encode()), "nobody", "", "NIXL_INIT_AGENT"]
        )
    )
    return call(
        agent, "initialize_xfer", direction, ours, theirs, name, message, draw(BACKENDS), bind=slot
    )


@st.composite
def _run(draw: Any, agent: str, _peer: str) -> Operation:
    own = [ref(slot) for slot in SLOTS[agent]]
    handle = draw(st.sampled_from(own * 12 + [ref("h0"), ref("h2"), ref("a_local"), None, 5]))
    name = draw(
        st.sampled_from(
            ["transfer"] * 5
            + [
                "check_xfer_state",
                "get_xfer_telemetry",
                "query_xfer_backend",
                "estimate_xfer_cost",
                "release",
            ]
        )
    )
    if name == "transfer":
        return call(
            agent, name, handle, *draw(st.lists(st.one_of(MESSAGES, WRONG_MESSAGES), max_size=1))
        )
    if name == "release":
        which = draw(st.sampled_from([f"{agent}_local", f"{agent}_remote", "h0", "h1"]))
        name = "release_dlist_handle" if which.startswith(agent) else "release_xfer_handle"
        return call(which, "release") if draw(st.booleans()) else call(agent, name, ref(which))
    return call(agent, name, handle)


@st.composite
def _notification(draw: Any, agent: str, peer: str) -> Operation:
    choice = draw(st.integers(0, 5))
    if choice <= 1:
        name = draw(st.sampled_from([peer] * 5 + [octets(peer.encode()), agent, "nobody", None]))
        return call(agent, "send_notif", name, draw(st.one_of(MESSAGES, MESSAGES, WRONG_MESSAGES)))
    if choice <= 3:
        return call(
            agent,
            draw(st.sampled_from(["get_new_notifs", "update_notifs"])),
            *draw(st.lists(BACKENDS, max_size=1)),
        )
    tag = draw(
        st.sampled_from(
            [octets(b"do"), octets(b"one"), octets(b""), octets(b"nothing"), octets(b"\xff")]
        )
    )
    return call(
        agent,
        "check_remote_xfer_done",
        draw(st.sampled_from([peer, peer, "nobody", octets(peer.encode())])),
        tag,
        [],
        draw(st.booleans()),
    )


@st.composite
def _backend(draw: Any, agent: str, _peer: str) -> Operation:
    if draw(st.booleans()):
        return call(
            agent,
            "create_backend",
            draw(st.sampled_from(["UCX", "POSIX", "NOPE", "", "ucx", None, 5])),
            draw(st.sampled_from([other("dict"), other("dict", "x", 1), None])),
        )
    if draw(st.booleans()):
        name = draw(st.sampled_from(["get_plugin_params", "get_backend_params"]))
        return call(agent, name, draw(st.sampled_from(["UCX", "POSIX", "NOPE"])))
    name = draw(st.sampled_from(["get_plugin_mem_types", "get_backend_mem_types"]))
    return call(agent, name, draw(st.sampled_from(["POSIX", "NOPE"])))


@st.composite
def _file(draw: Any, _agent: str, _peer: str) -> Operation:
    """Files and memory of the agent for files."""
    choice = draw(st.integers(0, 6))
    at = draw(st.sampled_from([0, 0, 100, 4096, 8000, 9000]))
    length = draw(st.sampled_from([100, 192, 4096]))
    if choice == 0:
        number = draw(st.sampled_from([200, 200, 200, 201]))
        mem = draw(st.sampled_from(["FILE"] * 5 + ["DRAM"]))
        return call("c", "get_xfer_descs", [tuple_of(at, length, number)], mem, bind="x_file")
    if choice == 1:
        descs = [tuple_of(address("c", at), length, 0)]
        return call("c", "get_xfer_descs", descs, "DRAM", bind="x_c")
    if choice <= 3:
        name = draw(st.sampled_from(["c"] * 8 + ["a", ""]))
        told = draw(st.sampled_from([""] * 8 + ["told"]))
        way = draw(st.sampled_from(["WRITE", "READ"]))
        return call("c", "initialize_xfer", way, ref("x_c"), ref("x_file"), name, told, bind="h3")
    if choice <= 5:
        names = ["transfer"] * 4 + ["check_xfer_state", "query_xfer_backend", "estimate_xfer_cost"]
        return call("c", draw(st.sampled_from(names)), ref("h3"))
    paths = draw(st.lists(st.sampled_from(["/dev/null", "/", "/no/such", ""]), max_size=3))
    backend = draw(st.sampled_from(["POSIX"] * 5 + ["NOPE"]))
    return call("c", "query_memory", [tuple_of(0, 0, 0, path) for path in paths], backend, "FILE")


@st.composite
def _look(draw: Any, agent: str, peer: str) -> Operation:
    choice = draw(st.integers(0, 3))
    if choice == 0:
        return call("driver", "memory", agent)
    if choice == 1:
        return call(agent, "get", draw(st.sampled_from(["name", "notifs", "nothing"])))
    # The lists that requests are initialised from; the one drawn last decides.
    side, whose = draw(
        st.sampled_from([("x_l", agent), ("x_r", peer), ("x_r", peer), (f"x_{peer}", peer)])
    )
    return call(agent, "get_xfer_descs", draw(descriptors(whose)), "DRAM", bind=side)


def _sequence(operations: list[Operation]) -> list[Operation]:
    ready = [
        call("a", "get_xfer_descs", blocks("a", [1, 2, 5]), "DRAM", bind="x_l"),
        call("a", "get_xfer_descs", blocks("b", [4, 5, 9]), "DRAM", bind="x_r"),
    ]
    ending = [call("driver", "memory", agent) for agent in "abc"]
    ending.append(call("driver", "file", 200))
    ending += [call(agent, "get_new_notifs") for agent in "ab"]
    return [*beginning(), *ready, *operations, *ending]


AGENT_SEQUENCES = st.lists(agent_operations(), min_size=25, max_size=60).map(_sequence)
