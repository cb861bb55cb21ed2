"""A process that serves memory.

Prints its address and region, then does what it is told line by line.
"""

import sys

import kvrail
import numpy as np

transport = sys.argv[1]
agent = kvrail.Agent("served", transports=[transport], ignore_environment=True, peer_timeout=1.0)
server = agent.serve(0)
memory = kvrail.shared(1 << 20).numpy() if transport == "shm" else np.zeros(1 << 20, np.uint8)
region = agent.register(memory)
print(server.address, *region.key, flush=True)
for line in sys.stdin:
    match line.split():
        case ["notified"]:
            notification = agent.wait_notification(10)
            print(
                notification.peer_name, notification.message.decode(), int(memory.sum()), flush=True
            )
        case ["fill", value]:
            memory[:] = int(value)
            print("filled", flush=True)
        case ["end"]:
            break
