"""Ctrl-C while each kind of wait goes on."""

import signal
import sys
import threading
import time

import kvrail

# Whoever runs the tests in the background may have had the signal ignored, and children inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
agent = kvrail.Agent("waiting", transports=["shm"], ignore_environment=True)
deaf = kvrail.Agent("deaf", transports=["shm"], progress="inline", ignore_environment=True)
region, remote = agent.register(bytearray(64)), deaf.register(bytearray(64))
peer = agent.connect(deaf.metadata())
transfer = agent.prepare(peer, region, peer.region(remote.key)).write(timeout=30)
server = agent.serve(0)
waits = {
    "transfer": transfer.wait,
    "notification": lambda: agent.wait_notification(30),
    "loop": lambda: next(agent.notifications()),
    "ready": lambda: peer.wait_ready(30),
    "accept": lambda: server.accept(30),
    "connect": lambda: agent.connect("127.0.0.1:9", timeout=30),
    "deregister": lambda: region.deregister(30),
}
for name, wait in waits.items():
    main = threading.main_thread().ident
    threading.Timer(0.1, signal.pthread_kill, (main, signal.SIGINT)).start()
    started = time.monotonic()
    try:
        wait()
    except KeyboardInterrupt:
        took = time.monotonic() - started
        assert took < 5, (name, took)
    else:
        sys.exit(f"{name} was not interrupted")
transfer.cancel()
print("interrupted", len(waits))
