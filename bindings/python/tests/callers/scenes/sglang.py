"""SGLang: prefill writes KV with one request per chunk; HiCache keeps pages in files.

Backends are created by name with string parameters, threads share an agent in the strict mode,
descriptor lists are Nx3 arrays and what arrived is told over SGLang's own side channel, never by a
notification.
"""

from __future__ import annotations

import os
import queue
import threading
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from memory import Memory, pattern
from role import Stage, finish, run

LAYERS = 4
TOKEN_BYTES = 384
TOKENS = 512


def _agent(stage: Stage, backend: str, params: dict[str, str]) -> Any:
    api = stage.api
    strict = api.nixl_thread_sync_t.NIXL_THREAD_SYNC_STRICT
    agent = api.nixl_agent(
        str(uuid.uuid4()), api.nixl_agent_config(backends=[], num_threads=2, sync_mode=strict)
    )
    if backend not in agent.get_plugin_list():
        raise ValueError(f"backend {backend} not found in {agent.get_plugin_list()}")
    agent.create_backend(backend, params)
    return agent


def _pages(base: int, tokens: list[int], run_tokens: int) -> npt.NDArray[np.uint64]:
    """Nx3 of runs of tokens, as SGLang groups contiguous indices."""
    starts = np.asarray(tokens, dtype=np.uint64) * np.uint64(TOKEN_BYTES) + np.uint64(base)
    lengths = np.full(len(tokens), run_tokens * TOKEN_BYTES, dtype=np.uint64)
    return np.column_stack((starts, lengths, np.zeros(len(tokens), dtype=np.uint64)))


def prefill(
    stage: Stage, backend: str, params: dict[str, str], chunks: list[list[list[int]]]
) -> int:
    """Each chunk: [source tokens, target tokens]. Two workers take chunks from a queue and write
    them."""
    agent = _agent(stage, backend, params)
    layers = [Memory(TOKENS * TOKEN_BYTES) for _ in range(LAYERS)]
    for number, layer in enumerate(layers):
        layer.fill("sglang", number)
    registered = agent.register_memory([(m.address, m.nbytes, 0, "") for m in layers], "DRAM")
    if not registered:
        raise RuntimeError("registration failed")
    bootstrap = stage.links["decode"].receive()
    peer = agent.add_remote_agent(bootstrap["agent_metadata"])
    peer = peer.decode() if isinstance(peer, bytes) else peer
    assert peer == bootstrap["agent_name"]

    # What tells SGLang whether strided descriptors are to be had.
    try:
        agent.prep_xfer_dlist("", np.zeros((2, 4), dtype=np.uint64), "DRAM")
    except TypeError:
        pass
    else:
        raise AssertionError("Nx4 descriptors were accepted")

    todo: queue.Queue[list[list[int]] | None] = queue.Queue()
    ended: queue.Queue[str] = queue.Queue()

    def transfer_worker() -> None:
        while (chunk := todo.get()) is not None:
            try:
                source, target = chunk
                handles = []
                for layer, base in zip(layers, bootstrap["kv_data_ptrs"], strict=True):
                    local = agent.get_xfer_descs(_pages(layer.address, source, 2), "DRAM")
                    remote = agent.get_xfer_descs(_pages(base, target, 2), "DRAM")
                    handle = agent.initialize_xfer("WRITE", local, remote, peer)
                    if not handle:
                        raise RuntimeError("no transfer was made")
                    if agent.transfer(handle) == "ERR":
                        raise RuntimeError("posting failed")
                    handles.append(handle)
                states = {finish(agent, handle) for handle in handles}
                for handle in handles:
                    agent.release_xfer_handle(handle)
                ended.put(",".join(states))
            except BaseException as error:
                ended.put(f"{type(error).__name__}: {error}")

    workers = [threading.Thread(target=transfer_worker, daemon=True) for _ in range(2)]
    for worker in workers:
        worker.start()
    for chunk in chunks:
        todo.put(chunk)
    for _ in workers:
        todo.put(None)
    states = [ended.get(timeout=20) for _ in chunks]
    assert set(states) == {"DONE"}, states
    stage.links["decode"].send("all chunks are there")
    stage.links["decode"].receive()
    agent.remove_remote_agent(peer)
    agent.deregister_memory(registered)
    return len(states) * LAYERS


