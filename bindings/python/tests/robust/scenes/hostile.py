"""Bytes from a peer that wishes us ill, or from a cable that lost some: metadata and serialised
descriptors.

Each mutation is of something real. What comes of it is an error of NIXL's kind (or, for pickles, of
pickle's), or nothing at all, where the bytes that changed carry no meaning; and the peer that the
agent knew before is as good as it was.
"""

from __future__ import annotations

import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from memory import Memory, pattern
from role import Stage, finish, run

SIZE = 1 << 16
MUTATIONS = int(os.environ.get("KVRAIL_HOSTILE_MUTATIONS", "1000"))


@st.composite
def mutated(draw: st.DrawFn, originals: list[bytes]) -> bytes:
    """One of the originals, with some of: bits turned, a piece cut out, repeated, replaced, the end
    lost, lengths made absurd."""
    data = bytearray(draw(st.sampled_from(originals)))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        length = draw(st.integers(0, 64))
        kind = draw(
            st.sampled_from(["bits", "cut", "end", "repeat", "replace", "number", "splice"])
        )
        if kind == "bits" and data:
            data[at] ^= draw(st.integers(1, 255))
        elif kind == "cut":
            del data[at : at + length]
        elif kind == "end":
            del data[at:]
        elif kind == "repeat":
            data[at:at] = data[at : at + length] * draw(st.integers(1, 50))
        elif kind == "replace":
            data[at : at + length] = draw(st.binary(max_size=64))
        elif kind == "number":
            value = draw(st.sampled_from([0, 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1]))
            data[at : at + 8] = struct.pack("<Q", value)
        else:
            other = draw(st.sampled_from(originals))
            data[at:] = other[at:]
    return bytes(data)


def _each(strategy: st.SearchStrategy[bytes], check: Callable[[bytes], None], count: int) -> None:
    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        phases=(Phase.explicit, Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    @seed(20261121)
    @given(strategy)
    def test(data: bytes) -> None:
        check(data)

    test()


class World:
    def __init__(self, stage: Stage):
        self.bind = stage.bindings
        self.agent = stage.api.nixl_agent("careful")
        self.peer = stage.api.nixl_agent("peer")
        self.memory, self.theirs = Memory(SIZE), Memory(SIZE)
        self.memory.fill("hostile")
        self.agent.register_memory([(self.memory.address, SIZE, 0, "")], "DRAM")
        self.registered = self.peer.register_memory(
            [(self.theirs.address + at, 4096, 0, "") for at in range(0, SIZE, 4096)], "DRAM"
        )
        self.metadata = self.peer.get_agent_metadata()
        errors = [getattr(self.bind, name) for name in dir(self.bind) if name.endswith("Error")]
        self.errors = tuple(errors)
        assert len(self.errors) >= 12

    def works(self) -> None:
        agent = self.agent
        name = agent.add_remote_agent(self.metadata)
        near = agent.get_xfer_descs([(self.memory.address, 4096, 0)], "DRAM")
        far = agent.get_xfer_descs([(self.theirs.address + 8192, 4096, 0)], "DRAM")
        self.theirs.bytes[:] = 0xDB
        handle = agent.initialize_xfer("WRITE", near, far, name)
        agent.transfer(handle)
        assert finish(agent, handle) == "DONE"
        agent.release_xfer_handle(handle)
        self.theirs.expect(8192, pattern(4096, "hostile"))
        assert self.theirs.wrong_bytes() == 0


def metadata(stage: Stage) -> dict[str, int]:
    world = World(stage)
    world.works()
    agent, peer = world.agent, world.peer
    empty = world.bind.nixlRegDList(world.bind.DRAM_SEG)
    originals = [
        world.metadata,
        peer.get_partial_agent_metadata(world.registered, inc_conn_info=True),
        peer.get_partial_agent_metadata(world.registered, inc_conn_info=False),
        peer.get_partial_agent_metadata(empty, inc_conn_info=True),
    ]
    counts = {"refused": 0, "taken": 0}

    def check(data: bytes) -> None:
        try:
            name = agent.add_remote_agent(data)
        except world.errors:
            counts["refused"] += 1
        else:
            assert isinstance(name, bytes)
            counts["taken"] += 1
            if name != b"peer":
                agent.remove_remote_agent(name.decode(errors="surrogateescape"))
        # An earlier state of the peer is never lost to a later message that is broken.
        assert agent.check_remote_metadata("peer"), "the peer is forgotten"

    _each(mutated(originals), check, MUTATIONS)
    for cut in range(len(world.metadata)):
        check(world.metadata[:cut])
    agent.remove_remote_agent("peer")
    world.works()
    return counts


class Evil:
    """A pickle of it, loaded, would leave a file behind."""

    def __init__(self, call: Callable[..., Any], *arguments: Any):
        self._how = (call, arguments)

    def __reduce__(self) -> Any:
        return self._how


def _programs(stage: Stage, marker: Path) -> dict[str, bytes]:
    """Pickles that run something when loaded by the standard library."""
    touch = f"open({str(marker)!r}, 'w')"
    evil: dict[str, Any] = {
        "a shell command": Evil(os.system, f"touch {marker}"),
        "eval": Evil(eval, touch),
        "exec": Evil(exec, touch),
        "open": Evil(open, str(marker), "w"),
        "in a list": [Evil(eval, touch)],
        "as a key": {Evil(eval, touch): 1},
    }
    programs = {
        f"{name}, protocol {protocol}": pickle.dumps(value, protocol)
        for name, value in evil.items()
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1)
    }
    module = stage.bindings.nixlXferDList.__module__
    argument = touch.encode()

    def by_hand(name: str, *lines: bytes) -> None:
        programs[name] = b"\x80\x04" + b"".join(lines) + b"."

    def text(value: bytes) -> bytes:
        return b"X" + struct.pack("<I", len(value)) + value

    for known in (module, "nixl_cu12._bindings", "nixl._bindings", "kvrail.nixl._bindings"):
        where = text(known.encode())
        for path in (
            b"nixlXferDList.__init__.__globals__",
            b"nixlXferDList.__reduce_ex__",
            b"nixlXferDList.__class__.__base__.__subclasses__",
            b"nixlAgent",
            b"__builtins__",
            b"os.system",
            b"sys.modules",
            b"numpy.load",
            b"pickle.loads",
        ):
            name = f"{path.decode()} of {known}"
            by_hand(name, where, text(path), b"\x93", text(argument), b"\x85R")
    by_hand("the attributes of a class", b"cbuiltins\ngetattr\n", text(b"x"), b"\x85R")
    by_hand("a persistent object", b"Px\n")
    by_hand("an extension", b"\x82\x01")
    by_hand("INST", b"(" + text(argument) + b"ibuiltins\neval\n")
    by_hand("OBJ", b"(cbuiltins\neval\n" + text(argument) + b"o")
    return programs


