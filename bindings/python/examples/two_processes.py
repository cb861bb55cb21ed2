"""A prefill process writes scattered KV blocks of an array into a decode process.

python two_processes.py
"""

import multiprocessing
from multiprocessing.connection import Connection

import kvrail
import numpy as np

BLOCK = 32 << 10
WANTED = [7, 3, 9]


def decode(to_prefill: Connection) -> None:
    cache = kvrail.shared((64, BLOCK)).numpy()  # zeroed; peers of this host map it
    with kvrail.Agent("decode-0") as agent, agent.serve(0) as server:
        region = agent.register(cache)
        to_prefill.send((server.address, region.key))
        print(agent.wait_notification(timeout=30))  # every byte is visible
    for place, block in enumerate(WANTED):
        assert (cache[place] == block).all()


def prefill(from_decode: Connection) -> None:
    cache = np.arange(64, dtype=np.uint8).repeat(BLOCK)  # any array, tensor or buffer
    address, key = from_decode.recv()
    with kvrail.Agent("prefill-0") as agent:
        source = agent.register(cache)
        peer = agent.connect(address, timeout=30)
        target = peer.region(key)
        plan = agent.prepare(
            peer,
            source.blocks(BLOCK, np.array(WANTED)),
            target.blocks(BLOCK, range(len(WANTED))),
        )
        print(plan.write(notify="request 42").wait())


if __name__ == "__main__":
    spawn = multiprocessing.get_context("spawn")
    ends = spawn.Pipe()
    workers = [
        spawn.Process(target=role, args=(end,))
        for role, end in zip((decode, prefill), ends, strict=True)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