def decode(
    stage: Stage, backend: str, params: dict[str, str], chunks: list[list[list[int]]]
) -> dict[str, Any]:
    agent = _agent(stage, backend, params)
    layers = [Memory(TOKENS * TOKEN_BYTES, before=64 * (i + 1)) for i in range(LAYERS)]
    addresses = [(layer.address, layer.nbytes, 0, "") for layer in layers]
    registered = agent.register_memory(addresses, "DRAM")
    stage.links["prefill"].send(
        {
            "agent_name": agent.name,
            "agent_metadata": agent.get_agent_metadata(),
            "kv_data_ptrs": [layer.address for layer in layers],
        }
    )
    for number, layer in enumerate(layers):
        truth = pattern(TOKENS * TOKEN_BYTES, "sglang", number)
        for source, target in chunks:
            for a, b in zip(source, target, strict=True):
                run_bytes = truth[a * TOKEN_BYTES : (a + 2) * TOKEN_BYTES]
                layer.expect(b * TOKEN_BYTES, run_bytes)
    stage.links["prefill"].receive(30)
    wrong = sum(layer.wrong_bytes() for layer in layers)
    notifs = agent.get_new_notifs()
    stage.links["prefill"].send("seen")
    agent.deregister_memory(registered)
    return {"wrong_bytes": wrong, "notifs": sum(map(len, notifs.values()))}


def hicache(stage: Stage, directory: str, plant: bool) -> dict[str, Any]:
    """Pages of host memory to files and back, by a native agent that the caller made itself."""
    api, bind = stage.api, stage.bindings
    name = f"hicache_nixl_{uuid.uuid4().hex[:8]}"
    agent = api.nixl_agent(name, api.nixl_agent_config(backends=[]))
    config = bind.nixlAgentConfig()
    config.useProgThread = True
    config.syncMode = bind.NIXL_THREAD_SYNC_STRICT
    agent.agent = bind.nixlAgent(name, config)
    assert "POSIX" in agent.get_plugin_list()
    options = agent.get_plugin_params("POSIX")
    agent.create_backend("POSIX", {key: "false" for key in options if key.startswith("use_")})
    assert set(agent.get_backend_mem_types("POSIX")) == {"DRAM_SEG", "FILE_SEG"}

    pages, page_bytes = 6, 12288
    paths = [Path(directory, f"page_{page}.bin") for page in range(pages)]
    before = agent.query_memory([(0, 0, 0, str(path)) for path in paths], "POSIX", mem_type="FILE")
    assert before == [None] * pages
    kept = Memory(pages * page_bytes)
    kept.fill("hicache")
    host = agent.register_memory([(kept.address, kept.nbytes, 0, "")], "DRAM", backends=["POSIX"])
    descriptors = [os.open(path, os.O_RDWR | os.O_CREAT, 0o600) for path in paths]
    for fd in descriptors:
        os.truncate(fd, 0)
    files = agent.get_reg_descs(
        [(0, page_bytes, fd, str(path)) for fd, path in zip(descriptors, paths, strict=True)],
        "FILE",
    )
    agent.register_memory(files)

    def move(direction: str, rows: list[tuple[int, int, int]]) -> str:
        local = agent.get_xfer_descs(rows, "DRAM")
        handle = agent.initialize_xfer(direction, local, files.trim(), name)
        state = agent.transfer(handle)
        if state == "PROC":
            state = finish(agent, handle)
        agent.release_xfer_handle(handle)
        return str(state)

    rows = [(kept.address + page * page_bytes, page_bytes, 0) for page in range(pages)]
    states = [move("WRITE", rows[::-1])]
    found = agent.query_memory([(0, 0, 0, str(path)) for path in paths], "POSIX", mem_type="FILE")
    sizes = [int(one["size"]) for one in found]
    truth = kept.bytes.reshape(pages, page_bytes)
    on_disk = sum(
        path.read_bytes() != truth[pages - 1 - page].tobytes() for page, path in enumerate(paths)
    )

    back = Memory(pages * page_bytes, before=4096)
    agent.register_memory([(back.address, back.nbytes, 0, "")], "DRAM", backends=["POSIX"])
    order = range(pages) if plant else reversed(range(pages))
    states.append(move("READ", [(back.address + p * page_bytes, page_bytes, 0) for p in order]))
    back.expect(0, kept.bytes)
    agent.deregister_memory(files)
    agent.deregister_memory(host)
    for fd in descriptors:
        os.close(fd)
    return {
        "states": states,
        "sizes": sizes,
        "wrong_files": on_disk,
        "wrong_bytes": back.wrong_bytes() + kept.wrong_bytes(),
    }


if __name__ == "__main__":
    run(prefill, decode, hicache)
