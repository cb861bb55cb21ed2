"""LMCache's channel and TensorRT-LLM's transfer agent: prepared lists reposted, tags awaited, and
the search for an import package."""

from __future__ import annotations

import importlib
import sys
import time
from functools import partial
from typing import Any

from memory import Memory, pattern
from role import PATIENCE_S, Stage, finish, run, until

CHUNK = 6144
CHUNKS = 48
ROUNDS = 12


def _slots(round_: int) -> tuple[list[int], list[int]]:
    """Where a round's chunks come from and where they go; every round overwrites some of the one
    before."""
    source = [(5 * i + round_) % CHUNKS for i in range(9)]
    target = [(7 * i + 3 * round_ + 1) % CHUNKS for i in range(9)]
    return source, target


def sender(stage: Stage, plant: bool) -> int:
    """LMCache: one prepared list a side with the old names of memory types; a request is posted
    again and again."""
    config = stage.api.nixl_agent_config(backends=["UCX"], num_threads=4)
    agent = stage.api.nixl_agent("lmcache-sender", config)
    pages = Memory(CHUNK * CHUNKS)
    pages.fill("lmcache")
    registered = agent.register_memory([(pages.address, pages.nbytes, 0, "")], mem_type="cpu")
    rows = [(pages.address + i * CHUNK, CHUNK, 0) for i in range(CHUNKS)]
    local = agent.prep_xfer_dlist("", agent.get_xfer_descs(rows, mem_type="cpu"), mem_type="cpu")
    meta = stage.links["receiver"].receive()
    remote_name = agent.add_remote_agent(meta["agent"])
    remote_descs = agent.deserialize_descs(meta["descs"])
    remote = agent.prep_xfer_dlist(remote_name, remote_descs, mem_type="cpu")
    stage.links["receiver"].send(agent.get_agent_metadata())

    posts = 0
    for round_ in range(ROUNDS):
        source, target = _slots(round_)
        if plant and round_ == ROUNDS - 1:
            target[-1] = (target[-1] + 1) % CHUNKS
        handle = agent.make_prepped_xfer("WRITE", local, source, remote, target)
        for again in range(3):
            # The notification of a repost is the one given with it, never that of the post before.
            tag = f"round-{round_}|{again}|".encode() + b"\0tail"
            assert agent.transfer(handle, tag) in ("DONE", "PROC")
            assert finish(agent, handle) == "DONE"
            posts += 1
        agent.release_xfer_handle(handle)
        stage.links["receiver"].receive()
    agent.release_dlist_handle(local)
    agent.release_dlist_handle(remote)
    agent.remove_remote_agent(remote_name)
    agent.deregister_memory(registered)
    return posts


def receiver(stage: Stage, plant: bool) -> dict[str, Any]:
    agent = stage.api.nixl_agent("lmcache-receiver", stage.api.nixl_agent_config(num_threads=4))
    pages = Memory(CHUNK * CHUNKS)
    agent.register_memory([(pages.address, pages.nbytes, 0, "")], mem_type="cpu")
    rows = [(pages.address + i * CHUNK, CHUNK, 0) for i in range(CHUNKS)]
    descs = agent.get_serialized_descs(agent.get_xfer_descs(rows, mem_type="cpu"))
    stage.links["sender"].send({"agent": agent.get_agent_metadata(), "descs": descs})
    sender_name = agent.add_remote_agent(stage.links["sender"].receive()).decode()
    truth = pattern(CHUNK * CHUNKS, "lmcache")
    wrong = 0
    for round_ in range(ROUNDS):
        for again in range(3):
            prefix = f"round-{round_}|{again}|".encode()
            until(
                partial(agent.check_remote_xfer_done, sender_name, prefix),
                f"the notification {prefix!r}",
            )
            assert not agent.check_remote_xfer_done(sender_name, prefix), "a tag was found twice"
        for a, b in zip(*_slots(round_), strict=True):
            pages.expect(b * CHUNK, truth[a * CHUNK : (a + 1) * CHUNK])
        wrong += pages.wrong_bytes()
        stage.links["sender"].send("next")
    left = sum(map(len, agent.notifs.values()))
    return {"wrong_bytes": wrong, "left": left}


