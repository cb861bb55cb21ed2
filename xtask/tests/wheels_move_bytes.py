"""Moves bytes between two processes, by kvrail's own interface and by NIXL's: what is installed works.

Started again by itself with a role and a port, it is the process that has the bytes.
"""

import subprocess
import sys
import time

import kvrail
from nixl._api import nixl_agent, nixl_agent_config

BLOCK = 4096
BLOCKS = 64
PATIENCE = 60


def pattern(block: int) -> bytes:
    return bytes((block * 31 + offset) % 251 for offset in range(BLOCK))


def ours_source(address: str) -> None:
    memory = bytearray(b"".join(map(pattern, range(BLOCKS))))
    with kvrail.Agent("prefill-0") as agent:
        source = agent.register(memory)
        peer = agent.connect(address, timeout=PATIENCE)
        # The last block first.
        order = list(reversed(range(BLOCKS)))
        plan = agent.prepare(
            peer, source.blocks(BLOCK, order), peer.region(0).blocks(BLOCK, range(BLOCKS))
        )
        plan.write(notify=b"request 42").wait(timeout=PATIENCE)


def ours() -> None:
    target = bytearray(BLOCK * BLOCKS)
    with kvrail.Agent("decode-0") as agent, agent.serve(0) as server:
        agent.register(target)
        with subprocess.Popen([sys.executable, "-I", __file__, "ours", server.address]) as prefill:
            assert agent.wait_notification(timeout=PATIENCE).message == b"request 42"
            assert prefill.wait(timeout=PATIENCE) == 0
    assert target == b"".join(map(pattern, reversed(range(BLOCKS)))), "wrong bytes"


def nixl_source(_: str) -> None:
    memory = kvrail.shared(BLOCK * BLOCKS)
    memory.view()[:] = b"".join(map(pattern, range(BLOCKS)))
    agent = nixl_agent("prefill-0", nixl_agent_config(backends=["UCX"]))
    where = [(memory.address, BLOCK * BLOCKS, 0, "")]
    assert agent.register_memory(where, "DRAM") is not None
    print(memory.address, agent.get_agent_metadata().hex(), flush=True)
    # Until whoever reads from here has what it wants.
    sys.stdin.read()


def nixl() -> None:
    target = kvrail.shared(BLOCK * BLOCKS)
    agent = nixl_agent("decode-0", nixl_agent_config(backends=["UCX"]))
    assert agent.register_memory([(target.address, BLOCK * BLOCKS, 0, "")], "DRAM") is not None
    command = [sys.executable, "-I", __file__, "nixl", ""]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as prefill:
        assert prefill.stdout and prefill.stdin
        base, metadata = prefill.stdout.readline().split()
        peer = agent.add_remote_agent(bytes.fromhex(metadata))
        blocks = range(1, BLOCKS)
        here = [(target.address + block * BLOCK, BLOCK, 0) for block in blocks]
        there = [(int(base) + block * BLOCK, BLOCK, 0) for block in reversed(blocks)]
        transfer = agent.initialize_xfer(
            "READ", agent.get_xfer_descs(here, "DRAM"), agent.get_xfer_descs(there, "DRAM"), peer
        )
        state, until = agent.transfer(transfer), time.monotonic() + PATIENCE
        while state == "PROC" and time.monotonic() < until:
            state = agent.check_xfer_state(transfer)
        assert state == "DONE", state
        agent.release_xfer_handle(transfer)
        prefill.stdin.close()
        assert prefill.wait(timeout=PATIENCE) == 0
    expected = bytes(BLOCK) + b"".join(map(pattern, reversed(range(1, BLOCKS))))
    assert bytes(target.view()) == expected, "wrong bytes"


if __name__ == "__main__":
    if len(sys.argv) == 1:
        ours()
        nixl()
    else:
        {"ours": ours_source, "nixl": nixl_source}[sys.argv[1]](sys.argv[2])
