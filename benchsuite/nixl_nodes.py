#!/usr/bin/env python3
"""The real NIXL between two emulated nodes: one role of a transfer that is verified byte by byte.

`cargo xtask softefa nixl` and `nixl-faults` start this script once as `target` and once as `initiator`, each on a node
of its own, with a directory in which they meet. A row of what happened is written there as <role>.json after every
stage, so that it is there however the process ends. In between, files named by the driver steer the initiator:

  healthy   written here once the first transfers were verified (the canary)
  go        written by the driver once a fault is active: the initiator transfers under it
  struck    written here when that transfer has ended, or has not ended by the deadline
  cleared   written by the driver once the fault is gone: what was pending may end, and new transfers are tried
  die       written by the driver: the target kills itself, as a crash would
  stop      written here at the end: the target leaves

Byte i of a buffer depends on the seed and on i, so that what is misplaced, swapped, stale or torn does not pass.
"""

import argparse
import contextlib
import json
import os
import signal
import sys
import time
import traceback

POLL_S = 0.002
# On standard error: what NIXL logs from here on is about the fault.
MARK = "nixl_nodes: the fault is on"


class Meeting:
    """Files in a directory, put there whole."""

    def __init__(self, directory):
        self.directory = directory

    def path(self, name):
        return os.path.join(self.directory, name)

    def put(self, name, content=b""):
        with open(self.path(name + ".part"), "wb") as file:
            file.write(content)
        os.rename(self.path(name + ".part"), self.path(name))

    def there(self, name):
        return os.path.exists(self.path(name))

    def get(self, name, deadline_s, meanwhile=lambda: None):
        until = time.monotonic() + deadline_s
        while not self.there(name):
            if time.monotonic() > until:
                raise TimeoutError(f"no {name} within {deadline_s:.0f} s")
            meanwhile()
            time.sleep(POLL_S)
        with open(self.path(name), "rb") as file:
            return file.read()