def requester(stage: Stage) -> dict[str, Any]:
    """TensorRT-LLM: finds the package, one agent with eight threads, memory and descriptors as
    objects, a sync message as the tag."""
    found = None
    for package in ("nixl", "nixl_cu12", "nixl_cu13"):
        try:
            found = importlib.import_module(f"{package}._api")
            break
        except ImportError:
            continue
    assert found is not None
    for package in ("nixl", "nixl_cu12"):
        same = stage.module(f"{package}._api")
        assert same.nixl_agent is found.nixl_agent or stage.implementation == "real"
    stage.module("nixl_cu12._bindings")
    if stage.implementation == "kvrail":
        for name in ("_api", "_bindings", "_utils", "logging"):
            one = stage.module(f"nixl.{name}")
            assert stage.module(f"nixl_cu12.{name}") is one
            assert stage.module(f"nixl_cu13.{name}") is one
    assert "torch" not in sys.modules

    config = found.nixl_agent_config(enable_prog_thread=True, backends=["UCX"], num_threads=8)
    agent = found.nixl_agent("trtllm-ctx", config)
    source = Memory(CHUNK * CHUNKS)
    source.fill("trtllm")
    descs = agent.get_reg_descs([(source.address, source.nbytes, 0, "kv")], "DRAM")
    agent.register_memory(descs)
    meta = stage.links["responder"].receive()
    assert not agent.check_remote_metadata("trtllm-gen")
    remote = agent.add_remote_agent(meta["desc"])
    assert remote.decode() == "trtllm-gen"
    assert agent.check_remote_metadata("trtllm-gen")
    into = agent.get_xfer_descs([(meta["base"], CHUNK * CHUNKS, 0)], "DRAM")
    assert agent.check_remote_metadata("trtllm-gen", into)
    stage.links["responder"].send(agent.get_agent_metadata())
    durations = []
    for number in range(6):
        source_descs = [(source.address + i * CHUNK, CHUNK, 0) for i in range(number, CHUNKS, 6)]
        target_descs = [
            (meta["base"] + (CHUNKS - 1 - i) * CHUNK, CHUNK, 0) for i in range(number, CHUNKS, 6)
        ]
        handle = agent.initialize_xfer(
            "WRITE",
            agent.get_xfer_descs(source_descs, "DRAM"),
            agent.get_xfer_descs(target_descs, "DRAM"),
            "trtllm-gen",
            f"sync:{number}:done",
        )
        started = time.monotonic()
        status = agent.transfer(handle)
        assert status != "ERR"
        assert finish(agent, handle) == "DONE"
        durations.append(time.monotonic() - started)
        agent.release_xfer_handle(handle)
    agent.send_notif("trtllm-gen", b"end of request \0 17")
    stage.links["responder"].receive()
    agent.remove_remote_agent("trtllm-gen")
    agent.deregister_memory(descs)
    return {"package": found.__name__, "transfers": len(durations)}


def responder(stage: Stage) -> dict[str, Any]:
    agent = stage.api.nixl_agent(
        "trtllm-gen", stage.api.nixl_agent_config(True, False, backends=["UCX"], num_threads=8)
    )
    target = Memory(CHUNK * CHUNKS)
    agent.register_memory([(target.address, target.nbytes, 0, "")], "DRAM")
    stage.links["requester"].send({"desc": agent.get_agent_metadata(), "base": target.address})
    agent.add_remote_agent(stage.links["requester"].receive())
    truth = pattern(CHUNK * CHUNKS, "trtllm")
    deadline = time.monotonic() + PATIENCE_S
    for number in range(6):
        # Only the middle of the message is known to this side.
        while not agent.check_remote_xfer_done(
            "trtllm-ctx", f":{number}:".encode(), tag_is_prefix=False
        ):
            assert time.monotonic() < deadline, f"transfer {number} was not told of"
        for i in range(number, CHUNKS, 6):
            target.expect((CHUNKS - 1 - i) * CHUNK, truth[i * CHUNK : (i + 1) * CHUNK])
        if number == 5:
            wrong = target.wrong_bytes()
    until(lambda: agent.check_remote_xfer_done("trtllm-ctx", b"end of request"), "the last word")
    assert not agent.check_remote_xfer_done("nobody", b"")
    stage.links["requester"].send("seen")
    return {"wrong_bytes": wrong}


if __name__ == "__main__":
    run(sender, receiver, requester, responder)
