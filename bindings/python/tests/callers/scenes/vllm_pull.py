"""vLLM's NixlConnector, pulling: prefill ranks fill and lease blocks, decode ranks read them.

The calls, their order, their argument types and the threads that make them are the connector's;
scheduling is left out.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections import defaultdict
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing.connection import Client, Listener
from typing import Any

from kv import Cache, Request, Shape, Share, descriptor_ids, shares, strided
from role import PATIENCE_S, Stage, run, until

LEASE_S = 30.0


def _agent(stage: Stage) -> Any:
    config = stage.api.nixl_agent_config(backends=["UCX"], num_threads=1, capture_telemetry=True)
    return stage.api.nixl_agent(str(uuid.uuid4()), config)


class Handshakes(threading.Thread):
    """The side channel of a prefill rank: whoever asks gets the metadata."""

    def __init__(self, payload: dict[str, Any]):
        super().__init__(name="nixl_handshake_listener", daemon=True)
        self._payload = payload
        self._listener = Listener(("127.0.0.1", 0))
        self.address = self._listener.address

    def run(self) -> None:
        while True:
            with self._listener.accept() as asker:
                if asker.recv() == "get_meta_msg":
                    asker.send(self._payload)


def prefill(
    stage: Stage, shape: dict[str, Any], rank: int, requests: list[dict[str, Any]], readers: int
) -> dict[str, Any]:
    """Fills its blocks, answers handshakes, and frees each request at the last reader's
    notification."""
    cache = Cache(Shape(**shape), rank)
    wanted = {request["name"]: Request(**request) for request in requests}
    for request in wanted.values():
        cache.fill(request)
    agent = _agent(stage)
    descs = agent.get_reg_descs(cache.registration(), "DRAM")
    agent.register_memory(descs, backends=["UCX"])
    handshakes = Handshakes(
        {
            "agent_metadata": agent.get_agent_metadata(),
            "kv_caches_base_addr": cache.bases(),
            "num_blocks": cache.shape.blocks,
            "block_len": cache.block_bytes,
        }
    )
    handshakes.start()
    for peer in stage.peers("decode"):
        stage.links[peer].send(handshakes.address)

    counts: dict[str, int] = defaultdict(int)
    leases = dict.fromkeys(wanted, time.monotonic() + LEASE_S)
    heartbeats = late = 0

    def step() -> bool:
        """Reads what came; whether each reader has renewed a lease."""
        nonlocal heartbeats, late
        for notifs in agent.get_new_notifs().values():
            for notif in notifs:
                if notif.startswith(b"HB:"):
                    heartbeats += 1
                    for name in notif[3:].decode().split(","):
                        if name in leases:
                            leases[name] = time.monotonic() + LEASE_S
                    continue
                name, _tp = notif.decode("utf-8").rsplit(":", 1)
                counts[name] += 1
                late += counts[name] > readers
                if counts[name] == readers:
                    cache.free(wanted[name])
                    del leases[name]
        expired = [name for name, end in leases.items() if end < time.monotonic()]
        if expired:
            raise TimeoutError(f"the leases of {expired} ran out, counts {dict(counts)}")
        return heartbeats >= readers

    while leases:
        step()
        time.sleep(0.0005)
    for peer in stage.peers("decode"):
        stage.links[peer].receive()
    until(step, "each reader's heartbeat")
    agent.deregister_memory(descs)
    return {"counts": counts, "heartbeats": heartbeats, "late": late}


class Decode:
    """The worker side of a decode rank."""

    def __init__(self, stage: Stage, cache: Cache, prefill_shape: Shape, plant: str | None):
        self.cache = cache
        self.prefill = prefill_shape
        self.plant = plant
        self.agent = _agent(stage)
        self.registered = self.agent.get_reg_descs(cache.registration(), "DRAM")
        self.agent.register_memory(self.registered, backends=["UCX"])
        self.shares = shares(prefill_shape, cache.shape, cache.rank)
        self.local: dict[tuple[int, int], Any] = {}
        for share in self.shares:
            rows = strided(
                cache.bases(), share.length, cache.block_bytes, cache.shape.blocks,
                share.target_offset,
            )  # fmt: skip
            self.local[share.target_offset, share.length] = self.agent.prep_xfer_dlist(
                "NIXL_INIT_AGENT", rows, "DRAM"
            )
        self.remote: dict[tuple[str, int], tuple[bytes, Any]] = {}
        self.receiving: dict[str, list[Any]] = defaultdict(list)
        self.telemetry: list[tuple[int, int, int, int]] = []

    def handshake(self, engine: str, address: Any, share: Share) -> None:
        """Runs on the handshake thread, while the main thread moves and polls."""
        with Client(tuple(address)) as side_channel:
            side_channel.send("get_meta_msg")
            if not side_channel.poll(PATIENCE_S):
                raise TimeoutError(f"no handshake from {engine}")
            meta = side_channel.recv()
        name = self.agent.add_remote_agent(meta["agent_metadata"])
        offset = 0 if self.plant == "head-offset-forgotten" else share.source_offset
        rows = strided(
            meta["kv_caches_base_addr"], share.length, meta["block_len"], meta["num_blocks"], offset
        )
        handle = self.agent.prep_xfer_dlist(name, rows, "DRAM")
        self.remote[engine, share.source_rank] = (name, handle)

    def read(self, engine: str, request: Request) -> None:
        for share in self.shares:
            name, remote = self.remote[engine, share.source_rank]
            notif = f"{request.name}:{self.cache.shape.tp}".encode()
            if not request.target_blocks:
                # The whole prompt was in the local prefix cache: nothing to read, and blocks to be
                # freed all the same.
                self.agent.send_notif(name, notif_msg=notif)
                continue
            source_blocks = list(request.source_blocks)
            if self.plant == "region-base":
                source_blocks = [0] * len(source_blocks)
            elif self.plant == "blocks-swapped":
                source_blocks[:2] = source_blocks[1::-1]
            elif self.plant == "stale-block":
                source_blocks[-1] = (source_blocks[-1] + 1) % self.prefill.blocks
            regions = self.cache.shape.regions
            handle = self.agent.make_prepped_xfer(
                "READ",
                self.local[share.target_offset, share.length],
                descriptor_ids(regions, self.cache.shape.blocks, request.target_blocks),
                remote,
                descriptor_ids(regions, self.prefill.blocks, source_blocks),
                notif_msg=notif,
            )
            self.agent.transfer(handle)
            self.receiving[request.name].append(handle)

    def done(self) -> set[str]:
        """The requests all of whose reads have ended; polled on each step of the engine."""
        finished = set()
        for name, handles in list(self.receiving.items()):
            in_progress = []
            for handle in handles:
                state = self.agent.check_xfer_state(handle)
                if state == "DONE":
                    seen = self.agent.get_xfer_telemetry(handle)
                    self.telemetry.append(
                        (seen.totalBytes, seen.descCount, seen.postDuration, seen.xferDuration)
                    )
                    self.agent.release_xfer_handle(handle)
                elif state == "PROC":
                    in_progress.append(handle)
                else:
                    raise RuntimeError(f"the read of {name} ended in {state}")
            self.receiving[name] = in_progress
            if not in_progress:
                del self.receiving[name]
                finished.add(name)
        return finished

    def shutdown(self) -> None:
        for handles in self.receiving.values():
            for handle in handles:
                self.agent.release_xfer_handle(handle)
        for handle in self.local.values():
            self.agent.release_dlist_handle(handle)
        for name, handle in self.remote.values():
            self.agent.release_dlist_handle(handle)
            self.agent.remove_remote_agent(name)
        self.agent.deregister_memory(self.registered)


def decode(
    stage: Stage,
    shape: dict[str, Any],
    prefill_shape: dict[str, Any],
    rank: int,
    engines: dict[str, list[dict[str, Any]]],
    plant: str | None = None,
) -> dict[str, Any]:
    """Reads the requests of each engine once its handshake is through, and polls meanwhile."""
    worker = Decode(stage, Cache(Shape(**shape), rank), Shape(**prefill_shape), plant)
    addresses = {peer: stage.links[peer].receive() for peer in stage.peers("prefill")}
    handshakes: dict[Future[None], str] = {}
    with ThreadPoolExecutor(1, "vllm-nixl-handshake-initiator") as executor:
        for engine in engines:

            def meet(engine: str = engine) -> None:
                for share in worker.shares:
                    address = addresses[f"prefill-{engine}-{share.source_rank}"]
                    worker.handshake(engine, address, share)

            handshakes[executor.submit(meet)] = engine
        waiting = {name["name"] for requests in engines.values() for name in requests}
        polled_meanwhile = 0
        deadline = time.monotonic() + PATIENCE_S
        while waiting:
            for future in [one for one in handshakes if one.done()]:
                engine = handshakes.pop(future)
                future.result()
                for fields in engines[engine]:
                    request = Request(**fields)
                    worker.cache.expect(request)
                    worker.read(engine, request)
                    if not request.target_blocks:
                        waiting.discard(request.name)
                names = ",".join(fields["name"] for fields in engines[engine])
                for (of, _), (name, _) in worker.remote.items():
                    if of == engine:
                        worker.agent.send_notif(name, notif_msg=f"HB:{names}".encode())
            waiting -= worker.done()
            polled_meanwhile += bool(handshakes)
            if time.monotonic() > deadline:
                raise TimeoutError(f"{waiting} did not arrive")
            worker.agent.get_new_notifs()
    until(lambda: not worker.receiving, "the end of all reads")
    for (engine, _), (name, _) in worker.remote.items():
        assert worker.agent.check_remote_metadata(name.decode()), engine
    wrong = worker.cache.wrong_bytes()
    for peer in stage.peers("prefill"):
        stage.links[peer].send("done")
    worker.shutdown()
    return {"wrong_bytes": wrong, "telemetry": worker.telemetry, "polled": polled_meanwhile}


if __name__ == "__main__":
    run(prefill, decode)
