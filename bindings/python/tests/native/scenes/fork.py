"""Forks in mid-use. The child's handles are errors and its end is quiet; the parent goes on."""

import gc
import os
import signal
import sys

import kvrail

signal.alarm(20)
agents = [kvrail.Agent(name, transports=["shm", "tcp"], ignore_environment=True) for name in "ab"]
regions = [agent.register(bytearray(4096)) for agent in agents]
peer = agents[0].connect(agents[1].metadata())
plan = agents[0].prepare(peer, regions[0], peer.region(regions[1].key))
transfer = plan.write()
server = agents[0].serve(0)

child = os.fork()
if child == 0:
    uses = [
        lambda: agents[0].metadata(),
        lambda: agents[0].register(bytearray(8)),
        lambda: regions[0][:],
        lambda: regions[0].deregister(),
        lambda: peer.regions,
        lambda: plan.write(),
        lambda: transfer.wait(1),
        lambda: transfer.cancel(),
        lambda: server.accept(1),
        lambda: agents[0].close(),
    ]
    for use in uses:
        try:
            use()
        except kvrail.Forked as error:
            assert error.hints and str(os.getpid()) in str(error)
        else:
            os._exit(3)
    repr([agents, regions, peer, plan, transfer, server])
    del uses, use, server, transfer, plan, peer, regions, agents
    gc.collect()
    with kvrail.Agent("child", transports=["shm"], ignore_environment=True) as own:
        own.register(bytearray(8))
    sys.exit(0)

_, status = os.waitpid(child, 0)
assert os.waitstatus_to_exitcode(status) == 0, status
transfer.wait(5)
for _ in range(100):
    plan.write().wait(5)
print("went on")
