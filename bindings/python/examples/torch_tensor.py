"""A tensor moves to another process and back, awaited in asyncio.

python torch_tensor.py
"""

import asyncio
import multiprocessing

import kvrail
import torch


def worker(port: int) -> None:
    tensor = torch.zeros(1024, 1024, dtype=torch.bfloat16)
    with kvrail.Agent("worker") as agent, agent.serve(port):
        agent.register(tensor)
        agent.wait_notification(timeout=30)  # the tensor has arrived
        tensor.mul_(2)
        agent.send(agent.peers[0], "doubled")
        agent.wait_notification(timeout=30)  # and was fetched


async def main(port: int) -> None:
    tensor = torch.arange(1024, dtype=torch.bfloat16).repeat(1024, 1)
    with kvrail.Agent("main") as agent:
        region = agent.register(tensor)
        peer = await asyncio.to_thread(agent.connect, f"127.0.0.1:{port}")
        plan = agent.prepare(peer, region, peer.region(0))
        print(await plan.write(notify="yours"))
        print(await anext(agent.notifications(timeout=30)))
        before = tensor.clone()
        await plan.read(notify="mine")
    assert torch.equal(tensor, before * 2)


if __name__ == "__main__":
    process = multiprocessing.get_context("spawn").Process(target=worker, args=(5558,))
    process.start()
    asyncio.run(main(5558))
    process.join()
    assert process.exitcode == 0