def pickles(stage: Stage, directory: str) -> dict[str, Any]:
    marker = Path(directory, "executed")
    programs = _programs(stage, marker)
    # The canary: loaded without care, one of them does run.
    pickle.loads(programs["eval, protocol 4"])
    canary = marker.exists()
    marker.unlink(missing_ok=True)

    world = World(stage)
    agent = world.agent
    executed, accepted = [], []
    for name, program in programs.items():
        try:
            accepted.append(f"{name}: {agent.deserialize_descs(program)!r}")
        except Exception:
            pass
        if marker.exists():
            executed.append(name)
            marker.unlink()

    rows = [(world.memory.address + 64 * i, 64, 0) for i in range(100)]
    near = agent.get_xfer_descs(rows, "DRAM")
    registered = world.registered
    originals = [agent.get_serialized_descs(descs) for descs in (near, registered)]
    pickled = [pickle.dumps(descs) for descs in (near, registered)]
    lists = (world.bind.nixlXferDList, world.bind.nixlRegDList)
    for data, descs in zip(originals, (near, registered), strict=True):
        assert agent.deserialize_descs(data) == descs
    for data, descs in zip(pickled, (near, registered), strict=True):
        # By the standard library's loader, which callers use among processes that trust each other.
        assert pickle.loads(data) == descs
    allowed = (*world.errors, pickle.UnpicklingError, EOFError, ValueError, TypeError)
    counts = {"refused": 0, "taken": 0}

    def check(data: bytes) -> None:
        try:
            found = agent.deserialize_descs(data)
        except allowed:
            counts["refused"] += 1
        else:
            counts["taken"] += 1
            assert isinstance(found, lists), found
        assert not marker.exists()

    _each(mutated(originals + pickled), check, MUTATIONS)
    for original in originals:
        for cut in range(len(original)):
            check(original[:cut])
    return {"canary": canary, "executed": executed, "accepted": accepted, **counts}


if __name__ == "__main__":
    run(metadata, pickles)
