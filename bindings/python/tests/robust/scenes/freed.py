"""Memory that goes away under a transfer: unmapped before, between and while; on this side, on the
other and in one process."""

from __future__ import annotations

import ctypes
import mmap
import threading
from typing import Any

import numpy as np
from memory import Memory, pattern, wrong_bytes
from role import Stage, finish, run

SIZE = 8 << 20
BLOCK = 16 << 10
_MAP_FIXED = 0x10

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_long,
]
_libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


class Mapping:
    """Anonymous pages that are mapped and unmapped by address, as an allocator does."""

    def __init__(self, nbytes: int):
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        found = _libc.mmap(None, nbytes, mmap.PROT_READ | mmap.PROT_WRITE, flags, -1, 0)
        assert found not in (None, ctypes.c_void_p(-1).value), ctypes.get_errno()
        self.address: int = found
        self.nbytes = nbytes

    def fill(self, *name: object) -> None:
        content = pattern(self.nbytes, *name)
        ctypes.memmove(self.address, content.ctypes.data, self.nbytes)

    def free(self, offset: int = 0) -> None:
        """The pages go; the addresses stay reserved, so that no other allocation makes them valid
        again."""
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_FIXED
        start = self.address + offset
        assert _libc.mmap(start, self.nbytes - offset, 0, flags, -1, 0) == start

    def protect(self) -> None:
        assert _libc.mprotect(self.address, self.nbytes, mmap.PROT_READ) == 0


def _rows(base: int, backwards: bool = False) -> Any:
    rows = np.array([(base + at, BLOCK, 0) for at in range(0, SIZE, BLOCK)], dtype=np.uint64)
    return np.ascontiguousarray(rows[::-1] if backwards else rows)


def _attempt(agent: Any, operation: str, near: int, far: int, remote: Any) -> str:
    """`DONE`, `ERR`, or the name of the exception."""
    try:
        local = agent.get_xfer_descs(_rows(near), "DRAM")
        handle = agent.initialize_xfer(
            operation, local, agent.get_xfer_descs(_rows(far, True), "DRAM"), remote
        )
        state = agent.transfer(handle)
        if state == "PROC":
            state = finish(agent, handle)
        agent.release_xfer_handle(handle)
    except TimeoutError:
        raise
    except Exception as error:
        return type(error).__name__
    return str(state)


def _expected(name: str) -> Any:
    return pattern(SIZE, name).reshape(-1, BLOCK)[::-1].reshape(-1)


def owner(stage: Stage) -> int:
    """The other side: offers memory, frees it when told to, and ends as it should."""
    agent = stage.api.nixl_agent("owner")
    freed, kept, readonly = Mapping(SIZE), Memory(SIZE), Mapping(SIZE)
    freed.fill("owner")
    readonly.fill("readonly")
    for memory in (freed, kept, readonly):
        agent.register_memory([(memory.address, SIZE, 0, "")], "DRAM")
    stage.links["mover"].send(
        {
            "agent": agent.get_agent_metadata(),
            "freed": freed.address,
            "kept": kept.address,
            "readonly": readonly.address,
        }
    )
    agent.add_remote_agent(stage.links["mover"].receive())
    while (order := stage.links["mover"].receive(60)) != "end":
        if order == "half":
            freed.free(SIZE // 2)
            freed.nbytes = SIZE // 2
        elif order == "all":
            freed.free()
        elif order == "protect":
            readonly.protect()
        elif order == "check":
            kept.expect(0, _expected("mover"))
            stage.links["mover"].send(kept.wrong_bytes())
            continue
        stage.links["mover"].send("so it is")
    content = np.frombuffer(ctypes.string_at(readonly.address, SIZE), np.uint8)
    return wrong_bytes(content, pattern(SIZE, "readonly"))


def mover(stage: Stage) -> dict[str, Any]:
    agent = stage.api.nixl_agent("mover")
    memory = Memory(SIZE)
    memory.fill("mover")
    mapping, scratch = Mapping(SIZE), Mapping(SIZE)
    mapping.fill("mapping")
    for some in (memory, mapping, scratch):
        agent.register_memory([(some.address, SIZE, 0, "")], "DRAM")
    theirs = stage.links["owner"].receive()
    stage.links["owner"].send(agent.get_agent_metadata())
    remote = agent.add_remote_agent(theirs["agent"])

    def order(what: str) -> Any:
        stage.links["owner"].send(what)
        return stage.links["owner"].receive()

    seen: dict[str, Any] = {}

    def note(what: str, operation: str, near: int, far: int, where: Any = remote) -> None:
        print("trying", what, flush=True)
        seen[what] = _attempt(agent, operation, near, far, where)

    note("both mapped", "WRITE", mapping.address, theirs["freed"])
    order("half")
    note("half of the target unmapped", "WRITE", memory.address, theirs["freed"])
    note("half of the source of a read unmapped", "READ", scratch.address, theirs["freed"])
    order("all")
    note("the target unmapped", "WRITE", memory.address, theirs["freed"])
    note("the source of a read unmapped", "READ", scratch.address, theirs["freed"])
    mapping.free(SIZE // 2)
    note("half of the source unmapped", "WRITE", mapping.address, theirs["kept"])
    note("half of the target of a read unmapped", "READ", mapping.address, theirs["kept"])
    note("half of it unmapped, to itself", "WRITE", mapping.address, scratch.address, "mover")
    note("half of it unmapped, from itself", "READ", mapping.address, scratch.address, "mover")
    mapping.nbytes = SIZE // 2
    mapping.free()
    note("the source unmapped", "WRITE", mapping.address, theirs["kept"])
    note("the source unmapped, to itself", "WRITE", mapping.address, memory.address, "mover")
    order("protect")
    note("a target that may only be read", "WRITE", memory.address, theirs["readonly"])
    note("it is read all the same", "READ", scratch.address, theirs["readonly"])

    # Freed by another thread while transfers go on.
    racing = Mapping(SIZE)
    racing.fill("racing")
    agent.register_memory([(racing.address, SIZE, 0, "")], "DRAM")
    timer = threading.Timer(0.02, racing.free)
    timer.start()
    ends = set()
    for _ in range(10_000):
        end = _attempt(agent, "WRITE", racing.address, scratch.address, "mover")
        end2 = _attempt(agent, "WRITE", racing.address, theirs["kept"], remote)
        ends |= {end, end2}
        if end != "DONE" and end2 != "DONE":
            break
    timer.join()
    seen["freed while transfers go on"] = sorted(ends - {"DONE"})

    note("afterwards", "WRITE", memory.address, theirs["kept"])
    wrong = order("check")
    memory.expect(0, pattern(SIZE, "mover"))
    stage.links["owner"].send("end")
    return {"seen": seen, "wrong_bytes": wrong}


if __name__ == "__main__":
    run(owner, mover)
