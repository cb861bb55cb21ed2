"""A prefill process writes scattered KV blocks of an array into a decode process.

python two_processes.py
"""

import multiprocessing

import kvrail
import numpy as np

BLOCK = 32 << 10


def decode(port: int) -> None:
    cache = kvrail.shared((64, BLOCK)).numpy()  # zeroed; peers of this host map it
    with kvrail.Agent("decode-0") as agent, agent.serve(port):
        agent.register(cache)
        print(agent.wait_notification(timeout=30))  # every byte is visible
    assert all((cache[place] == block).all() for place, block in enumerate([7, 3, 9]))


def prefill(port: int) -> None:
    cache = np.arange(64, dtype=np.uint8).repeat(BLOCK)  # any array, tensor or buffer
    with kvrail.Agent("prefill-0") as agent:
        source = agent.register(cache)
        peer = agent.connect(f"127.0.0.1:{port}", timeout=30)
        target = peer.regions[0]
        plan = agent.prepare(
            peer,
            source.blocks(BLOCK, np.array([7, 3, 9])),
            target.blocks(BLOCK, range(3)),
        )
        print(plan.write(notify="request 42").wait())


if __name__ == "__main__":
    spawn = multiprocessing.get_context("spawn")
    workers = [spawn.Process(target=role, args=(5557,)) for role in (decode, prefill)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
