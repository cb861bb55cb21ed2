"""Serialised lists: kvrail's own, NIXL's pickles, and nothing else."""

from __future__ import annotations

import os
import pickle
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kvrail.nixl import _bindings as bindings
from kvrail.nixl._api import nixl_agent, nixl_agent_config
from kvrail.nixl._interchange import deserialize, serialize

WORDS = st.integers(0, 2**64 - 1)
ROWS = st.lists(st.tuples(WORDS, WORDS, WORDS), max_size=20)
SEGMENTS = [getattr(bindings, f"{name}_SEG") for name in ("DRAM", "VRAM", "BLK", "OBJ", "FILE")]


def field(tag: bytes, value: bytes) -> bytes:
    return tag + struct.pack("<Q", len(value)) + value + b"|"


def state_of_nixl(kind: int, rows: list, named: bool) -> bytes:
    """What NIXL writes for a list, by its documented fields."""
    state = b"nixlSerDes|" + field(b"nixlDList", b"nixlSDList" if named else b"nixlBDList")
    state += field(b"t", struct.pack("<I", kind)) + field(b"n", struct.pack("<Q", len(rows)))
    if named:
        return state + b"".join(field(b"", struct.pack("<QQQ", *row[:3]) + row[3]) for row in rows)
    packed = b"".join(struct.pack("<QQQ", *row) for row in rows)
    return state + (field(b"", packed) if rows else b"")


def pickled(module: str, name: str, state: bytes, protocol: int = 4) -> bytes:
    """What the default pickler makes of an object of that class and state."""
    cls = b"c" + f"{module}\n{name}\n".encode()
    if protocol >= 4:
        cls = b"".join(
            b"\x8c" + bytes([len(text)]) + text.encode() + b"\x94" for text in (module, name)
        )
        cls += b"\x93\x94"
    short = len(state) < 256
    data = b"C" + bytes([len(state)]) if short else b"B" + struct.pack("<I", len(state))
    return b"\x80" + bytes([protocol]) + cls + b")\x81" + data + state + b"b."


@given(rows=ROWS, segment=st.sampled_from(SEGMENTS))
def test_lists_come_back_as_they_were(rows, segment):
    xfer = bindings.nixlXferDList(segment, rows)
    reg = bindings.nixlRegDList(segment, [(*row, b"\xff\x00") for row in rows])
    remote = bindings.nixlRemoteDList(segment, [(*row, "peer") for row in rows])
    for descs in (xfer, reg, remote):
        back = deserialize(serialize(descs))
        assert type(back) is type(descs)
        assert back == descs


@given(
    rows=ROWS,
    kind=st.integers(0, 4),
    module=st.sampled_from(["nixl_cu12._bindings", "nixl_cu13._bindings", "nixl._bindings"]),
    protocol=st.sampled_from([3, 4, 5]),
)
def test_pickles_of_nixl_are_read(rows, kind, module, protocol):
    data = pickled(module, "nixlXferDList", state_of_nixl(kind, rows, False), protocol)
    assert deserialize(data) == bindings.nixlXferDList(SEGMENTS[kind], rows)
    named = [(*row, b"meta|\xff") for row in rows]
    data = pickled(module, "nixlRegDList", state_of_nixl(kind, named, True), protocol)
    assert deserialize(data) == bindings.nixlRegDList(SEGMENTS[kind], named)


class Evil:
    def __reduce__(self):
        return (os.putenv, ("KVRAIL_PICKLE_WAS_RUN", "1"))


STATE = state_of_nixl(0, [(1, 2, 3)], False)


@pytest.mark.parametrize(
    "data",
    [
        pickle.dumps(Evil()),
        pickle.dumps(5),
        pickle.dumps({"a": [1]}),
        pickled("os", "system", STATE),
        pickled("nixl_cu12._bindings", "nixlAgentConfig", STATE),
        pickled("nixl_cu12._bindings", "nixlRegDList", STATE),
        pickled("nixl_cu12._bindings", "nixlXferDList", STATE[:-1]),
        pickled("nixl_cu12._bindings", "nixlXferDList", STATE + b"|"),
        pickled("nixl_cu12._bindings", "nixlXferDList", b""),
        pickled("nixl_cu12._bindings", "nixlXferDList", STATE)[:-1] + b"0.",
        b"\x80",
        b"\x80\x04",
        b"",
        b"rubbish",
    ],
)
def test_everything_else_is_refused_and_not_run(data):
    with pytest.raises(pickle.UnpicklingError):
        deserialize(data)
    assert "KVRAIL_PICKLE_WAS_RUN" not in os.environ


@given(data=st.data())
def test_damaged_bytes_are_a_list_or_an_error(data):
    good = data.draw(
        st.sampled_from(
            [
                pickled("nixl_cu12._bindings", "nixlXferDList", STATE),
                serialize(bindings.nixlXferDList(bindings.DRAM_SEG, [(1, 2, 3), (4, 5, 6)])),
            ]
        )
    )
    damaged = bytearray(good)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(damaged)))
    for some in (bytes(damaged), bytes(damaged[:cut])):
        try:
            descs = deserialize(some)
        except pickle.UnpicklingError:
            continue
        assert descs.descCount() < len(some)


def test_a_peers_list_goes_through_the_agent():
    agent = nixl_agent("serial", nixl_agent_config(backends=[]))
    descs = agent.get_xfer_descs([(4096, 10, 0)], "DRAM")
    assert agent.deserialize_descs(agent.get_serialized_descs(descs)) == descs
    assert pickle.loads(pickle.dumps(descs)) == descs
    for wrong in ("text", 5, None):
        with pytest.raises(TypeError):
            agent.deserialize_descs(wrong)
        with pytest.raises(TypeError):
            agent.get_serialized_descs(wrong)
