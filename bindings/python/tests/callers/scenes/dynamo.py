"""Dynamo's connector: an operation is described to the peer as text, keyword arguments everywhere,
notifications kept until asked for."""

from __future__ import annotations

import base64
import json
import uuid
import zlib
from typing import Any

import tensors
from memory import Memory, pattern
from role import PATIENCE_S, Stage, finish, run, until

ROWS = 96
COLUMNS = 160
ROW_BYTES = 2 * COLUMNS


class Descriptor:
    """Some memory, by tensor or by (address, size, device), registered once."""

    def __init__(self, agent: Any, memory: Memory, by_tensor: bool):
        self._agent = agent
        self._tensor = tensors.tensor(memory.bytes, COLUMNS)
        self._where = (memory.address, memory.nbytes, 0)
        if by_tensor:
            self.registered = agent.register_memory(reg_list=self._tensor)
        else:
            rows = [(*self._where, "")]
            descs = agent.get_reg_descs(descs=rows, mem_type="cpu")
            self.registered = agent.register_memory(reg_list=descs)

    def rows(self, first: int, count: int) -> tuple[int, int, int]:
        address, _, device = self._where
        return (address + first * ROW_BYTES, count * ROW_BYTES, device)

    def tensor_rows(self, first: int, count: int) -> tensors.Tensor:
        return self._tensor[first : first + count]

    def close(self) -> None:
        self._agent.deregister_memory(dereg_list=self.registered)


def _text(agent: Any, **fields: Any) -> str:
    metadata = base64.b64encode(zlib.compress(agent.get_agent_metadata(), 6)).decode()
    return json.dumps({"nixl_metadata": f"b64:{metadata}", **fields})


def _meet(agent: Any, request: dict[str, Any]) -> str:
    packed = base64.b64decode(request["nixl_metadata"].removeprefix("b64:"))
    name = agent.add_remote_agent(metadata=zlib.decompress(packed))
    return name.decode() if isinstance(name, bytes) else str(name)


def worker(stage: Stage, by_tensor: bool) -> dict[str, Any]:
    """Offers memory to be read and memory to be written, and waits until it is told of both."""
    tensors.install()
    agent = stage.api.nixl_agent(agent_name=f"worker-{uuid.uuid4()}")
    source, sink = Memory(ROWS * ROW_BYTES), Memory(ROWS * ROW_BYTES)
    source.fill("dynamo", "source")
    descriptors = [Descriptor(agent, memory, by_tensor) for memory in (source, sink)]
    keys = {"read": str(uuid.uuid4()), "write": str(uuid.uuid4())}
    stage.links["frontend"].send(
        _text(
            agent,
            notification_keys=keys,
            readable=[descriptors[0].rows(first, 3) for first in range(1, 90, 4)],
            writable=[descriptors[1].rows(first, 2) for first in range(2, 90, 3)],
        )
    )
    frontend = _meet(agent, json.loads(stage.links["frontend"].receive()))

    def told(operation: str) -> bool:
        notifs = agent.update_notifs(backends=[])
        return keys[operation].encode() in notifs.get(frontend, [])

    until(lambda: told("read"), "the notification of the read")
    source.bytes[:] = 0  # freed at the notification
    until(lambda: told("write"), "the notification of the write")
    for place, first in enumerate(range(2, 90, 3)):
        content = pattern(ROWS * ROW_BYTES, "dynamo", "frontend")
        sink.expect(first * ROW_BYTES, content[place * 2 * ROW_BYTES :][: 2 * ROW_BYTES])
    wrong = sink.wrong_bytes()
    kept = agent.update_notifs()[frontend]
    stage.links["frontend"].send("seen")
    for descriptor in descriptors:
        descriptor.close()
    agent.remove_remote_agent(agent=frontend)
    return {"wrong_bytes": wrong, "kept": sorted(kept) == sorted(k.encode() for k in keys.values())}


def frontend(stage: Stage, by_tensor: bool) -> dict[str, Any]:
    tensors.install()
    agent = stage.api.nixl_agent(agent_name=f"frontend-{uuid.uuid4()}")
    into, out_of = Memory(ROWS * ROW_BYTES), Memory(ROWS * ROW_BYTES)
    out_of.fill("dynamo", "frontend")
    descriptors = [Descriptor(agent, memory, by_tensor) for memory in (into, out_of)]
    request = json.loads(stage.links["worker"].receive())
    remote = _meet(agent, request)
    stage.links["worker"].send(_text(agent))

    def operation(kind: str, local: list[tuple[int, int]], descriptor: Descriptor) -> str:
        rows = request["readable" if kind == "READ" else "writable"]
        remote_rows = [tuple(row) for row in rows]
        if by_tensor:
            parts = [descriptor.tensor_rows(first, count) for first, count in local]
            local_descs = agent.get_xfer_descs(descs=parts)
        else:
            places = [descriptor.rows(first, count) for first, count in local]
            local_descs = agent.get_xfer_descs(descs=places, mem_type="cpu")
        handle = agent.initialize_xfer(
            operation=kind,
            local_descs=local_descs,
            remote_descs=agent.get_xfer_descs(descs=remote_rows, mem_type="DRAM"),
            remote_agent=remote,
            notif_msg=request["notification_keys"][kind.lower()].encode(),
        )
        state = agent.transfer(handle=handle, notif_msg=b"")
        if state == "PROC":
            state = finish(agent, handle)
        agent.release_xfer_handle(handle=handle)
        return str(state)

    reads = list(range(1, 90, 4))
    states = [operation("READ", [(first + 2, 3) for first in reads], descriptors[0])]
    truth = pattern(ROWS * ROW_BYTES, "dynamo", "source")
    for first in reads:
        run_bytes = truth[first * ROW_BYTES : (first + 3) * ROW_BYTES]
        into.expect((first + 2) * ROW_BYTES, run_bytes)
    wrong = into.wrong_bytes()
    writes = [(2 * place, 2) for place in range(len(range(2, 90, 3)))]
    states.append(operation("WRITE", writes, descriptors[1]))
    stage.links["worker"].receive(PATIENCE_S)
    if by_tensor:
        # Columns are no memory of one piece: refused by giving nothing back, which the caller
        # checks.
        assert agent.get_xfer_descs(descs=descriptors[0].tensor_rows(0, 3).transposed) is None
    agent.remove_remote_agent(agent=remote)
    for descriptor in descriptors:
        descriptor.close()
    return {"wrong_bytes": wrong, "states": states}


if __name__ == "__main__":
    run(worker, frontend)
