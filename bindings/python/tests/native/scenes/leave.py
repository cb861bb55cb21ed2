"""Ends while everything is alive.

Agents, transfers in flight, waiting threads, an event loop's descriptor.
"""

import asyncio
import sys
import threading

import kvrail
import numpy as np

agent = kvrail.Agent("leaving", transports=["shm", "tcp"], ignore_environment=True)
deaf = kvrail.Agent("deaf", transports=["shm"], progress="inline", ignore_environment=True)
region, remote = agent.register(np.zeros(64)), deaf.register(np.zeros(64))
peer = agent.connect(deaf.metadata())
plan = agent.prepare(peer, region, peer.region(remote.key))
transfers = [plan.write() for _ in range(10)]
server = agent.serve(0)


def wait() -> None:
    try:
        agent.wait_notification(30)
    except kvrail.Closed:
        pass


threading.Thread(target=wait, daemon=True).start()


async def main() -> None:
    task = asyncio.ensure_future(transfers[0])
    await asyncio.sleep(0.05)
    task.cancel()


asyncio.run(main())
how = sys.argv[1]
if how == "exception":
    raise SystemExit(0)
if how == "deleted":
    del agent
if how == "cycle":
    cycle: list[object] = [agent, transfers]
    cycle.append(cycle)
    del agent, transfers
print("leaving", flush=True)
