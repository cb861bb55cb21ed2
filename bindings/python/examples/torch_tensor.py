"""A tensor moves to another process and back, awaited in asyncio.

python torch_tensor.py
"""

import asyncio
import multiprocessing
from multiprocessing.connection import Connection

import kvrail
import torch


def worker(to_main: Connection) -> None:
    tensor = torch.zeros(1024, 1024, dtype=torch.bfloat16)
    with kvrail.Agent("worker") as agent, agent.serve(0) as server:
        region = agent.register(tensor)
        to_main.send((server.address, region.key))
        agent.wait_notification(timeout=30)  # the tensor has arrived
        tensor.mul_(2)
        agent.send(agent.peer("main"), "doubled")
        agent.wait_notification(timeout=30)  # and was fetched


async def main(from_worker: Connection) -> None:
    tensor = torch.arange(1024).to(torch.bfloat16).repeat(1024, 1)
    before = tensor.clone()
    address, key = await asyncio.to_thread(from_worker.recv)
    with kvrail.Agent("main") as agent:
        region = agent.register(tensor)
        peer = await asyncio.to_thread(agent.connect, address)
        plan = agent.prepare(peer, region, peer.region(key))
        print(await plan.write(notify="yours"))
        print(await anext(agent.notifications(timeout=30)))
        print(await plan.read(notify="mine"))
    assert torch.equal(tensor, before * 2)


if __name__ == "__main__":
    spawn = multiprocessing.get_context("spawn")
    here, there = spawn.Pipe()
    process = spawn.Process(target=worker, args=(there,))
    process.start()
    asyncio.run(main(here))
    process.join()
    assert process.exitcode == 0
