"""vLLM's NixlConnector, pushing: decode ranks announce their blocks, prefill ranks write them and
say so.

A decode rank looks at a request's blocks in the very step in which it has counted the last writer's
notification: that is all that tells it that the bytes are there.
"""

from __future__ import annotations

import json
import time
import uuid
from collections import defaultdict
from multiprocessing.connection import Client, Listener
from typing import Any

from kv import Cache, Request, Shape, descriptor_ids, shares, strided
from role import PATIENCE_S, Stage, run, until


def _worker(stage: Stage, shape: dict[str, Any], rank: int) -> tuple[Cache, Any, Any]:
    cache = Cache(Shape(**shape), rank)
    config = stage.api.nixl_agent_config(num_threads=1, capture_telemetry=True)
    agent = stage.api.nixl_agent(str(uuid.uuid4()), config)
    descs = agent.get_reg_descs(cache.registration(), "DRAM")
    agent.register_memory(descs, backends=["UCX"])
    return cache, agent, descs


def decode(
    stage: Stage,
    shape: dict[str, Any],
    prefill_shape: dict[str, Any],
    rank: int,
    requests: list[dict[str, Any]],
) -> dict[str, Any]:
    cache, agent, descs = _worker(stage, shape, rank)
    writers = [share.source_rank for share in shares(Shape(**prefill_shape), cache.shape, rank)]
    payload = {
        "agent_metadata": agent.get_agent_metadata(),
        "kv_caches_base_addr": cache.bases(),
        "num_blocks": cache.shape.blocks,
        "block_len": cache.block_bytes,
    }
    remotes = []
    for writer in writers:
        address = stage.links[f"prefill-{writer}"].receive()
        with Client(tuple(address)) as side_channel:
            side_channel.send((rank, payload))
            if not side_channel.poll(PATIENCE_S):
                raise TimeoutError(f"no handshake from prefill rank {writer}")
            remotes.append(agent.add_remote_agent(side_channel.recv()))
    expected = {fields["name"]: Request(**fields) for fields in requests}
    for request in expected.values():
        cache.expect(request)
        announcement = {"req": request.name, "rank": rank, "blocks": request.target_blocks}
        for remote in remotes:
            agent.send_notif(remote, b"PUSH_REG:" + json.dumps(announcement).encode())

    counts: dict[str, int] = defaultdict(int)
    wrong_at_notification = 0
    deadline = time.monotonic() + PATIENCE_S
    while len([name for name in expected if counts[name] == len(writers)]) < len(expected):
        for notifs in agent.get_new_notifs().values():
            for notif in notifs:
                name, tp_size = notif.decode("utf-8").rsplit(":", 1)
                assert int(tp_size) == prefill_shape["tp"]
                counts[name] += 1
                if counts[name] == len(writers):
                    wrong_at_notification += cache.wrong_bytes_of(expected[name])
        if time.monotonic() > deadline:
            raise TimeoutError(f"of {len(writers)} writers came {dict(counts)}")
    wrong = cache.wrong_bytes()
    for writer in writers:
        stage.links[f"prefill-{writer}"].send("done")
        stage.links[f"prefill-{writer}"].receive()
    for remote in remotes:
        agent.remove_remote_agent(remote)
    agent.deregister_memory(descs)
    return {"wrong_at_notification": wrong_at_notification, "wrong_bytes": wrong}


def prefill(
    stage: Stage,
    shape: dict[str, Any],
    decode_shape: dict[str, Any],
    rank: int,
    requests: list[dict[str, Any]],
    readers: list[int],
    plant: str | None = None,
) -> int:
    cache, agent, descs = _worker(stage, shape, rank)
    decoding = Shape(**decode_shape)
    known = {fields["name"]: Request(**fields) for fields in requests}
    for request in known.values():
        cache.fill(request)
    listener = Listener(("127.0.0.1", 0))
    for reader in readers:
        stage.links[f"decode-{reader}"].send(listener.address)
    sides: dict[int, tuple[Any, Any, Any]] = {}
    target_blocks: dict[int, int] = {}
    for _ in readers:
        with listener.accept() as side_channel:
            reader, meta = side_channel.recv()
            name = agent.add_remote_agent(meta["agent_metadata"])
            agent.make_connection(name)
            [share] = [
                share
                for share in shares(cache.shape, decoding, reader)
                if share.source_rank == rank
            ]
            local = strided(
                cache.bases(), share.length, cache.block_bytes, cache.shape.blocks,
                share.source_offset,
            )  # fmt: skip
            remote = strided(
                meta["kv_caches_base_addr"], share.length, meta["block_len"], meta["num_blocks"],
                share.target_offset,
            )  # fmt: skip
            sides[reader] = (
                name,
                agent.prep_xfer_dlist("NIXL_INIT_AGENT", local, "DRAM"),
                agent.prep_xfer_dlist(name, remote, "DRAM"),
            )
            target_blocks[reader] = meta["num_blocks"]
            side_channel.send(agent.get_agent_metadata())

    sending: list[Any] = []
    announced = 0
    written = 0

    def step() -> bool:
        nonlocal announced, written
        for notifs in agent.get_new_notifs().values():
            for notif in notifs:
                assert notif.startswith(b"PUSH_REG:"), notif
                announcement = json.loads(notif[len(b"PUSH_REG:") :])
                reader = announcement["rank"]
                source = known[announcement["req"]].source_blocks
                if plant == "region-base":
                    source = [0] * len(source)
                _, local, remote = sides[reader]
                regions = cache.shape.regions
                handle = agent.make_prepped_xfer(
                    "WRITE",
                    local,
                    descriptor_ids(regions, cache.shape.blocks, source),
                    remote,
                    descriptor_ids(regions, target_blocks[reader], announcement["blocks"]),
                    notif_msg=f"{announcement['req']}:{cache.shape.tp}".encode(),
                )
                agent.transfer(handle)
                sending.append(handle)
                announced += 1
        for handle in list(sending):
            state = agent.check_xfer_state(handle)
            assert state in ("DONE", "PROC"), state
            if state == "DONE":
                written += agent.get_xfer_telemetry(handle).totalBytes
                agent.release_xfer_handle(handle)
                sending.remove(handle)
        return announced == len(known) * len(readers) and not sending

    until(step, "all announcements and writes")
    for reader in readers:
        stage.links[f"decode-{reader}"].receive()
        name, local, remote = sides[reader]
        agent.release_dlist_handle(local)
        agent.release_dlist_handle(remote)
        agent.remove_remote_agent(name)
        stage.links[f"decode-{reader}"].send("bye")
    agent.deregister_memory(descs)
    return written


if __name__ == "__main__":
    run(prefill, decode)
