"""Ray's direct transport of tensors: the consumer reads what the producer described, and objects
are freed by the collector."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import tensors
from memory import Memory, pattern
from role import Stage, run, until

COLUMNS = 200


def _agent(stage: Stage, actor: str) -> Any:
    tensors.install()
    config = stage.api.nixl_agent_config(backends=["UCX"])
    return stage.api.nixl_agent(actor, config)


class Stored:
    """An object of the store: its registration ends with it."""

    def __init__(self, agent: Any, sizes: list[int], name: str, fill: bool):
        self.memory = [Memory(rows * COLUMNS * 2, before=64 + 8 * rows) for rows in sizes]
        if fill:
            for number, part in enumerate(self.memory):
                part.fill("ray", name, number)
        self.tensors = [tensors.tensor(part.bytes, COLUMNS) for part in self.memory]
        registered = agent.register_memory(self.tensors)
        weakref.finalize(self, agent.deregister_memory, registered)


def producer(stage: Stage, objects: dict[str, list[int]]) -> int:
    agent = _agent(stage, "actor-0123456789abcdef")
    store = {name: Stored(agent, sizes, name, fill=True) for name, sizes in objects.items()}
    for name, stored in store.items():
        descs = agent.get_xfer_descs(stored.tensors)
        stage.links["consumer"].send(
            {
                "name": name,
                "nixl_serialized_descs": agent.get_serialized_descs(descs),
                "nixl_agent_meta": agent.get_agent_metadata(),
            }
        )
    for _ in objects:
        del store[stage.links["consumer"].receive()]
        gc.collect()
    return len(store)


def consumer(stage: Stage, objects: dict[str, list[int]]) -> dict[str, Any]:
    agent = _agent(stage, "actor-fedcba9876543210")
    wrong = 0
    for _ in objects:
        meta = stage.links["producer"].receive()
        name = meta["name"]
        stored = Stored(agent, objects[name], name, fill=False)
        assert isinstance(meta["nixl_serialized_descs"], bytes)
        remote_descs = agent.deserialize_descs(meta["nixl_serialized_descs"])
        assert remote_descs.descCount() == len(objects[name])
        local_descs = agent.get_xfer_descs(stored.tensors)
        remote = agent.add_remote_agent(meta["nixl_agent_meta"])
        handle = agent.initialize_xfer("READ", local_descs, remote_descs, remote, b"UUID")
        if agent.transfer(handle) == "ERR":
            raise RuntimeError("the transfer was not posted")

        def state(handle: Any = handle) -> bool:
            now = agent.check_xfer_state(handle)
            if now == "ERR":
                raise RuntimeError("the transfer failed")
            return bool(now == "DONE")

        until(state, "the object")
        agent.release_xfer_handle(handle)
        agent.remove_remote_agent(remote)
        del handle
        for number, part in enumerate(stored.memory):
            part.expect(0, pattern(part.nbytes, "ray", name, number))
        wrong += sum(part.wrong_bytes() for part in stored.memory)
        del stored
        gc.collect()
        stage.links["producer"].send(name)
    # Handles that nobody released go with the collector, and the agent after them.
    forgotten = Memory(4096)
    agent.register_memory([(forgotten.address, 4096, 0, "")], "DRAM")
    half = agent.get_xfer_descs([(forgotten.address, 2048, 0)], "DRAM")
    other = agent.get_xfer_descs([(forgotten.address + 2048, 2048, 0)], "DRAM")
    agent.initialize_xfer("WRITE", half, other, agent.name)
    agent.prep_xfer_dlist("", half)
    gc.collect()
    return {"wrong_bytes": wrong, "leaked": len(agent._leaked_xfer_handles)}


if __name__ == "__main__":
    run(producer, consumer)