def pattern(seed, size):
    """`size` bytes that depend on the seed and on their place."""
    import numpy

    word = numpy.arange((size + 7) // 8, dtype=numpy.uint64)
    with numpy.errstate(over="ignore"):
        word = (word + numpy.uint64(1)) * numpy.uint64(0x9E3779B97F4A7C15) ^ numpy.uint64(seed * 0x2545F4914F6CDD1D % 2**64)
        word = (word ^ (word >> numpy.uint64(29))) * numpy.uint64(0xBF58476D1CE4E5B9)
        word ^= word >> numpy.uint64(32)
    return word.view(numpy.uint8)[:size]


class Peer:
    def __init__(self, args):
        import numpy
        from nixl._api import nixl_agent, nixl_agent_config

        self.args, self.meeting, self.row = args, Meeting(args.dir), {"role": args.role, "op": args.op}
        self.note(stage="creating the agent")
        began = time.monotonic()
        self.agent = nixl_agent(args.role, nixl_agent_config(backends=["LIBFABRIC"]))
        self.memory = numpy.zeros(args.bytes, dtype=numpy.uint8)
        self.agent.register_memory([(self.memory.ctypes.data, args.bytes, 0, "")], mem_type="DRAM")
        self.note(stage="meeting", create_s=round(time.monotonic() - began, 3))

    def note(self, **facts):
        self.row.update(facts)
        self.meeting.put(self.args.role + ".json", json.dumps(self.row).encode())

    def descriptors(self):
        block = self.args.bytes // self.args.blocks
        base = self.memory.ctypes.data
        return self.agent.get_xfer_descs([(base + i * block, block, 0) for i in range(self.args.blocks)], mem_type="DRAM")

    def exchange(self, other):
        self.local = self.descriptors()
        self.meeting.put(self.args.role + ".metadata", self.agent.get_agent_metadata())
        self.meeting.put(self.args.role + ".descriptors", self.agent.get_serialized_descs(self.local))
        self.agent.add_remote_agent(self.meeting.get(other + ".metadata", self.args.deadline))
        self.remote = self.agent.deserialize_descs(self.meeting.get(other + ".descriptors", self.args.deadline))

    def differs(self, seed):
        """The first byte that is not the pattern's; None when all are."""
        import numpy

        wrong = numpy.flatnonzero(self.memory != pattern(seed, self.args.bytes))
        return int(wrong[0]) if len(wrong) else None


class Target(Peer):
    def run(self):
        self.exchange("initiator")
        self.note(stage="serving")
        until = time.monotonic() + 3600
        notified = 0
        while not self.meeting.there("stop") and time.monotonic() < until and os.getppid() != 1:
            notified += sum(len(messages) for messages in self.agent.get_new_notifs().values())
            if self.meeting.there("die"):
                os.kill(os.getpid(), signal.SIGKILL)
            if self.meeting.there("ask"):
                kind, seed = json.loads(self.meeting.get("ask", 1))
                os.remove(self.meeting.path("ask"))
                if kind == "fill":
                    self.memory[:] = pattern(seed, self.args.bytes)
                answer = self.differs(seed) if kind == "check" else None
                self.meeting.put("answer", json.dumps([answer, notified]).encode())
            time.sleep(POLL_S / 10)
        self.note(stage="done", notified=notified)


class NobodyThere(Exception):
    """The target was killed: it neither fills nor verifies its memory any more."""


class Initiator(Peer):
    def ask(self, kind, seed):
        if self.meeting.there("die"):
            raise NobodyThere
        self.meeting.put("ask", json.dumps([kind, seed]).encode())
        answer = json.loads(self.meeting.get("answer", self.args.deadline))
        os.remove(self.meeting.path("answer"))
        return answer

    def prepare(self, seed):
        """The data to be moved at its source, something else at its end."""
        if self.args.op == "READ":
            with contextlib.suppress(NobodyThere):
                self.ask("fill", seed)
            self.memory[:] = 0xA5
        else:
            self.memory[:] = pattern(seed, self.args.bytes)
            with contextlib.suppress(NobodyThere):
                self.ask("fill", seed + 1000)

    def wrong(self, seed):
        return self.differs(seed) if self.args.op == "READ" else self.ask("check", seed)[0]

    def begin(self, seed):
        self.prepare(seed)
        handle = self.agent.initialize_xfer(self.args.op, self.local, self.remote, "target", f"end-{seed}".encode())
        return handle, self.agent.transfer(handle)

    def finish(self, handle, state, seed, deadline_s):
        """How a transfer that was begun ends: `done`, `wrong`, `error` or `pending`, with the word of it."""
        until = time.monotonic() + deadline_s
        while state == "PROC" and time.monotonic() < until:
            state = self.agent.check_xfer_state(handle)
        if state == "PROC":
            return "pending", f"no end within {deadline_s:g} s"
        if state != "DONE":
            return "error", f"its state is {state}"
        try:
            place = self.wrong(seed)
        except NobodyThere:
            return "done", "nobody is left to verify it"
        return ("done", "every byte verified") if place is None else ("wrong", f"byte {place} differs")

    def transfer(self, seed, deadline_s):
        """As `finish`, from the start; an exception is an error too. Also the handle, if there is one."""
        handle = None
        try:
            handle, state = self.begin(seed)
            return (*self.finish(handle, state, seed, deadline_s), handle)
        except Exception as error:
            return "error", f"{type(error).__name__}: {error}".strip(), handle

    def run(self):
        args = self.args
        self.exchange("target")
        self.note(stage="connecting")
        began = time.monotonic()
        self.agent.make_connection("target")
        self.note(stage="first transfers", connect_s=round(time.monotonic() - began, 3))
        took = []
        for seed in range(1, args.iterations + 1):
            began = time.monotonic()
            end, word, handle = self.transfer(seed, args.deadline)
            took.append(round(time.monotonic() - began, 4))
            if end != "done":
                raise RuntimeError(f"transfer {seed} of a healthy fabric: {end}: {word}")
            self.agent.release_xfer_handle(handle)
        self.note(stage="healthy", verified_transfers=args.iterations, verified_bytes=args.iterations * args.bytes)
        self.meeting.put("healthy")
        if args.fault:
            self.under_fault()
        self.note(stage="done")

    def under_fault(self):
        args = self.args
        self.meeting.get("go", args.deadline)
        self.note(stage="under the fault", struck="died")
        print(MARK, file=sys.stderr, flush=True)
        began = time.monotonic()
        end, word, handle = self.transfer(100, args.fault_deadline)
        self.note(stage="struck", struck=end, struck_word=word, struck_s=round(time.monotonic() - began, 3))
        self.meeting.put("struck")
        self.meeting.get("cleared", args.deadline)
        self.note(stage="after the fault", after="died")
        if end == "pending":
            try:
                end, word = self.finish(handle, "PROC", 100, args.fault_deadline)
                self.note(after_pending=end, after_pending_word=word)
            except Exception as error:
                self.note(after_pending="error", after_pending_word=f"{type(error).__name__}: {error}".strip())
        else:
            self.note(after_pending="")
        end, word, _ = self.transfer(200, args.fault_deadline)
        self.note(after=end, after_word=word)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("role", choices=["target", "initiator"])
    parser.add_argument("--dir", required=True, help="where the two meet")
    parser.add_argument("--op", choices=["READ", "WRITE"], default="WRITE")
    parser.add_argument("--bytes", type=int, default=16 << 20)
    parser.add_argument("--blocks", type=int, default=16)
    parser.add_argument("--iterations", type=int, default=2)
    parser.add_argument("--deadline", type=float, default=60.0, help="longest of any one stage, seconds")
    parser.add_argument("--fault", action="store_true", help="then wait for `go` and transfer under a fault")
    parser.add_argument("--fault-deadline", type=float, default=10.0, help="when a transfer counts as pending, seconds")
    args = parser.parse_args()
    peer = None
    try:
        peer = (Target if args.role == "target" else Initiator)(args)
        peer.run()
        code = 0
    except BaseException as error:
        traceback.print_exc(limit=4)
        if peer is not None:
            peer.note(failed=f"{type(error).__name__}: {error} (in: {peer.row.get('stage')})")
        code = 1
    if args.role == "initiator" and peer is not None:
        peer.meeting.put("stop")
    sys.stdout.flush()
    sys.stderr.flush()
    # Interpreter shutdown crashes in libraries that the wheel brings twice: leave without it.
    os._exit(code)


if __name__ == "__main__":
    main()
